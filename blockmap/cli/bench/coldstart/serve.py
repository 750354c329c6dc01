"""A `blockmap serve` of a benchmark's own."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from blockmap.cli.bench.coldstart.processes import running, wait_ready
from blockmap.host.paths import control_socket

PROGRAM = [sys.executable, "-m", "blockmap.cli.main", "serve"]


@contextlib.contextmanager
def served(store: str, cache: Path, folder: Path) -> Iterator[Path]:
    """Its NBD socket. Whoever connects waits until nbdkit is there behind it."""
    socket, log = folder / "blockmap.sock", folder / "blockmap.log"
    command = [*PROGRAM, "--store", store, "--cache", str(cache), "--socket", str(socket)]
    with running(command, log) as process:
        wait_ready(process, log, control_socket(socket).exists)
        yield socket
