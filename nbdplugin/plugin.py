"""nbdkit's callbacks: each turns into one call of a volume.

Started by `blockmap serve` in the foreground. Threads, sockets and files are made from `after_fork` on.
"""

import ctypes
import errno
import gc
import logging
import socket
import sys
import threading
import time
from pathlib import Path

import nbdkit

from blockmap.errors import BlockmapError, UsageError
from blockmap.format.trace import TraceHead
from blockmap.learn.local_files import LocalProfiles
from blockmap.origin.outage_policy import OutagePolicy, parse_option
from blockmap.server.exports import Exports
from blockmap.store.opening import location
from blockmap.trace.manager import TraceManager
from nbdplugin.background import LearnerProcess
from nbdplugin.control import Control
from nbdplugin.failures import Failures
from nbdplugin.metrics import MetricsServer
from nbdplugin.session import Session, Sessions
from nbdplugin.sockets import hang_up_on_idle, peer
from nbdplugin.threads import here, keep

API_VERSION = 2

_SWITCH_SECONDS = 2e-3
"""With Python's 5 ms a background thread that computes cuts reads from 20,000 to 128 a second. Each thread that waits for
the interpreter wakes up after so long to ask for it: with 64 that read from the store, 0.1 ms cost a fifth of what the
link gives."""
_COLLECT_AFTER = 100_000
"""Objects made since the garbage collector last looked. There are few cycles here, and with Python's 700 it looks a few
times a second, at everything that is known of open volumes."""
_MAX_BLOCK_BYTES = 32 << 20
_MAX_EXPORTS_LISTED = 10_000
"""nbdkit refuses longer lists as a whole; an export that is not listed can be opened all the same."""

_log = logging.getLogger("blockmap")
_libnbdkit = ctypes.CDLL(None)
_settings: dict[str, str] = {}
_outages: dict[str, OutagePolicy] = {}
_failures = Failures(_log, time.monotonic)
_stopping = threading.Event()
_exports: Exports | None = None
_sessions: Sessions | None = None
_starts: TraceManager | None = None
_learner: LearnerProcess | None = None


class RequestFailed(Exception):
    """What nbdkit is given in place of the error itself: it never lets go of an exception, nor of its frames' data."""


def config(key: str, value: str) -> None:
    if key == "outage":
        _outages.update([parse_option(value)])
        return
    if key not in ("store", "cache", "cache_bytes", "control_fd", "metrics_fd", "learn"):
        raise UsageError(
            f"{key}= is not a parameter of this plugin: store, cache, cache_bytes, outage, control_fd, metrics_fd and learn "
            "are"
        )
    if key in ("cache_bytes", "control_fd", "metrics_fd") and not value.isdecimal():
        raise UsageError(f"{key}={value} is not a number")
    if key == "learn" and value not in ("on", "off"):
        raise UsageError(f"learn={value} is neither on nor off")
    _settings[key] = value


def config_complete() -> None:
    for key in ("store", "cache"):
        if key not in _settings:
            raise UsageError(f"the parameter {key}= is missing: start the server with `blockmap serve`")


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    """The last moment at which an error stops a server that goes into the background; too early for asking the store."""
    location(_settings["store"])


def after_fork() -> None:
    global _exports, _sessions, _starts, _learner
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    cap = _settings.get("cache_bytes")
    try:
        _exports = Exports(_settings["store"], Path(_settings["cache"]), int(cap) if cap else None, _outages)
    except BlockmapError as error:
        _log.error("%s", error)
        raise
    cache = Path(_settings["cache"])
    if _settings.get("learn") != "off":
        _learner = LearnerProcess(_settings["store"], cache)
    _starts = TraceManager(cache / "traces", _learn)
    _sessions = Sessions(_exports, _starts)
    if "control_fd" in _settings:
        listening = socket.socket(fileno=int(_settings["control_fd"]))
        Control(listening, _exports, _starts, LocalProfiles(cache / "profiles"), _status).start()
    if "metrics_fd" in _settings:
        MetricsServer(socket.socket(fileno=int(_settings["metrics_fd"])), _status).start()
    threading.Thread(target=_watch, name="watch", daemon=True).start()


def cleanup() -> None:
    _stopping.set()
    if _starts is not None:
        _starts.close()
    if _learner is not None:
        _learner.close()
    if _exports is not None:
        _exports.close()


def _status() -> dict[str, object]:
    assert _sessions is not None
    learn = {"running": 0, "runs": 0, "failures": 0} if _learner is None else _learner.status()
    return {**_sessions.status(), "learn": learn}


def _learn(head: TraceHead, trace: Path) -> None:
    if _learner is not None:
        _learner.offer(head, trace)


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    assert _exports is not None
    try:
        names = _exports.names()
    except BlockmapError as error:
        _log.error("the exports cannot be listed: %s", error)
        raise
    if len(names) > _MAX_EXPORTS_LISTED:
        _log.warning("%d of %d exports are listed: NBD has no room for more", _MAX_EXPORTS_LISTED, len(names))
    return names[:_MAX_EXPORTS_LISTED]


def default_export(readonly: bool, is_tls: bool) -> str:
    """What a client gets that asks for no name: the only export, if there is just one."""
    assert _exports is not None
    names = _exports.names()
    return names[0][0] if len(names) == 1 else ""


def open(readonly: bool) -> Session:
    assert _sessions is not None
    name, who = nbdkit.export_name(), peer()
    try:
        if not name:
            raise UsageError(
                "the client named no export, and there is more than one or none: name one, as in nbd://HOST/redis:7"
            )
        session = _sessions.open(name)
    except BlockmapError as error:
        _log.error("export %r was refused: %s (asked for by %s)", name, error, who)
        raise
    _log.info("export %s opened by %s: %s", name, who, session.view.name)
    return session


def close(h: Session) -> None:
    assert _sessions is not None
    _sessions.close(h)
    _log.info("export %s closed", h.view.name)


def get_size(h: Session) -> int:
    return h.view.size


def block_size(h: Session) -> tuple[int, int, int]:
    """Least, preferred, most. Any alignment is served, as nbdkit passes any on: 4096 advertised as the least would only
    make clients that keep to it read around what they want."""
    return 1, 4096, _MAX_BLOCK_BYTES


def can_write(h: Session) -> bool:
    return False


def can_multi_conn(h: Session) -> bool:
    return True


def can_extents(h: Session) -> bool:
    return True


def can_cache(h: Session) -> int:
    return int(nbdkit.CACHE_NATIVE)


def is_rotational(h: Session) -> bool:
    return False


def pread(h: Session, buf: memoryview, offset: int, flags: int) -> None:
    try:
        tally = here.tally
    except AttributeError:
        tally = keep(h.tally())
    try:
        slow = h.read(buf, offset) if tally.hits != tally.measure_at else h.read_timed(buf, offset, tally)
        if slow is None:
            tally.hits += 1
            tally.hit_bytes += len(buf)
        else:
            tally.slow(slow, len(buf))
        return
    except BaseException as error:
        tally.errors += 1
        failed = _failed("read", h, len(buf), offset, error)
    raise failed


def extents(h: Session, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    if not hasattr(here, "tally"):
        keep(h.tally())
    try:
        found = h.view.extents(offset, count)
        hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
        return [(start, length, hole if empty else 0) for start, length, empty in found]
    except BaseException as error:
        failed = _failed("block status", h, count, offset, error)
    raise failed


def cache(h: Session, count: int, offset: int, flags: int) -> None:
    if not hasattr(here, "tally"):
        keep(h.tally())
    try:
        h.view.want(offset, count)
        return
    except BaseException as error:
        failed = _failed("prefetch", h, count, offset, error)
    raise failed


def _failed(what: str, h: Session, count: int, offset: int, error: BaseException) -> RequestFailed:
    """Sets the errno that the client gets, and says why. To be raised outside of the handler, so that the error, with
    all that its frames hold, is not its context."""
    nbdkit.set_error(errno.ESHUTDOWN if _stopping.is_set() else errno.EIO)
    text = f"{what} of {count} bytes at {offset} of {h.view.name} failed: "
    text += str(error) if isinstance(error, BlockmapError) else repr(error)
    _failures.note(type(error).__name__, text)
    return RequestFailed(text)


def _watch() -> None:
    """Waits until nbdkit is told to end, then hangs up on idle clients: nbdkit waits for them without a limit."""
    while _libnbdkit.nbdkit_nanosleep(3600, 0) == 0:
        pass
    _stopping.set()
    if _exports is not None:
        _exports.stop()
    hang_up_on_idle()
