"""Starts of programs of the corpus, on hosts of their own, over a link with a known delay."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap.bench.coldstart.overlay import overlay
from blockmap.bench.coldstart.processes import mounted
from blockmap.control.client import Client
from blockmap.control.messages import Ready, Resolve
from blockmap.host import mounting
from blockmap.host.devices import mounts
from blockmap.host.devices.nbdfuse import NbdFuse
from tests.faults.links import need_shared, netshape
from tests.host.conftest import Host
from tests.store.servers import nginx

START_S = 300


@dataclass(frozen=True, slots=True)
class Started:
    """What one start took."""

    ready_s: float
    """From the request to the program's ready condition."""
    remote_bytes: int
    """Bytes that the server asked the store for meanwhile, whatever became of them."""
    missed_reads: int
    """Reads of what the bundle did not have."""
    replays: list[dict[str, Any]]
    """As `status` tells, of the whole life of the server."""
    trace: str | None


@contextmanager
def far(where: Path, store: Path, *options: str, link: tuple[str, ...] = ()) -> Iterator[Host]:
    """A host with nothing of any image, which reads the store read-only, over a link."""
    with ExitStack() as stack:
        (where / "nginx").mkdir(parents=True)
        url = stack.enter_context(nginx(where / "nginx", store))
        port, _ = stack.enter_context(netshape(int(url.rpartition(":")[2]), *link))
        host = Host(where)
        (where / "run").mkdir()
        host.client = Client(host.socket, 60)
        host.environment["BLOCKMAP_STORE"] = f"http://127.0.0.1:{port}"
        host.serve(*options)
        stack.callback(host.stop)
        yield host


@contextmanager
def near(where: Path, store: Path, *options: str) -> Iterator[Host]:
    """A host with nothing of any image, which has the store's directory, and may write there."""
    host = Host(where)
    (where / "run").mkdir(parents=True)
    host.client = Client(host.socket, 60)
    host.environment["BLOCKMAP_STORE"] = str(store)
    host.serve(*options)
    try:
        yield host
    finally:
        host.stop()


def start_once(host: Host, export: str, *, exact: bool = False, recipe: str = "") -> Started:
    """Attaches an image as `attach` does, runs its program until it is ready, and takes all apart.

    `exact`: nothing is read ahead. `recipe` says how to start it, where that is not as the image's name says.
    """
    name = recipe or export.partition("+")[0]
    before = host.client.status()
    number = host.where / f"start-{time.monotonic_ns()}"
    for folder in ("image", "scratch"):
        (number / folder).mkdir(parents=True)
    began = time.monotonic()
    with ExitStack() as stack:
        pinned = host.client.ask(Resolve(export)).export
        stack.enter_context(exactly(host, pinned, number) if exact else attached(host, pinned, number))
        scratch = stack.enter_context(mounted(number / "scratch", "-t", "tmpfs", "blockmap-test"))
        root = stack.enter_context(overlay(number / "image", scratch))
        ready_s = run(name, root, began, host)
        trace = host.client.ask(Ready(pinned)).trace
        after = host.client.status()
    return Started(
        ready_s,
        after["remote"]["bytes"] - before["remote"]["bytes"],
        after["fetch"]["bundle_missed_reads"] - before["fetch"]["bundle_missed_reads"],
        after["fetch"]["replays"],
        trace,
    )


def attached(host: Host, pinned: str, number: Path) -> Any:
    """As `attach` does it."""
    return mounting.started(NbdFuse(), host.client, pinned, number / "device", number / "image")


@contextmanager
def exactly(host: Host, pinned: str, number: Path) -> Iterator[None]:
    """With the kernel's read-ahead at 0."""
    (number / "device").mkdir()
    mounting.expect(host.client, pinned, exact=True, start=False)
    attacher = NbdFuse()
    device = attacher.attach(str(host.client.nbd_socket), pinned, number / "device")
    try:
        mounting.mount(attacher, host.client, pinned, device, number / "device", number / "image", exact=True)
        try:
            yield
        finally:
            mounts.unmount(number / "image")
    finally:
        attacher.detach(device)


def run(name: str, root: Path, began: float, host: Host) -> float:
    """Seconds since `began` until a program of the corpus was ready."""
    command = [need_shared("corpus/run-startup"), "--timeout", str(START_S), "--since", repr(began), name, root]
    done = subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + host.said()
    return float(done.stdout)


def record(where: Path, store: Path, name: str, label: str = "default", starts: int = 2) -> dict[str, Any]:
    """Builds a profile from exact starts, each on a host that has nothing of the image; its bundle."""
    export = name if label == "default" else f"{name}+{label}"
    traces = []
    for number in range(starts):
        with near(where / f"record-{time.monotonic_ns()}-{number}", store, "--no-learn") as host:
            trace = start_once(host, export, exact=True).trace
            assert trace is not None, host.said()
            traces.append(trace)
            if number == starts - 1:
                told = json.loads(host.do("profile", "build", name, "--label", label, "--json", *traces))
    return dict(told)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
