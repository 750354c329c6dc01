"""Volumes, which are what exports show: their bytes are read for a start, through tree, cache and store; a clone's layers are
files of this host.

Imports `fetch`, `replay` and lower layers. Requests come from the nbdkit plugin; names and versions come from the store's
records, chunks and nodes through `fetch`, and a start's bundle through `replay`.
"""
