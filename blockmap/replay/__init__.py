"""Bundles: what starts are known to read, streamed into the cache before it is read.

Imports `origin`, `cache` and what lies below, never `fetch`. `server` begins replays, volumes wait for what they bring.
"""
