"""The formats of everything that is stored: pure functions and values, no I/O.

Imports nothing of blockmap but `errors`. Bytes come from the store or the cache as they were read and leave as they
will be written; whoever needs a node that is not at hand passes a callable.
"""

BLOCK = 4096
"""Bytes of a block, the unit of every map: offsets and lengths are whole numbers of blocks."""
