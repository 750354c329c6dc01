"""What a check is, what it looks at, and what it finds."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from blockmap.control.client import Client
from blockmap.control.messages import ServerStatus
from blockmap.errors import HostError

_ANSWER_SECONDS = 5.0
"""How long a server that is there may take to say its status."""


class State(enum.Enum):
    """How grave a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something would be better otherwise."""
    FAULT = "fault"
    SKIPPED = "skipped"
    """It could not be looked at, or there is nothing to look at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    state: State
    found: str
    action: str = ""
    """What to do about it; empty where nothing is to be done."""


def ok(found: str) -> Finding:
    return Finding(State.OK, found)


def warning(found: str, action: str) -> Finding:
    return Finding(State.WARNING, found, action)


def fault(found: str, action: str) -> Finding:
    return Finding(State.FAULT, found, action)


def skipped(found: str) -> Finding:
    return Finding(State.SKIPPED, found)


@dataclass(frozen=True)
class Examined:
    """What is looked at: this host, with the settings that blockmap has here."""

    store: str | None
    """The URL of the store; None where none is named."""
    cache: Path
    socket: Path
    state: Path
    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    modules: Path = Path("/lib/modules")

    @property
    def client(self) -> Client:
        return Client(self.socket, _ANSWER_SECONDS)

    @cached_property
    def status(self) -> ServerStatus | None:
        """The status of the server; None where none answers."""
        try:
            return self.client.status()
        except HostError:
            return None


class Check(NamedTuple):
    """One thing that is looked at."""

    name: str
    look: Callable[[Examined], Finding]
    """May raise BlockmapError or OSError, which is a fault."""


def megabytes(count: float) -> str:
    """Formats bytes for people."""
    return f"{count / 1e6:,.1f} MB"
