"""nbdkit's callbacks: each is a function of this module, and turns into one call of a volume.

Started by `blockmap serve` in the foreground. Threads, sockets and files are made from `after_fork` on. All that lasts from
one callback to the next is in one object.
"""

import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import nbdkit

from blockmap import __version__
from blockmap.errors import BlockmapError, DiskFull, UsageError
from blockmap.learn.local_files import LocalProfiles
from blockmap.local.paths import profiles_folder
from blockmap.server.server import Server
from blockmap.store.opening import location, open_store
from blockmap.store.signing import Trust
from blockmap.volume.volume import WritableVolume
from nbdplugin.background import LearnerProcess
from nbdplugin.control import dispatcher
from nbdplugin.failures import Failures
from nbdplugin.metrics import MetricsServer
from nbdplugin.options import Options, OptionsParser
from nbdplugin.publishing import PublisherProcess
from nbdplugin.session import Session, Sessions
from nbdplugin.sockets import hang_up_on_idle, has_room, leave_clients, peer
from nbdplugin.threads import here, keep

if TYPE_CHECKING:
    from blockmap.api.images import NamedImage

API_VERSION = 2

_SWITCH_SECONDS = 2e-3
"""Seconds after which a thread that waits for the interpreter asks for it. With Python's 5 ms, a background thread that
computes cuts reads from 20,000 to 128 a second; much less costs throughput when many threads wait."""
_COLLECT_AFTER = 100_000
"""Objects made between two runs of the garbage collector. There are few cycles here, and with Python's 700 it runs a few
times a second, through all that is held of open volumes."""
_MAX_BLOCK_BYTES = 32 << 20
_MAX_EXPORTS_LISTED = 10_000
"""nbdkit refuses longer lists as a whole; an export that is not listed can be opened all the same."""

_log = logging.getLogger("blockmap")


class RequestFailed(Exception):
    """Stands for the error itself: nbdkit never releases an exception, nor the data of its frames."""


class Service:
    """A server, its connections, and what else runs beside it in this process; threads, sockets and files are its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._learner = LearnerProcess(options.store, options.cache, trust=options.trust)
        evidence = self._learner.offer if options.learn else None
        state = options.state or options.cache / "state"
        self._publisher = PublisherProcess(options.store, state, options.sign)
        self.server = Server(
            options.store,
            options.cache,
            options.cache_bytes,
            options.outages,
            evidence,
            state,
            self._publisher,
            Trust(options.trust),
            options.hydrate,
        )
        self.server.begin()
        self.sessions = Sessions(self.server, options.connections)
        if options.control_fd is not None:
            listening = socket.socket(fileno=options.control_fd)
            kept = LocalProfiles(profiles_folder(options.cache))
            made = dispatcher(self.server, self.server.traces, kept, self._status, self._images, options.group)
            made.start(listening)
        if options.metrics_fd is not None:
            MetricsServer(socket.socket(fileno=options.metrics_fd), self._status).start()

    def close(self) -> None:
        self._learner.close()
        self._publisher.close()
        self.server.close()

    def _status(self) -> dict[str, object]:
        own = self._options
        return {
            **self.sessions.status(),
            "version": __version__,
            "supervisor": {"pid": os.getppid(), "idle_seconds": own.idle_exit, "log": own.log},
            "outage_seconds": own.outage_seconds,
            "learn": self._learner.status(),
        }

    def _images(self, want_data: bool) -> "list[NamedImage]":
        from blockmap.api.images import list_images  # 7 ms, for which no start waits

        return list_images(open_store(self._options.store)[0], Trust(self._options.trust), data=want_data)


class Plugin:
    """Holds all that lasts from one callback to the next."""

    def __init__(self) -> None:
        self.parser = OptionsParser()
        self.failures = Failures(_log, time.monotonic)
        self._stopping = threading.Event()
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        """Returns the service, which is there from `after_fork` on."""
        assert self._service is not None
        return self._service

    def start(self) -> None:
        """Begins to serve; BlockmapError. For the main thread, which alone may say what a signal does."""
        self._service = Service(self.parser.options())
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        # nbdkit's own handler has requests answered with ESHUTDOWN, which the kernel's nbd passes on as an I/O error. Python
        # never runs this one's function, as nbdkit's main thread is not in the interpreter: the byte is what tells.
        told, tell = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(tell, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        threading.Thread(target=self._stop, args=[told], name="stop", daemon=True).start()

    @property
    def is_stopping(self) -> bool:
        """Returns True if this process is about to end."""
        return self._stopping.is_set()

    def close(self) -> None:
        self._stopping.set()
        if self._service is not None:
            self._service.close()

    def fail(self, what: str, session: Session, count: int, offset: int, error: BaseException) -> RequestFailed:
        """Sets the errno that the client gets, and logs why. Returns the exception to raise, outside of the handler, so that
        the error, with all that its frames hold, is not its context."""
        code = errno.ENOSPC if isinstance(error, DiskFull) else errno.EIO
        nbdkit.set_error(errno.ESHUTDOWN if self._stopping.is_set() else code)
        text = f"{what} of {count} bytes at {offset} of {session.volume.name} failed: "
        text += str(error) if isinstance(error, BlockmapError) else repr(error)
        self.failures.note(type(error).__name__, text)
        return RequestFailed(text)

    def _stop(self, told: int) -> None:
        """Waits for SIGTERM, then leaves all clients, and ends: a request that has no answer by then can be sent to the next
        server, but an error would be final."""
        os.read(told, 1)
        self._stopping.set()
        leave_clients()
        self.service.server.stop()
        nbdkit.shutdown()

    def _watch(self) -> None:
        """Waits for nbdkit's signal to end, then hangs up on idle clients: nbdkit waits for them without a limit."""
        libnbdkit = ctypes.CDLL(None)
        while libnbdkit.nbdkit_nanosleep(3600, 0) == 0:
            pass
        self._stopping.set()
        self.service.server.stop()
        hang_up_on_idle()


_plugin = Plugin()


def config(key: str, value: str) -> None:
    _plugin.parser.add(key, value)


def config_complete() -> None:
    _plugin.parser.options()


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    """Checks the options. It is the last callback whose error stops a server in the background, too early to ask the store."""
    location(_plugin.parser.options().store)


def after_fork() -> None:
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    handler = logging.StreamHandler()
    # A supervisor says when it passes a line on.
    before = "" if _plugin.parser.options().control_fd is not None else "%(asctime)s "
    handler.setFormatter(logging.Formatter(f"{before}%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    try:
        _plugin.start()
    except BlockmapError as error:
        _log.error("%s", error)
        raise


def cleanup() -> None:
    _plugin.close()


def preconnect(readonly: bool) -> None:
    """Refuses a client at the end, and while descriptors are scarce: without any, nbdkit would accept in vain as fast as it can,
    and reads would fail."""
    if _plugin.is_stopping:
        raise RequestFailed("a client was refused: this server is ending")
    if not has_room():
        text = f"a client was refused, as too many are connected: {peer()[0]}"
        _plugin.failures.note("too many clients", text)
        raise RequestFailed(text)


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    try:
        names = _plugin.service.server.names()
    except BlockmapError as error:
        _log.error("the exports cannot be listed: %s", error)
        raise
    if len(names) > _MAX_EXPORTS_LISTED:
        _log.warning("%d of %d exports are listed: NBD has no room for more", _MAX_EXPORTS_LISTED, len(names))
    return names[:_MAX_EXPORTS_LISTED]


def default_export(readonly: bool, is_tls: bool) -> str:
    """Returns the export for a client that names none: the only one, if there is just one."""
    names = _plugin.service.server.names()
    return names[0][0] if len(names) == 1 else ""


def open(readonly: bool) -> Session:
    name, (who, is_local) = nbdkit.export_name(), peer()
    try:
        if not name:
            raise UsageError(
                "the client named no export, and there is more than one or none: name one, as in nbd://HOST/redis:7"
            )
        session = _plugin.service.sessions.open(name, is_local)
    except BlockmapError as error:
        _plugin.failures.note(
            f"{type(error).__name__} at an open", f"export {name!r} was refused: {error} (asked for by {who})"
        )
        raise
    _log.info("export %s opened by %s: %s", name, who, session.volume.name)
    return session


def close(h: Session) -> None:
    _plugin.service.sessions.close(h)
    _log.info("export %s closed", h.volume.name)


def get_size(h: Session) -> int:
    return h.volume.size


def block_size(h: Session) -> tuple[int, int, int]:
    """Returns the least, preferred and largest size of a request. Reads of any alignment are served: advertising 4096 as
    the least would only make clients read around what they want."""
    return 1, 4096, _MAX_BLOCK_BYTES


def export_description(h: Session) -> str:
    """Returns the export's name by digest, so that a client on another host knows what a name stood for when it came."""
    return h.volume.name


def can_write(h: Session) -> bool:
    return h.volume.writable


def can_flush(h: Session) -> bool:
    return h.volume.writable


def can_fua(h: Session) -> int:
    return int(nbdkit.FUA_NATIVE if h.volume.writable else nbdkit.FUA_NONE)


def can_trim(h: Session) -> bool:
    return h.volume.writable


def can_zero(h: Session) -> bool:
    return h.volume.writable


def can_fast_zero(h: Session) -> bool:
    return h.volume.writable


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
        failed = _plugin.fail("read", h, len(buf), offset, error)
    raise failed


def extents(h: Session, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    if not hasattr(here, "tally"):
        keep(h.tally())
    try:
        found = h.volume.extents(offset, count, h.start)
        hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
        return [(start, length, hole if empty else 0) for start, length, empty in found]
    except BaseException as error:
        failed = _plugin.fail("block status", h, count, offset, error)
    raise failed


def cache(h: Session, count: int, offset: int, flags: int) -> None:
    if not hasattr(here, "tally"):
        keep(h.tally())
    h.volume.want(offset, count, h.start)


def pwrite(h: Session, buf: memoryview, offset: int, flags: int) -> None:
    # As `_change` does, and not through it: small writes are most of what a clone is asked for.
    if not hasattr(here, "tally"):
        keep(h.tally())
    try:
        h.writable.write(buf, offset)
        if flags & nbdkit.FLAG_FUA:
            h.writable.flush()
        return
    except BaseException as error:
        failed = _plugin.fail("write", h, len(buf), offset, error)
    raise failed


def zero(h: Session, count: int, offset: int, flags: int) -> None:
    """Makes a range zeros, fast whatever is there: an extent, or unwritten blocks of a file."""
    allocate = not flags & nbdkit.FLAG_MAY_TRIM
    _change(h, "zeroing", count, offset, flags, lambda volume: volume.zero(offset, count, allocate=allocate))


def trim(h: Session, count: int, offset: int, flags: int) -> None:
    _change(h, "trim", count, offset, flags, lambda volume: volume.trim(offset, count))


def flush(h: Session, flags: int) -> None:
    _change(h, "flush", h.volume.size, 0, 0, lambda volume: volume.flush())


def _change(
    h: Session, what: str, count: int, offset: int, flags: int, change: Callable[[WritableVolume], None]
) -> None:
    """Calls `change`, and flushes what it did if `flags` ask for that."""
    if not hasattr(here, "tally"):
        keep(h.tally())
    try:
        volume = h.writable
        change(volume)
        if flags & nbdkit.FLAG_FUA:
            volume.flush()
        return
    except BaseException as error:
        failed = _plugin.fail(what, h, count, offset, error)
    raise failed
