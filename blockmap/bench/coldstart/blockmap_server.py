"""A `blockmap serve` of a benchmark's own."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from blockmap.bench.coldstart.engine import Store
from blockmap.bench.coldstart.processes import listens, running, wait_ready
from blockmap.control.client import Client
from blockmap.local.paths import control_socket

BLOCKMAP = (sys.executable, "-m", "blockmap.cli.main")


@contextlib.contextmanager
def served(store: Store, cache: Path, folder: Path, warm: bool = False) -> Iterator[Path]:
    """Its NBD socket. Whoever connects waits until nbdkit is there behind it. `warm`: with its connections to the store open."""
    socket, log = folder / "blockmap.sock", folder / "blockmap.log"
    command = [*BLOCKMAP, "serve", "--store", store.url, "--cache", str(cache), "--socket", str(socket), "--no-learn"]
    with running(command, log, store.environment) as process:
        wait_ready(process, log, lambda: listens(control_socket(socket)))
        if warm:
            client = Client(socket)
            wait_ready(process, log, lambda: client.status()["store_connected"])
        yield socket
