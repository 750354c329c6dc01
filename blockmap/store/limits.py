"""The most bytes that an object of each kind may have: who reads one takes no more, whatever the store holds.

Records of lines have limits of their format's; the others are several times what an image of a million files needs.
"""

from blockmap.format import collection, entry, hint, pack_log, record

RECORD = record.MAX_BYTES
"""What is read of an object where nothing else is said."""
FORMAT = 64 << 10
ENTRY = entry.MAX_BYTES
HINT = hint.MAX_BYTES
VERSION = RECORD
OCI = RECORD
CATALOGUE = RECORD
"""Some 500,000 names."""
HOOKS = 16 << 20
"""One in 64 chunks has a hook of 12 bytes: this is enough for 90 million chunks."""
PROFILE = 64 << 20
FILE_MAP = 128 << 20
PACK_LOG = pack_log.MAX_BYTES
COLLECTION = collection.MAX_BYTES
LAYER = 128 << 20
