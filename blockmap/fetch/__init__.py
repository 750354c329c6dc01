"""Fetches chunks and nodes that a volume reads or is about to read, once each however many wait for them.

Imports `origin`, `cache` and lower layers, never `replay`. Volumes ask for content by its digest and place. It comes from
the store in ranges through `origin`, is verified, and goes to waiting readers and to the cache.
"""
