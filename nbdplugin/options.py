"""Parses the parameters of the plugin, as `blockmap serve` passes them: KEY=VALUE, one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap.errors import UsageError
from blockmap.format.signature import PublicKey, parse_public_key
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy, parse_option


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of a server."""

    store: str
    cache: Path
    outages: Mapping[str, OutagePolicy]
    """The policies of exports by name; that of all others by the empty name."""
    cache_bytes: int | None = None
    state: Path | None = None
    connections: int | None = None
    """The most connections at a time; None for any number."""
    control_fd: int | None = None
    metrics_fd: int | None = None
    group: int | None = None
    """The number of the group whose members may ask on the control socket."""
    idle_exit: float | None = None
    """Seconds after its last use at which the supervisor ends; None where it does not."""
    log: str | None = None
    """The file that the supervisor logs to."""
    learn: bool = True
    trust: tuple[PublicKey, ...] = ()
    """The keys of which one must have signed what is opened; without any, nothing need be signed."""
    hydrate: bool = True
    sign: Path | None = None
    """The file of the private key that commits are signed with."""

    @property
    def outage_seconds(self) -> float:
        """Returns the longest that a read of any export waits for a store that is away."""
        return max(policy.wait_s for policy in ({"": DEFAULT} | dict(self.outages)).values())


class OptionsParser:
    """Collects parameters while nbdkit passes them on."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}
        self._outages: dict[str, OutagePolicy] = {}
        self._trust: list[PublicKey] = []

    def add(self, key: str, value: str) -> None:
        """Takes one parameter; UsageError where it is none, or its value makes no sense."""
        if key not in _PARAMETERS:
            *others, last = _PARAMETERS
            raise UsageError(f"{key}= is not a parameter of this plugin: {', '.join(others)} and {last} are")
        parsed = _PARAMETERS[key](key, value)
        if key == "outage":
            self._outages.update([parsed])
        elif key == "trust":
            self._trust.append(parsed)
        else:
            self._given[key] = parsed

    def options(self) -> Options:
        """Returns all that was given; UsageError where something is missing."""
        for key, what in (("store", "URL"), ("cache", "DIR")):
            if key not in self._given:
                raise UsageError(
                    f"the parameter {key}= is missing: add {key}={what}, or start the server with `blockmap serve`"
                )
        return Options(outages=self._outages, trust=tuple(self._trust), **self._given)


def _number(key: str, value: str) -> int:
    if not value.isdecimal():
        raise UsageError(f"{key}={value} is not a number")
    return int(value)


def _switch(key: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise UsageError(f"{key}={value} is neither on nor off")
    return value == "on"


_PARAMETERS: Mapping[str, Callable[[str, str], Any]] = {
    "store": lambda _, value: value,
    "cache": lambda _, value: Path(value),
    "cache_bytes": _number,
    "state": lambda _, value: Path(value),
    "connections": _number,
    "outage": lambda _, value: parse_option(value),
    "group": _number,
    "idle_exit": lambda _, value: float(value),
    "log": lambda _, value: value,
    "control_fd": _number,
    "metrics_fd": _number,
    "learn": _switch,
    "trust": lambda _, value: parse_public_key(value),
    "hydrate": _switch,
    "sign": lambda _, value: Path(value),
}
"""How the value of each parameter is parsed."""
