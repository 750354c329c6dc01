"""netshape, the relay that behaves like a long, narrow or faulty link."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import free_ports, listens, until

SHARED = Path(os.environ.get("BLOCKMAP_SHARED") or Path(__file__).resolve().parents[3] / "shared")
LINK = ("--rtt-ms", "20", "--mbit", "1000")


def need_shared(name: str) -> Path:
    """A file of the shared folder; skips, saying so, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"there is no {name} in {SHARED}: name its folder in BLOCKMAP_SHARED")
    return path


@contextmanager
def netshape(upstream: int, *arguments: str) -> Iterator[tuple[int, int]]:
    """A relay to a port of this host: its own port, and its process."""
    (port,) = free_ports(1)
    command = [str(need_shared("netshape")), "--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{upstream}"]
    process = subprocess.Popen([*command, *LINK, *arguments], stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port))
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()
