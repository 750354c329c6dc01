"""Streams bundles, which hold what a start is known to read, into the cache before it is read.

Imports `origin`, `cache` and lower layers, never `fetch`. The server begins replays; volumes wait for what they bring. A
replay asks `origin` for ranges, verifies the frames in them, and hands chunks to the staging area and nodes to the cache.
"""
