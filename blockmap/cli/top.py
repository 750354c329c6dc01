"""The command `blockmap top`: shows what the server does now, by the difference between two statuses."""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from blockmap.cli.figures import Export, Figures, exports, faults, prefetches, remote
from blockmap.control.client import Client
from blockmap.control.messages import ServerStatus
from blockmap.errors import HostError, UsageError
from blockmap.format.refs import short_export
from blockmap.local.paths import server_socket
from blockmap.terminal.options import socket_option
from blockmap.terminal.tables import Fitted, cells
from blockmap.terminal.units import duration, share, size

_REFRESH_SECONDS = 1.0
_ANSWER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A status, and when it was asked for."""

    at_s: float
    status: ServerStatus


@click.command()
@socket_option
def top(socket: Path | None) -> None:
    """Show live what the server does; q ends it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top draws on a terminal: for a program, there is `blockmap status --json`")
    client = Client((socket or server_socket()).absolute(), _ANSWER_SECONDS)
    before: Snapshot | None = None
    with contextlib.suppress(KeyboardInterrupt), _keys(), Live(screen=True, auto_refresh=False) as live:
        while True:
            now, shown = _look(client, before)
            live.update(shown, refresh=True)
            before = now
            if _quits(_REFRESH_SECONDS):
                return


def _look(client: Client, before: Snapshot | None) -> tuple[Snapshot | None, RenderableType]:
    """Asks the server for its status; returns that, and its rendering."""
    try:
        status = client.full_status()
    except HostError as error:
        return None, cells(f"waiting for the server: {error}")[0]
    now = Snapshot(time.monotonic(), status)
    if before is not None and before.status["pid"] != status["pid"]:
        before = None  # another server process, whose counters begin at 0
    return now, render(now, before)


def render(now: Snapshot, before: Snapshot | None) -> RenderableType:
    """Renders what the server did between two samples; with one, since its start."""
    status = now.status
    seconds = max(now.at_s - before.at_s if before else status["seconds"], 1e-3)
    cache = status["cache"]
    calls = remote(status).since(remote(before.status) if before else None)
    lines = [
        f"server    process {status['supervisor']['pid']}, up {status['seconds']:.0f} s",
        f"store     {status['store']}",
        f"fetched   {calls.count / seconds:,.0f} requests/s, {size(calls.bytes / seconds)}/s",
        f"latency   {duration(calls.latency_s(0.5))} (p50), {duration(calls.latency_s(0.99))} (p99)",
        f"cache     {size(cache['bytes'])} of {size(cache['cap_bytes'])}",
        *(f"prefetch  {line}" for line in prefetches(status)),
        *(f"faults    {line}" for line in faults(status)),
        "",
    ]
    earlier = {each.name: each.reads for each in exports(before.status)} if before else {}
    rows = [(each, each.reads.since(earlier.get(each.name))) for each in exports(status) if each.size is not None]
    if not rows:
        return Group(*cells(*lines), Text("nothing is open"))
    return Group(*cells(*lines), _table(sorted(rows, key=lambda row: -row[1].count), seconds))


def _table(rows: list[tuple[Export, Figures]], seconds: float) -> Fitted:
    table = Table(box=None, pad_edge=False)
    table.add_column("EXPORT", overflow="fold")
    for title in ("CONN", "READS/S", "BYTES/S", "HITS", "P50", "P99", "WAIT", "ERR"):
        table.add_column(title, justify="right", no_wrap=True)
    for each, reads in rows:
        table.add_row(
            *cells(short_export(each.name)),
            str(each.connections),
            f"{reads.count / seconds:,.0f}",
            size(reads.bytes / seconds),
            share(reads.hit_ratio),
            duration(reads.latency_s(0.5)),
            duration(reads.latency_s(0.99)),
            str(each.waiting),
            f"{reads.errors:,}",
        )
    return Fitted(table)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Makes the terminal give each key at once, without showing it."""
    old = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, old)


def _quits(seconds: float) -> bool:
    """Returns True if q is typed, or the terminal is gone, within `seconds`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            typed = os.read(sys.stdin.fileno(), 64)
            if not typed or b"q" in typed.lower():
                return True
    return False
