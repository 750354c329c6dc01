"""`blockmap bench warm`: reads from a warm cache beside nbdkit's file plugin and qemu-nbd, on the same bytes.

All three serve the same volume over Unix sockets at once; fio's nbd engine loads one after the other in each round. The
load reads only offsets that hold data: the densest window of the volume, where hardly anything is a hole.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from blockmap.bench import Report, show
from blockmap.bench.statistics import ratios, spread
from blockmap.control.client import Client
from blockmap.errors import HostError, UsageError
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.refs import parse_reference
from blockmap.host import tools
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.walk import leaves
from blockmap.terminal.options import json_option, need_store, store_option

CAVEATS = [
    "One client process and one server share this machine's processors; figures from different machines do not compare.",
    "Ratios are of pairs measured one after the other in one round; the machine may have been busy in between.",
    "Every read is from the page cache: this measures the server's path per read, not disks.",
    "blockmap verifies a chunk at its first hit; the warm-up run, which is not counted, pays for that.",
]

LOADS = {
    "4 KiB random, depth 1": ["--rw=randread", "--bs=4k", "--iodepth=1"],
    "4 KiB random, depth 16": ["--rw=randread", "--bs=4k", "--iodepth=16"],
    "128 KiB sequential, depth 1": ["--rw=read", "--bs=128k", "--iodepth=1"],
}
WINDOW_BYTES = 64 << 20


@click.command()
@click.argument("name")
@store_option
@click.option("--rounds", default=7, show_default=True, help="Rounds; in each, every server runs every load once.")
@click.option("--seconds", default=3, show_default=True, help="Of each run.")
@json_option
def warm(name: str, store: str | None, rounds: int, seconds: int, as_json: bool) -> None:
    """Reads of NAME from a warm cache, beside other servers.

    They are nbdkit's file plugin and qemu-nbd.
    """
    for tool in ("fio", "nbdkit", "qemu-nbd", "qemu-img", "nbdcopy"):
        tools.find(tool)
    if rounds < 1 or seconds < 1:
        raise UsageError("--rounds and --seconds are at least 1")
    show(_measure(need_store(store), name, rounds, seconds), as_json)


def _measure(store: str, name: str, rounds: int, seconds: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work, contextlib.ExitStack() as stack:
        directory = Path(work)
        window, dense = densest_window(store, name)
        socket = stack.enter_context(served(directory, store))
        servers = {"blockmap": f"nbd+unix:///{name}?socket={socket}"}
        raw = directory / "volume.raw"
        subprocess.run(["nbdcopy", servers["blockmap"], str(raw)], check=True)
        servers["nbdkit file"] = stack.enter_context(_file_plugin(directory, raw))
        servers["qemu-nbd"] = stack.enter_context(_qemu_nbd(directory, raw))
        for peer in ("nbdkit file", "qemu-nbd"):
            _compare(servers["blockmap"], servers[peer])
        figures: dict[str, dict[str, list[float]]] = {load: {server: [] for server in servers} for load in LOADS}
        for number in range(rounds + 1):
            order = list(servers.items())
            if number % 2:
                order.reverse()
            for load, options in LOADS.items():
                for server, uri in order:
                    figure = fio(uri, [*options, *timed_reads(window, 1 if number == 0 else seconds)])
                    if number:
                        figures[load][server].append(figure)
    rows = []
    for load, by_server in figures.items():
        for server, values in by_server.items():
            low, middle, high = spread(values)
            rows.append(
                {
                    "load": load,
                    "server": server,
                    "reads/s": middle,
                    "lowest": low,
                    "highest": high,
                    "blockmap / this": ratios(by_server["blockmap"], values).median,
                }
            )
    summary = [
        f"{dense:.1%} of the {WINDOW_BYTES >> 20} MiB that were read from are data; all servers gave the same bytes"
    ]
    return {
        "caveats": CAVEATS, "rows": rows, "summary": summary, "window": window, "dense": dense, "rounds": rounds,
        "seconds": seconds,
    }  # fmt: skip


def densest_window(store: str, name: str) -> tuple[tuple[int, int], float]:
    """Returns offset and length in bytes of the window of 64 MiB that holds most data, and how much of it that is."""
    opened, _ = open_store(store)
    repository = Repository(opened)
    found = find_version(repository, parse_reference(name))
    edges = np.zeros(found.version.root.size + 1, np.int8)
    for span, leaf in leaves(found.version.root, repository.packs.nodes):
        starts = span * SPAN + leaf.starts.astype(np.int64)
        np.add.at(edges, starts, 1)
        np.add.at(edges, starts + leaf.lengths, -1)
    before = np.concatenate(([0], np.cumsum(np.cumsum(edges[:-1], dtype=np.int8), dtype=np.int64)))
    blocks = WINDOW_BYTES // BLOCK
    if len(before) <= blocks:
        raise UsageError(f"{name} is smaller than the {WINDOW_BYTES >> 20} MiB that this benchmark reads from")
    inside = before[blocks:] - before[:-blocks]
    best = int(inside.argmax())
    return (best * BLOCK, WINDOW_BYTES), int(inside[best]) / blocks


def _compare(own: str, peer: str) -> None:
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", own, peer]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{own} and {peer} do not hold the same bytes: {(done.stdout + done.stderr).strip()}")


def fio(uri: str, options: list[str]) -> float:
    """Returns requests per second, of reads and writes. HostError."""
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--output-format=json",
        "--randrepeat=0",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"fio failed on {uri}: {done.stderr.strip() or done.stdout.strip()}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    return float(job["read"]["iops"] + job["write"]["iops"])


def timed_reads(window: tuple[int, int], seconds: int) -> list[str]:
    """Returns fio's options for reads of a window, offset and length in bytes, for some seconds."""
    return [f"--offset={window[0]}", f"--size={window[1]}", "--time_based", f"--runtime={seconds}", "--norandommap"]


@contextlib.contextmanager
def running(command: list[str], ready: Path, **variables: str) -> Iterator[None]:
    """Runs a server process while the block runs, with more variables in its environment."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **variables}
    )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise HostError(f"{command[0]} did not start: {' '.join(command)}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def served(directory: Path, store: str) -> Iterator[Path]:
    """Runs a `blockmap serve` with a cache and clones of its own; yields its socket."""
    socket = directory / "blockmap.sock"
    program = [sys.executable, "-m", "blockmap.cli.main", "serve", "--socket", str(socket)]
    command = [*program, "--no-learn", "--store", store, "--cache", str(directory / "cache")]
    with running(command, socket, BLOCKMAP_STATE=str(directory / "state")):
        Client(socket).wait_ready(30)
        yield socket


@contextlib.contextmanager
def _file_plugin(directory: Path, raw: Path) -> Iterator[str]:
    socket = directory / "file.sock"
    with running(["nbdkit", "-f", "-t", "16", "-r", "-U", str(socket), "file", str(raw)], socket):
        yield f"nbd+unix:///?socket={socket}"


@contextlib.contextmanager
def _qemu_nbd(directory: Path, raw: Path) -> Iterator[str]:
    socket = directory / "qemu.sock"
    command = ["qemu-nbd", "-r", "-f", "raw", "-t", "-e", "16", "-k", str(socket), str(raw)]
    with running(command, socket):
        yield f"nbd+unix:///?socket={socket}"
