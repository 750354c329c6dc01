"""Looks up users and groups in an image's own files."""

import shlex
from pathlib import Path

from blockmap.errors import HostError, ImageError
from blockmap.host.image_file import read_in_root

_MAX_ID = (1 << 31) - 1
"""runc takes no more."""
_MAX_ACCOUNTS_BYTES = 4 << 20
"""The most that /etc/passwd and /etc/group may have each: some 50,000 accounts."""


def user_ids(root: Path, user: str) -> tuple[int, int, list[int], str]:
    """Returns uid, gid, further groups and home of USER[:GROUP], by the image's own files.

    ImageError where it is unknown, HostError where a file cannot be read.
    """
    name, colon, group = user.partition(":")
    name = name or "0"
    # Name, password, uid, gid, comment, home, shell. A name may look like a number: passwd(5) names go first.
    accounts = [row for row in _rows(root, "/etc/passwd", 6) if _is_id(row[2]) and _is_id(row[3])]
    known = next((row for row in accounts if row[0] == name), None)
    known = known or next((row for row in accounts if row[2] == name), None)
    if known is None and not _is_id(name):
        raise ImageError(f"the user is {shlex.quote(name)}, which the image's /etc/passwd does not have")
    uid, gid, home = (int(known[2]), int(known[3]), known[5] or "/") if known else (int(name), 0, "/")
    # Name, password, gid, members.
    groups = [row for row in _rows(root, "/etc/group", 4) if _is_id(row[2])]
    if colon:
        found = next((row for row in groups if row[0] == group), None)
        if found is None and not _is_id(group):
            raise ImageError(f"the group is {shlex.quote(group)}, which the image's /etc/group does not have")
        return uid, int(found[2]) if found else int(group), [], home
    return uid, gid, [int(row[2]) for row in groups if known and known[0] in row[3].split(",")], home


def _is_id(text: str) -> bool:
    """Returns True if a text is the number of a user or group."""
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID


def _rows(root: Path, name: str, fields: int) -> list[list[str]]:
    rows = [line.split(":") for line in _lines(root, name)]
    return [row for row in rows if len(row) >= fields]


def _lines(root: Path, name: str) -> list[str]:
    try:
        text = read_in_root(root, name, _MAX_ACCOUNTS_BYTES) or b""
    except OSError as error:
        raise HostError(
            f"cannot read {name} of the image: {error.strerror}; the server's log says why, and `blockmap verify` whether the "
            "store is damaged"
        ) from error
    return [line for line in text.decode(errors="replace").splitlines() if line and line[0] != "#"]
