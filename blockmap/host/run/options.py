"""What a container is given besides its image, in the words of docker run: environment, volumes, user, network, limits."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blockmap.errors import UsageError

_PORT = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9a-f:]+\]):)?(?P<host>[0-9]+):(?P<inner>[0-9]+)(?:/(?P<kind>tcp|udp))?"
)
_MAX_PORT = (1 << 16) - 1
HOST, NONE, NAMESPACE = "host", "none", "ns:"
"""The networks that need no program: the host's, none but loopback, and a namespace that is there."""
PROGRAMS = ("pasta", "slirp4netns")
"""The programs that connect a namespace of its own with the host's network, the better one first: pasta copies less, and keeps the
addresses of clients."""


@dataclass(frozen=True, slots=True)
class BindMount:
    """A file or directory of the host that the container has."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the host that leads to one of the container."""

    host: int
    container: int
    protocol: str = "tcp"
    address: str = ""
    """The host's address; all of them where it is empty."""

    def __str__(self) -> str:
        """Returns it as docker ps shows it."""
        return f"{self.address or '0.0.0.0'}:{self.host}->{self.container}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a container differs from what its image says, and from the host; the defaults are `run`'s."""

    entrypoint: str | None = None
    """What replaces the image's Entrypoint and Cmd; an empty one takes it away."""
    environment: tuple[str, ...] = ()
    """NAME=VALUE, which come after the image's."""
    user: str | None = None
    """USER[:GROUP], names of the image's own files or numbers."""
    directory: str | None = None
    hostname: str | None = None
    volumes: tuple[BindMount, ...] = ()
    network: str = HOST
    """host, none, ns:PATH, pasta or slirp4netns."""
    ports: tuple[PublishedPort, ...] = ()
    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    """How much of the processors, in processors."""
    pids: int | None = None
    """Processes and threads; None for 2,048."""
    read_only: bool = False
    """True if the root cannot be written."""

    def __post_init__(self) -> None:
        """UsageError."""
        if self.ports and self.network not in PROGRAMS:
            raise UsageError(
                f"with --network {self.network}, no port is published: "
                + ("each is the host's own" if self.network == HOST else "use --network pasta, or leave out -p")
            )
        if self.directory is not None and not self.directory.startswith("/"):
            raise UsageError(
                f"{self.directory!r} is no directory of the container: it begins with a slash, as in -w /srv"
            )
        if self.hostname is not None and not re.fullmatch("[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62})", self.hostname):
            raise UsageError(f"{self.hostname!r} is no host's name: letters, digits, dots and hyphens, at most 63")
        for name, value in (("--memory", self.memory), ("--cpus", self.cpus), ("--pids-limit", self.pids)):
            if value is not None and value <= 0:
                raise UsageError(
                    f"{name} {value:g} leaves nothing to run with: give more, or leave it out for no limit"
                )


def parse_volume(text: str) -> BindMount:
    """Parses SRC:DST[:ro], SRC and DST absolute paths; UsageError."""
    source, *rest = text.split(":")
    if not rest:
        raise UsageError(
            f"-v {text}: run makes no volumes: leave it out (what is written there goes with the container), or give a directory "
            f"of the host, as in -v /srv/NAME:{text}"
        )
    if not source.startswith("/"):
        raise UsageError(
            f"-v {text}: {source!r} is no absolute path, and run has no named volumes (docker and podman do): give a directory "
            f"of the host, as in -v {_absolute(source)}:{rest[0]}"
        )
    target, mode = rest[0], rest[1:]
    if not target.startswith("/") or os.path.normpath(target) == "/":
        raise UsageError(f"-v {text}: {target!r} is no place in a container: an absolute path that is not / is")
    if mode not in ([], ["ro"], ["rw"]):
        raise UsageError(f"-v {text}: {':'.join(mode)!r} is not known: ro and rw are, as in -v {source}:{target}:ro")
    return BindMount(source, target, mode == ["ro"])


def parse_port(text: str) -> PublishedPort:
    """Parses [ADDRESS:]HOST:CONTAINER[/udp]; UsageError."""
    found = _PORT.fullmatch(text)
    if found is None or not all(0 < int(found[side]) <= _MAX_PORT for side in ("host", "inner")):
        raise UsageError(f"-p {text}: [ADDRESS:]HOST:CONTAINER[/udp] is expected, as in 8080:80")
    return PublishedPort(
        int(found["host"]), int(found["inner"]), found["kind"] or "tcp", (found["address"] or "").strip("[]")
    )


def parse_network(text: str | None, ports: bool, installed: Iterable[str]) -> str:
    """Returns the network that is meant: where none is given, the host's, or, with ports to publish, that of the best program
    that is installed. UsageError."""
    if text is None:
        return next((each for each in PROGRAMS if each in installed), PROGRAMS[0]) if ports else HOST
    if text in (HOST, NONE, *PROGRAMS) or (text.startswith(NAMESPACE) and text[len(NAMESPACE) :].startswith("/")):
        return text
    raise UsageError(
        f"--network {text}: host, none, ns:PATH, pasta and slirp4netns are known; networks that have a name, and containers on "
        "one network, are podman's: podman run --network NAME --rootfs DIR:O on an attached image"
    )


def read_environment(files: Iterable[Path], given: Iterable[str], own: dict[str, str]) -> tuple[str, ...]:
    """Returns NAME=VALUE of files, then of options; a NAME alone has the value that it has in `own`, if any. UsageError."""
    entries: list[str] = []
    for path in files:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--env-file {path} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error
        entries += [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, str] = {}
    for entry in (*entries, *given):
        name, is_set, value = entry.partition("=")
        if not name or "\0" in entry or any(character.isspace() for character in name):
            raise UsageError(
                f"{entry!r} is no variable: NAME=VALUE is expected, or NAME for the value that it has here"
            )
        if is_set:
            found[name] = value
        elif name in own:
            found[name] = own[name]
    return tuple(f"{name}={value}" for name, value in found.items())


def _absolute(source: str) -> str:
    return f"/srv/{source}" if "/" not in source else os.path.abspath(source)
