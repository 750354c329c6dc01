"""Puts a writable layer over an image's files, as every start has one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blockmap.bench.coldstart.processes import mounted


@contextmanager
def overlay(lower: Path, scratch: Path) -> Iterator[Path]:
    """Gives an image's files, writable; what is written is kept below `scratch`, which is in memory."""
    with ExitStack() as stack:
        for name in ("upper", "work"):
            (scratch / name).mkdir()
        options = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
        yield stack.enter_context(mounted(scratch / "root", "-t", "overlay", "-o", options, "overlay"))
