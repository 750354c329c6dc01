"""Runs the link between this host and the far side: a netshape process."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockmap.bench.coldstart.processes import free_ports, running, wait_ready

_READY = "netshape: ready"


@dataclass(frozen=True, slots=True)
class Shape:
    """The properties that all links of a benchmark share."""

    netshape: Path
    mbit: float
    """Megabits per second in each direction; 0 for no cap."""


@contextlib.contextmanager
def shaped(shape: Shape, rtt_ms: float, to_port: int, folder: Path) -> Iterator[int]:
    """Yields a port of this host that leads to `to_port` over a link with this delay and bandwidth."""
    (port,), log = free_ports(1), folder / "netshape.log"
    command = [
        str(shape.netshape), "--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{to_port}",
        "--rtt-ms", str(rtt_ms), "--mbit", str(shape.mbit),
    ]  # fmt: skip
    with running(command, log) as process:
        wait_ready(process, log, lambda: _READY in log.read_text())
        yield port
