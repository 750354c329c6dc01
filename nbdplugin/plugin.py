"""nbdkit's callbacks: each turns into one call of a volume.

Started by `blockmap serve` in the foreground. Threads, sockets and files are made from `after_fork` on.
"""

import contextlib
import ctypes
import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import nbdkit

from blockmap.errors import BlockmapError
from blockmap.volume.exports import Exports
from blockmap.volume.view import View
from nbdplugin.control import Control
from nbdplugin.threads import here, keep

API_VERSION = 2

_SWITCH_SECONDS = 1e-4
"""With Python's 5 ms a background thread that computes cuts reads from 20,000 to 128 a second."""
_MAX_BLOCK_BYTES = 32 << 20

_log = logging.getLogger("blockmap")
_libnbdkit = ctypes.CDLL(None)
_settings: dict[str, str] = {}
_exports: Exports
_stopping = threading.Event()


def config(key: str, value: str) -> None:
    if key not in ("store", "cache", "cache_bytes", "control_fd"):
        raise RuntimeError(f"unknown parameter {key}")
    _settings[key] = value


def config_complete() -> None:
    for key in ("store", "cache"):
        if key not in _settings:
            raise RuntimeError(f"the parameter {key}= is missing")


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def after_fork() -> None:
    global _exports
    sys.setswitchinterval(_SWITCH_SECONDS)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    cap = _settings.get("cache_bytes")
    try:
        _exports = Exports(_settings["store"], Path(_settings["cache"]), int(cap) if cap else None)
    except BlockmapError as error:
        _log.error("%s", error)
        raise
    if "control_fd" in _settings:
        Control(socket.socket(fileno=int(_settings["control_fd"])), _exports).start()
    threading.Thread(target=_watch, name="watch", daemon=True).start()


def cleanup() -> None:
    _stopping.set()
    _exports.close()


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    return _exports.names()


def default_export(readonly: bool, is_tls: bool) -> str:
    """What a client gets that asks for no name: the only export, if there is just one."""
    names = _exports.names()
    return names[0][0] if len(names) == 1 else ""


def open(readonly: bool) -> View:
    name = nbdkit.export_name()
    try:
        view = _exports.open(name)
    except BlockmapError as error:
        _log.error("export %r was refused: %s", name, error)
        raise
    _log.info("export %s opened by %s: %s", name, _peer(), view.name)
    return view


def close(h: View) -> None:
    h.close()
    _log.info("export %s closed", h.name)


def get_size(h: View) -> int:
    return h.size


def block_size(h: View) -> tuple[int, int, int]:
    """Any alignment is served; 4096 is what costs least."""
    return 1, 4096, _MAX_BLOCK_BYTES


def can_write(h: View) -> bool:
    return False


def can_multi_conn(h: View) -> bool:
    return True


def can_extents(h: View) -> bool:
    return True


def can_cache(h: View) -> int:
    return int(nbdkit.CACHE_NATIVE)


def is_rotational(h: View) -> bool:
    return False


def pread(h: View, buf: memoryview, offset: int, flags: int) -> None:
    try:
        here.kept  # noqa: B018 - the cheapest question of whether it is there
    except AttributeError:
        keep()
    try:
        h.read(buf, offset)
    except BaseException as error:
        _fail(f"read of {len(buf)} bytes at {offset} of {h.name}", error)
        raise


def extents(h: View, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    try:
        found = h.extents(offset, count)
    except BaseException as error:
        _fail(f"block status of {count} bytes at {offset} of {h.name}", error)
        raise
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(start, length, hole if empty else 0) for start, length, empty in found]


def cache(h: View, count: int, offset: int, flags: int) -> None:
    try:
        h.want(offset, count)
    except BaseException as error:
        _fail(f"prefetch of {count} bytes at {offset} of {h.name}", error)
        raise


def _fail(what: str, error: BaseException) -> None:
    """Sets the errno that the client gets, and says why."""
    nbdkit.set_error(errno.ESHUTDOWN if _stopping.is_set() else errno.EIO)
    _log.error("%s failed: %s", what, error if isinstance(error, BlockmapError) else repr(error))


def _peer() -> str:
    """Who is connected: the user on a Unix socket, which is all that nbdkit tells on every release."""
    uid = _libnbdkit.nbdkit_peer_uid
    uid.restype = ctypes.c_int64
    found = uid()
    return f"uid {found}" if found >= 0 else "a remote client"


def _watch() -> None:
    """Waits until nbdkit is told to end, then hangs up on idle clients: nbdkit waits for them without a limit."""
    while _libnbdkit.nbdkit_nanosleep(3600, 0) == 0:
        pass
    _stopping.set()
    for client in _client_sockets():
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RD)


def _client_sockets() -> Iterator[socket.socket]:
    """Connections of NBD clients: sockets with the address of one that listens."""
    listening, connected = set(), []
    for name in os.listdir("/proc/self/fd"):
        try:
            client = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        try:
            address = (client.family, client.getsockname())
            if client.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listening.add(address)
            elif client.type == socket.SOCK_STREAM:
                connected.append((address, client))
                continue
        except OSError:
            pass
        client.close()
    for address, client in connected:
        if address in listening:
            yield client
        client.close()
