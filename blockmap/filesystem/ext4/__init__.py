"""Writes ext4 from a merged tree as a stream of blocks, and reads it back to check and compare it.

Imports the other modules of `filesystem`, `format` and `errors`. Members come from a source's layers; blocks and cuts go to a sink.
File contents are never held in memory: they are written as they come, and metadata when all layers are known.
"""
