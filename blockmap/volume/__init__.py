"""What an export is: a volume, whose bytes are read for a start, through tree, cache and store.

Imports `fetch`, `replay` and what lies below. Requests come from the nbdkit plugin; names and versions come from the store's
records, chunks and nodes through `fetch`, and a start's bundle through `replay`.
"""
