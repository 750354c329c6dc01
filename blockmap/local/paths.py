"""Says where things are on this host: where they are set to be, else where they usually are."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from blockmap.errors import HostError, UsageError
from blockmap.local.settings import HOST_FILE, setting

TRACE_SUFFIX: Final = ".trace"
"""The ending of the names of traces."""


_HOST_SOCKET = Path("/run/blockmap/nbd.sock")
"""Root's, which serves the whole host."""


def default_socket() -> Path:
    """Returns the NBD socket that is set, else the usual one."""
    if given := setting("socket"):
        return Path(given)
    if os.geteuid() == 0:
        return _HOST_SOCKET
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "blockmap/nbd.sock"


def server_socket() -> Path:
    """Returns the NBD socket of the server to ask: this user's own, or root's where there is none and this user may ask that."""
    own = default_socket()
    if not control_socket(own).exists() and os.access(control_socket(_HOST_SOCKET), os.W_OK):
        return _HOST_SOCKET
    return own


def is_remote(place: Path | str | None) -> bool:
    """Returns True if a place is HOST:PORT, not the path of a socket."""
    text = str(place or "")
    return "/" not in text and text.rpartition(":")[2].isdecimal() and ":" in text


def need_store(url: str | None) -> str:
    """Returns the store's URL, which has no default. Raises UsageError if none is given."""
    if not url:
        from blockmap.local.settings_file import current  # nobody else needs it

        hidden = ", which this user may not read: its group may" if HOST_FILE in current().unreadable else ""
        raise UsageError(
            "no store is given: add --store URL (a directory will do), set BLOCKMAP_STORE, or write store = 'URL' in "
            f"{HOST_FILE}{hidden}"
        )
    return url


def control_socket(nbd_socket: Path) -> Path:
    """Returns the control socket beside an NBD socket."""
    return nbd_socket.with_name(nbd_socket.name + ".ctl")


def default_cache() -> Path:
    """Returns the folder of the cache that is set, else the usual one."""
    if given := setting("cache"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/cache/blockmap")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockmap"


def own(directory: Path) -> Path:
    """Returns a directory that is this user's, or absent; HostError where it is somebody else's.

    Its owner can put there what this user would believe: bytes of images, or what is attached where.
    """
    with suppress(OSError):  # whoever uses it says what is wrong
        owner = directory.stat().st_uid
        if owner != os.geteuid():
            raise HostError(f"{directory} belongs to another user (uid {owner}): name a directory of your own")
    return directory


def default_state() -> Path:
    """Returns the folder for attachments, for clones, and for what containers write: the one that is set, else the usual one."""
    if given := setting("state"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/blockmap")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "blockmap"


def traces_folder(cache: Path) -> Path:
    """Returns the folder of the traces of this host's starts, one file each."""
    return cache / "traces"


def profiles_folder(cache: Path) -> Path:
    """Returns the folder of the profiles of this host alone."""
    return cache / "profiles"
