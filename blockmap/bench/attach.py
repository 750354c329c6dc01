"""`blockmap bench attach`: from the wish to the mounted image, by the command line, by a request, and by the parts of that.

The server has opened the image before, and has all of it in its cache that mounting needs; each device is new.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import click

from blockmap.bench import Report, show
from blockmap.bench.statistics import spread
from blockmap.bench.warm import running, served
from blockmap.control.client import Client
from blockmap.control.device_messages import AttachDevice
from blockmap.control.messages import Resolve
from blockmap.errors import HostError, UsageError
from blockmap.host import tools
from blockmap.host.devices.device import Attacher
from blockmap.host.devices.kernel import KIND, KernelNbd
from blockmap.host.devices.kinds import HostDevices
from blockmap.host.devices.nbdfuse import NbdFuse
from blockmap.host.devices.pool import Pool
from blockmap.host.manager.client import Devices
from blockmap.host.manager.place import LOCK, answers
from blockmap.host.mounting import mount_device
from blockmap.terminal.options import json_option, need_store, store_option

CAVEATS = [
    "Nothing is warmed in the rows of parts, which the other rows begin: `blockmap attach` returns before that has ended.",
    "The command line has the start of Python in its times; so has `import click`, which all commands need.",
    "By a request and by the command line, the image is resolved by its name, and what is attached is recorded durably.",
]
_READY_SECONDS = 30.0


class _Parts(NamedTuple):
    """The seconds of one attach."""

    device: float
    """Until the device was made; 0 where that is not known."""
    mounted: float
    """Until the image was mounted."""
    state: Mapping[str, Any] = MappingProxyType({})
    """The device's."""


@click.command()
@click.argument("name")
@store_option
@click.option("--rounds", default=20, show_default=True, help="Attaches in every way.")
@json_option
def attach(name: str, store: str | None, rounds: int, as_json: bool) -> None:
    """Attaches of NAME, until it is mounted.

    Interrupted, it prints the rounds that it has.
    """
    tools.need_root("bench attach")
    if rounds < 1:
        raise UsageError("--rounds is at least 1")
    show(_measure(need_store(store), name, rounds), as_json)


def _measure(store: str, name: str, rounds: int) -> Report:
    figures: dict[str, list[_Parts]] = {}
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        socket, state, where = stack.enter_context(served(work, store)), work / "state", work / "mnt"
        where.mkdir()
        program = [sys.executable, "-m", "blockmap.cli.main"]
        stack.enter_context(running([*program, "devices"], state / LOCK, BLOCKMAP_STATE=str(state)))
        _wait(state)
        devices, client = Devices(state), Client(socket)
        environment = {**os.environ, "BLOCKMAP_STATE": str(state)}

        def command() -> _Parts:
            began = time.perf_counter()
            _run([*program, "attach", name, str(where), "--socket", str(socket)], environment)
            took = time.perf_counter() - began
            devices.detach(where)
            return _Parts(0.0, took)

        def imported() -> _Parts:
            began = time.perf_counter()
            _run([sys.executable, "-c", "import click"], environment)
            return _Parts(0.0, time.perf_counter() - began)

        def request() -> _Parts:
            began = time.perf_counter()
            devices.ask_attach(AttachDevice(str(socket), store, name, str(where)))
            took = time.perf_counter() - began
            devices.detach(where)
            return _Parts(0.0, took)

        ways: dict[str, Callable[[], _Parts]] = {
            "python -c 'import click'": imported,
            "blockmap attach": command,
            "request": request,
            "nbdfuse": lambda: _by_parts(NbdFuse(), client, name, work, where),
        }
        if HostDevices(state).kind == KIND:
            pool, none = Pool(work / "pool"), Pool(work / "none")
            stack.callback(pool.drain)
            flags = int(_by_parts(KernelNbd(none), client, name, work, where).state["flags"])
            ways["nbd, CONNECT"] = lambda: _by_parts(KernelNbd(none), client, name, work, where)
            ways["nbd, RECONFIGURE from the pool"] = lambda: _by_parts(
                KernelNbd(pool), client, name, work, where, lambda: pool.fill({flags: 1})
            )
        request()
        with contextlib.suppress(KeyboardInterrupt):
            for _ in range(rounds):
                for way, measured in ways.items():
                    figures.setdefault(way, []).append(measured())
    if not figures:
        raise KeyboardInterrupt
    everything = {
        way: [{"device": each.device, "mounted": each.mounted} for each in found] for way, found in figures.items()
    }
    return {"caveats": CAVEATS, "rows": [_row(way, found) for way, found in figures.items()], "figures": everything}


def _by_parts(
    attacher: Attacher, client: Client, name: str, work: Path, where: Path, before: Callable[[], None] = lambda: None
) -> _Parts:
    before()
    export = client.ask(Resolve(name)).export
    folder = Path(tempfile.mkdtemp(dir=work))
    began = time.perf_counter()
    device = attacher.attach(client.address, export, folder)
    try:
        made = time.perf_counter() - began
        mount_device(attacher, device, str(where))
        mounted = time.perf_counter() - began
        tools.run("umount", str(where))
    finally:
        attacher.detach(device)
    return _Parts(made, mounted, device.state)


def _row(way: str, found: list[_Parts]) -> dict[str, Any]:
    device = spread([each.device * 1000 for each in found]).median
    mounted = spread([each.mounted * 1000 for each in found])
    return {
        "way": way,
        "device, ms": device or "-",
        "mounted, ms": mounted.median,
        "lowest": mounted.low,
        "highest": mounted.high,
    }


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _wait(state: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while not answers(state):
        if time.monotonic() > end:
            raise HostError("`blockmap devices` does not answer")
        time.sleep(0.005)
