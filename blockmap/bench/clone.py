"""`blockmap bench clone`: from the command that makes clones to the first write to each, and the memory that they take.

All clones are of one image, in one server. A clone counts once a block that was written to it is answered for, on a connection
of its own; connections stay open until the last clone has been written to.
"""

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from blockmap.bench import Report, show
from blockmap.bench.blocks import BlockClient
from blockmap.bench.statistics import spread
from blockmap.bench.warm import served
from blockmap.control.client import Client
from blockmap.control.clone_messages import MakeClone, RemoveClone
from blockmap.errors import HostError, UsageError
from blockmap.format import BLOCK
from blockmap.host import tools
from blockmap.terminal.options import json_option, need_store, store_option

CAVEATS = [
    "A clone is durable when it is made: its times have the synchronisations of the local disk and of a store in a directory.",
    "Commands have the start of Python in their times, requests have not: a program that makes clones sends requests.",
    "The image was opened before; its first clone on a host that never did pays for that, and for the store's round trips.",
    "Memory is what nbdkit's resident set grew by in the first round; open, with a connection to each, of which its eight threads "
    "are a good part.",
]


_Make = Callable[[Sequence[str]], None]
"""Makes clones of given names."""


class _Times(NamedTuple):
    made: float
    """Seconds until the clones were made."""
    written: float
    """Seconds until each had been written to."""
    made_bytes: int
    """What the server's memory had grown by when they were made."""
    open_bytes: int
    """The same when each was open and had been written to."""


@click.command()
@click.argument("name")
@store_option
@click.option("--rounds", default=5, show_default=True, help="Rounds; in each, clones are made in every way once.")
@click.option("--count", default=100, show_default=True, help="Clones, where it is not one.")
@json_option
def clone(name: str, store: str | None, rounds: int, count: int, as_json: bool) -> None:
    """Clones of NAME: until the first write, and their memory.

    Interrupted, it prints the rounds that it has.
    """
    tools.find("nbdkit")
    if rounds < 1 or not 2 <= count <= 1000:
        raise UsageError("--rounds is at least 1, and --count 2 to 1000")
    show(_measure(need_store(store), name, rounds, count), as_json)


def _measure(store: str, name: str, rounds: int, count: int) -> Report:
    names = [f"c-{number}" for number in range(1, count + 1)]
    figures: dict[str, list[_Times]] = {}
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work, served(Path(work), store) as socket:
        client = Client(socket)

        def command(*arguments: str) -> None:
            program = [sys.executable, "-m", "blockmap.cli.main", *arguments, "--socket", str(socket), "--store", store]
            done = subprocess.run(program, capture_output=True, text=True, check=False)
            if done.returncode:
                raise HostError(f"blockmap {' '.join(arguments)} failed: {done.stderr.strip()}")

        def ask(names: Sequence[str]) -> None:
            for each in names:
                client.ask(MakeClone(name, each))

        def fork(names: Sequence[str]) -> None:
            command("clone", name, names[0])
            command("fork", names[0], "c", "-n", str(len(names) - 1))

        ways: dict[str, tuple[_Make, Sequence[str]]] = {
            f"{count} requests": (ask, names),
            f"blockmap clone, then fork -n {count - 1}": (fork, ["c", *names[:-1]]),
            "1 request": (ask, names[:1]),
            "blockmap clone": (lambda names: command("clone", name, *names), names[:1]),
        }
        _time(client, ask, ["first"])
        with contextlib.suppress(KeyboardInterrupt):
            for _ in range(rounds):
                for way, (make, made) in ways.items():
                    figures.setdefault(way, []).append(_time(client, make, made))
    if not figures:
        raise KeyboardInterrupt
    rows = [_row(way, len(ways[way][1]), times) for way, times in figures.items()]
    everything = {way: [each._asdict() for each in times] for way, times in figures.items()}
    return {"caveats": CAVEATS, "rows": rows, "figures": everything, "count": count}


def _time(client: Client, make: _Make, names: Sequence[str]) -> _Times:
    """Makes clones, writes to each, and removes them."""
    pid = client.status()["pid"]
    memory = _resident(pid)
    began = time.perf_counter()
    make(names)
    made = time.perf_counter() - began
    made_bytes = _resident(pid) - memory
    with contextlib.ExitStack() as stack:
        began = time.perf_counter()
        for each in names:
            stack.enter_context(BlockClient(client.nbd_socket, each)).write(0, bytes(BLOCK))
        written = made + time.perf_counter() - began
        times = _Times(made, written, made_bytes, _resident(pid) - memory)
    for each in names:
        client.ask(RemoveClone(each))
    return times


def _row(way: str, clones: int, times: Sequence[_Times]) -> dict[str, Any]:
    written = spread([each.written for each in times])
    return {
        "way": way,
        "clones": clones,
        "made, s": spread([each.made for each in times]).median,
        "written to, s": written.median,
        "lowest": written.low,
        "highest": written.high,
        "memory each, kB": times[0].made_bytes / clones / 1000,
        "open, kB": times[0].open_bytes / clones / 1000,
    }


def _resident(pid: int) -> int:
    """Returns the bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
