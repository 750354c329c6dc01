"""Mounts, unmounts, and says what is mounted where, by the kernel's table: a directory itself fails once its server has died."""

import ctypes
import os
import re
from pathlib import Path

from blockmap.errors import HostError

READ_ONLY = 1
NOSUID = 2
NODEV = 4
"""MS_RDONLY, MS_NOSUID and MS_NODEV of mount(2)."""
_BIND = 4096
"""MS_BIND of mount(2)."""
_DETACH = 2
"""MNT_DETACH of umount2(2)."""
UNTRUSTED = NOSUID | NODEV
"""For what an image holds: neither its setuid programs nor its device files give anybody more than he has."""


def mount(source: str, where: Path | str, kind: str, flags: int, options: str) -> None:
    """Mounts with mount(2), without a program; HostError, whose cause is the OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (os.fsencode(source), os.fsencode(where), kind.encode(), ctypes.c_ulong(flags), os.fsencode(options))
    if libc.mount(*arguments) == 0:
        return
    error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    raise HostError(f"cannot mount {source} ({kind}) at {where}: {error.strerror}; dmesg may say why") from error


def take_off(where: Path | str, *, lazily: bool = False) -> None:
    """Unmounts with umount2(2), without a program: HostError where it is in use, or, `lazily`, when nobody uses it any more."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(where), _DETACH if lazily else 0):
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        raise HostError(f"cannot unmount {where}: {error.strerror}") from error


def unmount(where: Path | str) -> None:
    """Unmounts a directory, lazily where it is in use; does nothing where nothing is mounted. HostError."""
    if source(where) is None:
        return
    try:
        take_off(where)
    except HostError:
        take_off(where, lazily=True)


def put_over(mounted: Path, where: str) -> None:
    """Has a directory show what is mounted at another one; what was mounted there goes on for those who use it. HostError.

    Between two system calls, the directory shows what is below.
    """
    take_off(where, lazily=True)
    mount(str(mounted), where, "none", _BIND, "")


def source(directory: Path | str) -> str | None:
    """Returns what is mounted at a directory, topmost: a device or the kind's own word; None where nothing is."""
    return sources().get(str(directory))


def sources() -> dict[str, str]:
    """Returns what is mounted, topmost, by directory."""
    return parse_sources(_own_table())


def parse_sources(table: bytes) -> dict[str, str]:
    """Returns what is mounted, topmost, by directory, from the kernel's table of a process (mountinfo of proc(5))."""
    return {fields[4]: tail[1] for fields, tail in _entries(table)}


def cgroups() -> list[Path]:
    """Returns the directories where control groups are mounted."""
    return [Path(fields[4]) for fields, tail in _entries(_own_table()) if tail[0] in ("cgroup", "cgroup2")]


def _own_table() -> bytes:
    return Path("/proc/self/mountinfo").read_bytes()


def _entries(table: bytes) -> list[tuple[list[str], list[str]]]:
    """Returns for each mount the fields up to the optional ones, and those after the dash: kind, source, options."""
    entries = []
    for line in os.fsdecode(table).splitlines():
        head, _, tail = line.partition(" - ")
        entries.append(
            ([_unescape(field) for field in head.split(" ")], [_unescape(field) for field in tail.split(" ")])
        )
    return entries


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
