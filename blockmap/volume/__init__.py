"""What an export is: a volume's bytes, read through tree, cache and store.

Imports `fetch` and what lies below. Requests come from the nbdkit plugin; names and versions come from the store's
records, chunks and nodes through `fetch`.
"""
