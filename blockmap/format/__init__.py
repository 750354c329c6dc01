"""The formats of everything that is stored: pure functions and values, no I/O.

Imports nothing of blockmap but `errors`. Bytes come from the store or the cache as they were read and leave as they
will be written; a caller whose nodes are not at hand passes a callable that loads them.
"""

BLOCK = 4096
"""Bytes of a block, the unit of every map: offsets and lengths are whole numbers of blocks."""
