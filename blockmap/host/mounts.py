"""What is mounted where, as the kernel tells it: a look at the directories themselves fails where a server has died."""

import os
import re
from pathlib import Path


def source(directory: Path | str) -> str | None:
    """What is mounted at a directory, topmost: a device or the kind's own word; None where nothing is."""
    found = None
    for fields, tail in _entries():
        if fields[4] == str(directory):
            found = tail[1]
    return found


def cgroups() -> list[Path]:
    """Where control groups are mounted."""
    return [Path(fields[4]) for fields, tail in _entries() if tail[0] in ("cgroup", "cgroup2")]


def loops_of(file: str) -> list[str]:
    """The loop devices that show a file."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = backing.read_text()
        except OSError:
            continue  # let go of meanwhile
        if text.removesuffix("\n") == file:
            found.append(f"/dev/{backing.parts[3]}")
    return found


def _entries() -> list[tuple[list[str], list[str]]]:
    """proc(5): the fields up to the optional ones, and those after the dash: kind, source, options."""
    entries = []
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines():
        head, _, tail = line.partition(" - ")
        entries.append(
            ([_unescape(field) for field in head.split(" ")], [_unescape(field) for field in tail.split(" ")])
        )
    return entries


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
