"""`blockmap bench write`: writes to a clone beside nbdkit's cow filter and a qcow2 overlay, reads of a clone beside its image's.

Each round gives every server a fresh overlay above the same bytes. fio's nbd engine writes a range of it once, then the same
range again: the first time a server has to note what it has now, the second time it only has to find that out.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import click

from blockmap.bench import Report, show
from blockmap.bench.statistics import ratios, spread
from blockmap.bench.warm import LOADS as READS
from blockmap.bench.warm import densest_window, fio, running, served, timed_reads
from blockmap.control.client import Client
from blockmap.control.clone_messages import MakeClone, RemoveClone
from blockmap.errors import UsageError
from blockmap.format import BLOCK
from blockmap.host import tools
from blockmap.terminal.options import json_option, need_store, store_option

CAVEATS = [
    "One client process and one server share this machine's processors; figures from different machines do not compare.",
    "Ratios are of pairs measured one after the other in one round; the machine may have been busy in between.",
    "Nothing is flushed by the client: this measures the server's path per write, into the page cache. The cow filter has nothing "
    "to make durable and forgets all when it ends; a clone and a qcow2 file are still there after a flush or a crash.",
    "Every write is of whole blocks, so that nothing below is read for it.",
    "Reads are of data that was never written to the clone, from a warm cache.",
]


class _Load(NamedTuple):
    name: str
    options: list[str]
    size: int
    """Bytes that are written."""


_WRITES = [
    _Load("4 KiB random, depth 16", ["--rw=randwrite", "--bs=4k", "--iodepth=16"], 256 << 20),
    _Load("1 MiB sequential, depth 4", ["--rw=write", "--bs=1m", "--iodepth=4"], 1 << 30),
]
_Fresh = Callable[[], contextlib.AbstractContextManager[str]]
"""Serves a new overlay, and gives its URI, while a block runs."""
_Figures = dict[str, dict[str, list[float]]]
"""Requests per second in each round, by load and server."""


@click.command()
@click.argument("name")
@store_option
@click.option("--rounds", default=5, show_default=True, help="Rounds; in each, every server runs every load once.")
@click.option("--seconds", default=3, show_default=True, help="Of each run that reads.")
@json_option
def write(name: str, store: str | None, rounds: int, seconds: int, as_json: bool) -> None:
    """Writes to a clone of NAME, and reads of it, beside others.

    Those are nbdkit's cow filter and a qcow2 overlay, and for reads NAME itself. Interrupted, it prints the rounds that it has.
    """
    for tool in ("fio", "nbdkit", "qemu-nbd", "qemu-img", "nbdcopy"):
        tools.find(tool)
    if rounds < 1 or seconds < 1:
        raise UsageError("--rounds and --seconds are at least 1")
    show(_measure(need_store(store), name, rounds, seconds), as_json)


def _measure(store: str, name: str, rounds: int, seconds: int) -> Report:
    figures: _Figures = {}
    done = 0
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work, contextlib.ExitStack() as stack:
        directory = Path(work)
        window, dense = densest_window(store, name)
        socket = stack.enter_context(served(directory, store))
        image, raw = _uri(socket, name), directory / "volume.raw"
        subprocess.run(["nbdcopy", image, str(raw)], check=True)
        most = max(load.size for load in _WRITES)
        if raw.stat().st_size < most:
            raise UsageError(f"{name} is smaller than the {most >> 20} MiB that this benchmark writes")
        overlays: dict[str, _Fresh] = {
            "blockmap": lambda: _clone(socket, name),
            "nbdkit cow": lambda: _cow(directory, raw),
            "qemu-nbd qcow2": lambda: _qcow2(directory, raw),
        }
        clone = stack.enter_context(_clone(socket, name, "read"))
        # A clone that was never written to has a shorter path still; the volume's last block is far from what is read.
        fio(clone, ["--rw=write", "--bs=4k", f"--offset={raw.stat().st_size - BLOCK}", f"--size={BLOCK}"])
        readers = {"clone": clone, "image": image}
        with contextlib.suppress(KeyboardInterrupt):
            for number in range(rounds + 1):
                found = _round(overlays, readers, window, seconds if number else 1, backwards=number % 2 == 1)
                if number:
                    for load, server, figure in found:
                        figures.setdefault(load, {}).setdefault(server, []).append(figure)
                    done = number
    if not done:
        raise KeyboardInterrupt
    rows = [_row(load, server, of) for load, of in figures.items() for server in (*overlays, *readers) if server in of]
    summary = [f"{done} of {rounds} rounds; {dense:.1%} of the {window[1] >> 20} MiB that were read from are data"]
    return {
        "caveats": CAVEATS, "rows": rows, "summary": summary, "figures": figures, "window": window, "dense": dense,
        "rounds": done, "seconds": seconds,
    }  # fmt: skip


def _round(
    overlays: dict[str, _Fresh], readers: dict[str, str], window: tuple[int, int], seconds: int, *, backwards: bool
) -> list[tuple[str, str, float]]:
    """Returns loads, servers and figures."""
    order = -1 if backwards else 1
    found: dict[tuple[str, str], float] = {}
    for load in _WRITES:
        for server, fresh in list(overlays.items())[::order]:
            with fresh() as uri:
                for time in ("first", "again"):
                    found[f"{load.name}, {time}", server] = fio(uri, [*load.options, f"--size={load.size}"])
    timed = timed_reads(window, seconds)
    for name, options in READS.items():
        both = list(readers.items())[::order]
        runs = [(server, fio(uri, [*options, *timed])) for server, uri in both + both[::-1]]
        for server in readers:
            found[f"read, {name}", server] = mean(figure for each, figure in runs if each == server)
    return [(load, server, figure) for (load, server), figure in found.items()]


def _row(load: str, server: str, figures: dict[str, list[float]]) -> dict[str, Any]:
    own = next(iter(figures[each] for each in ("blockmap", "clone") if each in figures))
    low, middle, high = spread(figures[server])
    ratio = ratios(own, figures[server])
    return {
        "load": load,
        "server": server,
        "requests/s": middle,
        "lowest": low,
        "highest": high,
        "blockmap / this": ratio.median,
        "least": ratio.low,
        "most": ratio.high,
    }


def _uri(socket: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={socket}"


@contextlib.contextmanager
def _clone(socket: Path, image: str, name: str = "written") -> Iterator[str]:
    client = Client(socket)
    client.ask(MakeClone(image, name))
    yield _uri(socket, name)
    client.ask(RemoveClone(name))


@contextlib.contextmanager
def _cow(directory: Path, raw: Path) -> Iterator[str]:
    socket = directory / "cow.sock"
    socket.unlink(missing_ok=True)
    command = ["nbdkit", "-f", "-t", "16", "-U", str(socket), "--filter=cow", "file", str(raw)]
    with running(command, socket, TMPDIR=str(directory)):  # where the filter puts its file
        yield _uri(socket)


@contextlib.contextmanager
def _qcow2(directory: Path, raw: Path) -> Iterator[str]:
    socket, overlay = directory / "qcow2.sock", directory / "overlay.qcow2"
    socket.unlink(missing_ok=True)
    tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw", str(overlay))
    with running(["qemu-nbd", "-f", "qcow2", "-t", "-e", "16", "-k", str(socket), str(overlay)], socket):
        yield _uri(socket)
    overlay.unlink()
