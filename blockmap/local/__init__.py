"""Local state: where files lie on this host, and how SQLite files are opened and migrated.

Imports `errors` only. Every module that stores something on this host uses it.
"""
