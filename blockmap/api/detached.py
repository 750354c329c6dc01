"""Starts containers that go on when the command that started them has ended: a monitor looks after each.

The monitor is a process of its own, `python -m blockmap.api.monitor`, in its own session. It holds the lock of the container's
folder, has what it is to do from a file there, and tells this process in lines of JSON how far it has come.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from blockmap import errors
from blockmap.control.client import Client
from blockmap.errors import BlockmapError, HostError, UsageError
from blockmap.format.refs import parse_name
from blockmap.host.manager.client import Devices
from blockmap.host.run import folders, runner
from blockmap.host.run.options import HOST, BindMount, PublishedPort, RunOptions
from blockmap.host.run.readiness import parse_readiness

MONITOR_LOG = "monitor.log"
"""What the monitor itself has to say."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Which versions of a clone are made while a program runs on it."""

    to: str
    """What they are called."""
    every_seconds: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class DetachedRun:
    """A container that nobody waits for."""

    image: str
    """The image's name, or the clone's."""
    command: Sequence[str] = ()
    options: RunOptions = field(default_factory=RunOptions)
    clone: bool = False
    terminal: bool = False
    interactive: bool = False
    """True if its standard input does not end."""
    keep: bool = True
    """True if it stays listed, with its log, when it has ended."""
    ready: str | None = None
    """The condition on which it can be used."""
    ready_seconds: float = 60.0
    """How long that may take."""
    versions: Versions | None = None


def check_versions(versions: Versions) -> None:
    """Raises UsageError where versions cannot be made so."""
    parse_name(versions.to)
    if versions.every_seconds <= 0:
        raise UsageError(
            f"a version every {versions.every_seconds:g} s cannot be made: name a longer time, such as 10s"
        )


def start(client: Client, attachments: Devices, state: Path, wanted: DetachedRun, name: str | None) -> str:
    """Starts a container, returns its name once its program runs, and is ready if it is to say so.

    HostError where it has ended before, or is not ready in time; then it goes on. AlreadyExists, and the errors of `Host.run`.
    """
    if wanted.versions is not None:
        check_versions(wanted.versions)
    _check_readiness(wanted)
    about = {"ports": [str(port) for port in wanted.options.ports], "detached": True, **asdict(wanted)}
    folder = folders.make(runner.runs_of(state), name, wanted.image, about)
    reading, writing = os.pipe()
    try:
        runner.settle_left(attachments, state)
        command = [sys.executable, "-m", "blockmap.api.monitor", str(folder.path), str(folder.lock), str(writing)]
        with open(folder.path / MONITOR_LOG, "wb") as log:
            subprocess.Popen(
                [*command, str(client.nbd_socket), str(state.absolute())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                pass_fds=[folder.lock, writing],
            )  # fmt: skip
    except BaseException:
        os.close(reading)
        folder.remove(keep=False)
        raise
    finally:
        os.close(writing)
        folder.close()
    with open(reading) as lines:
        for line in lines:
            if _is_up(json.loads(line), folder.name, wanted):
                return folder.name
    raise HostError(f"the monitor of {folder.name} has ended: see {folder.path / MONITOR_LOG}, and `blockmap ps -a`")


def _check_readiness(wanted: DetachedRun) -> None:
    """Raises UsageError for what is no condition, and for one that holds already, on the host's network."""
    if wanted.ready is None:
        return
    if parse_readiness(wanted.ready).holds() and wanted.options.network == HOST:
        raise UsageError(
            f"{wanted.ready} holds before the program has started: end what answers there, or choose another"
        )


def read_job(about: dict[str, Any]) -> DetachedRun:
    """Returns what `start` noted in the container's folder."""
    options = {
        **about["options"],
        "volumes": tuple(BindMount(**each) for each in about["options"]["volumes"]),
        "ports": tuple(PublishedPort(**each) for each in about["options"]["ports"]),
        "environment": tuple(about["options"]["environment"]),
    }
    versions = about["versions"] and Versions(**about["versions"])
    own = {name: about[name] for name in DetachedRun.__dataclass_fields__}
    return replace(DetachedRun(**own), options=RunOptions(**options), versions=versions)


def _is_up(told: dict[str, Any], name: str, wanted: DetachedRun) -> bool:
    """Returns True if what a monitor told is what was waited for; raises what it says was wrong."""
    match told["event"]:
        case "running":
            return wanted.ready is None
        case "ready":
            return True
        case "late":
            raise HostError(
                f"{wanted.ready} did not hold within {wanted.ready_seconds:g} s; {name} goes on: see `blockmap logs {name}`, "
                f"or end it with `blockmap stop {name}`"
            )
        case "ended" if wanted.ready is not None:
            said = told["said"].strip()
            raise HostError(
                f"{name} ended with status {told['status']} before {wanted.ready} held"
                + (f"; it said: {said}" if said else "")
            )
        case "ended":
            return True
        case "cannot":
            raise CannotStart(told["message"], told["status"])
    kind = getattr(errors, told["kind"], HostError)
    raise kind(told["message"])


class CannotStart(BlockmapError):
    """A program could not be run in its container."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        """127 where it is absent, 126 where it cannot be executed, as a program of `run` has it."""
