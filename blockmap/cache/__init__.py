"""The host's cache: verified chunks and nodes on the local disk, and the staging area for chunks that are not written yet.

Imports `local`, `format` and `errors`. `fetch` and `replay` put verified bytes in; volumes read them straight from the data file.
"""
