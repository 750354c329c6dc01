"""Local state: where it lies, and how its SQLite files are opened and migrated.

Imports `errors` only. Whoever keeps something on this host goes through here.
"""
