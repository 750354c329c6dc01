"""Opens this host for commands, with what is attached on it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from blockmap.api.host import Host
from blockmap.local.paths import default_state

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
    return kind(store, cache=cache, socket=socket, state=state(), trust=trust, sign=sign)


def state() -> Path:
    """Returns the folder for attachments, and for what containers write: BLOCKMAP_STATE, where it is set."""
    return Path(os.environ.get("BLOCKMAP_STATE") or default_state())
