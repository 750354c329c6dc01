"""Prints for programs: JSON of one kind in all commands.

A time is UTC in RFC 3339, as `timestamp` writes it; a digest has its algorithm before it, as `digest` writes it; what is unknown
is null, and a length of time or a size a number whose unit is the end of its name. Each command prints one document on one line.
"""

import json

from blockmap.terminal.output import tell
from blockmap.terminal.times import timestamp as timestamp  # commands take it with the rest


def tell_json(document: object) -> None:
    """Prints a document; OutputFailed."""
    tell(json.dumps(document))


def digest(sha256: bytes) -> str:
    """Formats a digest, whatever of: sha256:HEX."""
    return f"sha256:{sha256.hex()}"
