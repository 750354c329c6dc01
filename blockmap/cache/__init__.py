"""The host's cache: decoded chunks and nodes on the local disk, and what has come but is not written yet.

Imports `local`, `format` and `errors`. `fetch` and `replay` put verified bytes in; volumes read them straight from the data file.
"""
