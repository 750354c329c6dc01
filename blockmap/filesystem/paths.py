"""Checks the paths and names of members, which a file system must be able to hold."""

import re

from blockmap.errors import ImageError

MAX_NAME = 255
MAX_TARGET = 4095
MAX_PATH = 4095
"""Bytes of a path that a system call takes, as of a symlink's target; bounds the cost of archives with ever deeper directories."""
_NO_NAME = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)|\0")
"""Matches paths with a component that is empty, "." or "..", or with a zero byte."""


def check_path(path: bytes, of: bytes) -> None:
    """Raises ImageError, with the member's path `of`, for a path that is too long, or climbs."""
    if len(path) > MAX_PATH:
        raise ImageError(f"{show(of[:80])}...: its path has {len(path)} bytes, {MAX_PATH} are allowed")
    if _NO_NAME.search(path):
        raise ImageError(
            f"{show(of)}: {show(path)} is refused as a path: it climbs with '..', or holds '.', an empty name or a zero byte"
        )


def check_name(name: bytes, of: bytes) -> None:
    """Raises ImageError, with the member's path `of`, for a name that is too long."""
    if len(name) > MAX_NAME:
        raise ImageError(f"{show(of)}: {show(name)} is a name of {len(name)} bytes, ext4 allows {MAX_NAME}")


def show(path: bytes) -> str:
    """Returns a path in a form for messages."""
    return repr(path.decode("utf-8", "backslashreplace"))
