"""Finds what is attached on this host, for commands."""

import os
from collections.abc import Callable
from pathlib import Path

from blockmap.host.attachments import Attachments
from blockmap.host.devices.nbdfuse import NbdFuse
from blockmap.local.paths import default_state
from blockmap.terminal.output import warn


def attachments(say: Callable[[str], None] = warn) -> Attachments:
    return Attachments(state(), NbdFuse(), say)


def state() -> Path:
    """Returns the folder for attachments, and for what containers write: BLOCKMAP_STATE, where it is set."""
    return Path(os.environ.get("BLOCKMAP_STATE") or default_state())
