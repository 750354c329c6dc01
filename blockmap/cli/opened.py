"""Opens this host for commands, with what is attached on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from blockmap.api.host import Host
from blockmap.terminal.output import show_warnings

HostT = TypeVar("HostT", bound=Host)


def opened(
    kind: type[HostT],
    store: str | None = None,
    cache: Path | None = None,
    socket: Path | None = None,
    trust: Sequence[str] = (),
    sign: Path | None = None,
) -> HostT:
    """Returns what a command's options mean, as far as the `kind` of API goes that the command needs."""
    show_warnings()
    return kind(store, cache=cache, socket=socket, trust=trust, sign=sign)
