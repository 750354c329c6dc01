"""Checks of what blockmap keeps on this host: its cache, and what is attached and cloned."""

import os
import shutil
import sqlite3
from pathlib import Path

from blockmap.cache.cache import default_cap
from blockmap.cache.journal import INDEX, count_slots
from blockmap.errors import HostError
from blockmap.host.attachment_table import is_recorded, read_attached
from blockmap.host.doctor.finding import Check, Examined, Finding, fault, megabytes, ok, warning
from blockmap.local.paths import own
from blockmap.volume.clone_table import read_clones

_LEAST_BYTES = 64 << 20
"""Free bytes below which nothing useful can be kept: a start reads some tens of MB."""
_FEW_BYTES = 1 << 30
"""Free bytes below which a disk is soon full: a clone may write as much in seconds."""


def _cache(subject: Examined) -> Finding:
    wrong = _unusable(subject.cache, "--cache")
    if wrong is not None:
        return wrong
    if not (subject.cache / INDEX).exists():
        return ok(f"{subject.cache} has nothing yet")
    try:
        slots = count_slots(subject.cache)
    except sqlite3.Error as error:
        return warning(
            f"the index of {subject.cache} cannot be read ({error}): the next server begins with an empty cache",
            f"rm {subject.cache}/index.db {subject.cache}/data while no server runs; it costs time and nothing else",
        )
    return ok(f"{subject.cache} has {slots:,} chunks and nodes")


def _cache_room(subject: Examined) -> Finding:
    cap = default_cap(subject.cache) if subject.status is None else subject.status["cache"]["cap_bytes"]
    kept = _allocated(subject.cache / "data")
    free = shutil.disk_usage(_existing(subject.cache)).free
    if free + kept < _LEAST_BYTES:
        return fault(
            f"the disk of {subject.cache} has {megabytes(free)} free: nothing can be kept, and each start fetches all it reads",
            "free some space, or name another disk with --cache",
        )
    if cap > free + kept:
        return warning(
            f"the cache may take {megabytes(cap)}, and has room for {megabytes(free + kept)} on its disk",
            f"serve --cache-size {(free + kept) // 2}, or free some space",
        )
    return ok(f"{megabytes(kept)} of at most {megabytes(cap)} are used, {megabytes(free)} are free")


def _state(subject: Examined) -> Finding:
    wrong = _unusable(subject.state, "BLOCKMAP_STATE")
    if wrong is not None:
        return wrong
    try:
        attached = read_attached(subject.state) if is_recorded(subject.state) else []
        clones = read_clones(subject.state)
    except HostError as error:
        return fault(
            str(error),
            f"keep a copy of {subject.state}; then move the file away, with nothing attached, and attach again",
        )
    return ok(f"{subject.state}: {len(attached)} mounts and {len(clones)} clones on record")


def _state_room(subject: Examined) -> Finding:
    free = shutil.disk_usage(_existing(subject.state)).free
    action = "free some space, or set BLOCKMAP_STATE to another disk"
    if free < _LEAST_BYTES:
        return fault(f"the disk of {subject.state} has {megabytes(free)} free: writes to clones fail", action)
    if free < _FEW_BYTES:
        return warning(f"the disk of {subject.state} has {megabytes(free)} free, for what is written to clones", action)
    return ok(f"{megabytes(free)} are free for what is written to clones")


def _unusable(directory: Path, setting: str) -> Finding | None:
    """Returns what keeps this user from using a directory, which may be absent yet."""
    there = _existing(directory)
    if not there.is_dir():
        return fault(f"{there} is no directory", f"name another with {setting}")
    try:
        own(directory)
    except HostError as error:
        return fault(str(error), f"run it as the user who owns it, or name another with {setting}")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return fault(
            f"{there} is on a disk that is mounted read-only", f"mount it writable, or name another with {setting}"
        )
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return fault(f"{there} cannot be written by this user", f"run it with sudo, or name another with {setting}")
    return None


def _existing(path: Path) -> Path:
    """Returns a path, or the nearest above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _allocated(path: Path) -> int:
    """Returns the bytes that a sparse file takes; 0 where there is none."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


CHECKS = (
    Check("cache", _cache),
    Check("cache-room", _cache_room),
    Check("state", _state),
    Check("state-room", _state_room),
)
