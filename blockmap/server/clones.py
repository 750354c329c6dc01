"""Keeps the clones of one host: which there are, and one open volume for each that has clients.

Exports have one space of names: that of a clone has neither tag nor digest, and goes before an image's that means `latest`.
One server writes to a clone: it holds the lock in the clone's folder, from its first client to its last.
"""

import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import dropwhile
from pathlib import Path

from blockmap.durable import settle
from blockmap.errors import AlreadyExists, BlockmapError, DiskFull, HostError, NotFound, UsageError
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.volume.clone import CloneLayer, CloneVolume
from blockmap.volume.clone_loader import load_clone
from blockmap.volume.clone_table import CaptureDraft, CaptureRecord, CloneRecord, CloneTable, has_clones, read_clones
from blockmap.volume.overlay import Held, OverlayMap
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.scratch import ScratchFile, is_in_use, layer_file
from blockmap.volume.write_journal import boot_id

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MAX_NAME = 64
_MAX_BYTES = 1 << 52
"""The most that a version can have, too."""
_LOCK_SECONDS = 1.0
"""Seconds to wait for the lock: whoever only looks at it, or is about to end, has it for less."""
_HOLDER_BYTES = 4096
_YOUNG_S = 3600.0
"""Seconds for which a layer that is in no clone and that nobody has open may be in the making, by another server of this host."""
_SUPERBLOCK_BYTES = 4096
"""The bytes at the beginning of a volume that are written whenever its ext4 is frozen and thawed: no change by themselves."""


class _UnchangedError(Exception):
    """Nothing was written to a clone since it was captured."""


class CloneRebased(HostError):
    """A capture of a clone has become its version since the version below it was found: find it again."""


class _Entry:
    """A clone that is open, or about to be."""

    __slots__ = ("lock", "resources", "spare", "users", "volume")

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards volume, resources and spare; held while they are made and closed
        self.spare: CloneLayer | None = None
        """A layer that was made for the next capture."""
        self.users = 0
        """Guarded by the lock of all clones."""
        self.volume: CloneVolume | None = None
        self.resources = ExitStack()


class Clones:
    """Finds, makes and opens clones; safe to share between threads. Methods raise DiskFull and HostError."""

    def __init__(self, state: Path, store: str, holder: str) -> None:
        """`store` is the UUID of the store that is served; `holder` says who has a clone open, for people."""
        self._state = state
        self._store = store
        self._holder = holder
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._open: dict[str, _Entry] = {}
        self._made: CloneTable | None = None

    def find(self, name: str) -> CloneRecord | None:
        """Returns the clone of a name, None where there is none; NotFound where it is of another store."""
        if not is_clone_name(name) or not has_clones(self._state):
            return None
        record = self._table().find(name)
        if record is not None and record.store != self._store:
            raise NotFound(f"the clone {name} is of another store than the one that is served here")
        return record

    def is_untouched(self, name: str) -> bool:
        """Returns False if anything was written to a clone of this name."""
        record = self.find(name)
        return record is None or self._table().is_empty(record)

    def check_new(self, name: str, origin: str, base_size: int, size: int | None) -> int:
        """Returns the size of a clone to be made; UsageError where name or size make no sense, AlreadyExists."""
        if not is_clone_name(name):
            raise UsageError(
                f"{name!r} is not a name for a clone: 1 to {_MAX_NAME} of a-z and 0-9, with single . _ - between them, are "
                "expected, without a tag"
            )
        size = base_size if size is None else size
        if not base_size <= size <= _MAX_BYTES or size % BLOCK:
            raise UsageError(
                f"a clone of {origin} has from {base_size} to {_MAX_BYTES} bytes, a multiple of {BLOCK}, and not {size}"
            )
        if self.find(name) is not None:
            raise AlreadyExists(f"there is a clone {name} already: name another, or remove it with `blockmap rm`")
        return size

    def create(self, name: str, origin: str, base: str, pin: str, size: int) -> CloneRecord:
        """Makes a clone of the version with the export name `base`, which `pin` holds; AlreadyExists."""
        return self._table().create(name, self._store, origin, base, pin, size)

    def remove(self, name: str) -> CloneRecord:
        """Removes a clone with all that only it has; UsageError, NotFound, and HostError where it is in use."""
        if not is_clone_name(name):
            raise UsageError(f"{name!r} is no name of a clone: only clones are removed so, and no images")
        record = self.find(name)
        if record is None:
            raise NotFound(f"there is no clone {name}: see `blockmap clones`; images are not removed so")
        table = self._table()
        with owned_clone(clone_folder(self._state, record.id), name, self._holder):
            unpublished = table.captures(record.id)
            if unpublished:
                raise HostError(
                    f"{name} has {len(unpublished)} captures that are not published yet: wait until they are, or forget them "
                    f"with `blockmap commit {name} --drop`"
                )
            table.remove(record)
        _sweep(self._state, table)
        return record

    def prepare(self, record: CloneRecord, base: ReadOnlyVolume) -> None:
        """Leaves little to do to a capture that follows while the clone is open; DiskFull, HostError."""
        volume = self.open(record, base)
        try:
            volume.flush()
            with self._lock:
                entry = self._open[record.name]
            with entry.lock:
                if entry.spare is None:
                    entry.spare = self._new_layer()
        finally:
            self.close(record.name)

    def capture(
        self, record: CloneRecord, base: ReadOnlyVolume, draft: CaptureDraft, skip_unchanged: bool = False
    ) -> int:
        """Captures a clone as it is at one moment; returns the capture's number, or with `skip_unchanged` 0 where nothing was
        written since the last one. DiskFull, HostError: nothing has happened then."""
        captured = 0

        def push(
            volume: CloneVolume, fresh: int, layer: int, extents: Sequence[Held], gone: Sequence[int], stored: int
        ) -> None:
            nonlocal captured
            if skip_unchanged:
                before = {each.layer for each in self._table().captures(record.id)}
                if not volume.has_written(before, _SUPERBLOCK_BYTES):
                    raise _UnchangedError
            captured = self._table().push(fresh, record.id, layer, extents, gone, stored, draft)

        with suppress(_UnchangedError):
            self._freeze(record, base, push)
        return captured

    def fork(self, record: CloneRecord, base: ReadOnlyVolume, forks: Sequence[tuple[str, str]]) -> None:
        """Makes clones of a clone as it is at one moment, all or none, each with a name and a pin on the version of `record`;
        AlreadyExists, DiskFull, HostError, CloneRebased where it has another version by now."""

        def push(
            volume: CloneVolume, fresh: int, layer: int, extents: Sequence[Held], gone: Sequence[int], stored: int
        ) -> None:
            if not self._table().fork(fresh, record, layer, extents, gone, stored, forks):
                raise CloneRebased(f"the clone {record.name} has another version since a moment ago: try again")

        self._freeze(record, base, push)

    def rewind(self, record: CloneRecord, base: str, pin: str) -> None:
        """Puts a clone that nobody has open on a version, and forgets all that was written to it; HostError."""
        table = self._table()
        with owned_clone(clone_folder(self._state, record.id), record.name, self._holder):
            if table.captures(record.id):
                raise HostError(
                    f"{record.name} has captures that are not published yet: wait until they are, or forget them with "
                    f"`blockmap commit {record.name} --drop`"
                )
            self._delete(table.rewind(record.id, base, pin))

    def captures(self, clone: int | None = None) -> list[CaptureRecord]:
        """Returns what is captured of one clone or of all clones of the store, and not published, in order."""
        if not has_clones(self._state):
            return []
        own = {each.record.id for each in read_clones(self._state) if each.record.store == self._store}
        return [each for each in self._table().captures(clone) if each.clone in own]

    def note_conflict(self, capture: int, why: str) -> None:
        self._table().note_conflict(capture, why)

    def redirect(self, capture: CaptureRecord, repo: str, tag: str, force: bool) -> None:
        """Has a capture published under another name, or by force."""
        self._table().redirect(capture.id, repo, tag, force)

    def drop(self, capture: CaptureRecord) -> None:
        """Forgets that something was captured; the clone keeps what was written to it."""
        self._table().drop_capture(capture.id)

    def maps(self, capture: CaptureRecord) -> list[OverlayMap]:
        """Returns the maps of the layers that are captured, the highest first."""
        layers = self._table().layers(self.of_capture(capture))
        return [extents for _, extents in dropwhile(lambda each: each[0] != capture.layer, layers)]

    def of_capture(self, capture: CaptureRecord) -> CloneRecord:
        return self._table().get(capture.clone)

    def rebase(self, record: CloneRecord, capture: CaptureRecord, export: str, base: ReadOnlyVolume) -> None:
        """Puts a clone on the version that a capture of it has become; HostError if another server has it open."""
        table = self._table()
        with self._lock:
            entry = self._open.get(record.name)
        if entry is not None:
            with entry.lock:
                with self._lock:
                    is_open = self._open.get(record.name) is entry
                if is_open and entry.volume is not None:
                    gone = table.rebase(capture, export)
                    entry.volume.rebase(base, capture.layer)
                    self._delete(gone)
                    return
        with owned_clone(clone_folder(self._state, record.id), record.name, self._holder):
            self._delete(table.rebase(capture, export))

    def open(self, record: CloneRecord, base: ReadOnlyVolume) -> CloneVolume:
        """Returns the volume of a clone, whose base is at hand; HostError if another server has it, CloneRebased where it has
        another base by now. `close` must follow."""
        with self._lock:
            entry = self._open.setdefault(record.name, _Entry())
            entry.users += 1
        try:
            with entry.lock:
                if entry.volume is None:
                    with ExitStack() as stack:
                        entry.volume = self._load(record, base, stack)
                        entry.resources = stack.pop_all()
                return entry.volume
        except BaseException:
            self.close(record.name)
            raise

    def close(self, name: str) -> None:
        """Lets go of a clone; if it was the last who had it open, what was written is made durable."""
        with self._lock:
            entry = self._open[name]
            entry.users -= 1
        self._settle(name, entry)

    def names(self) -> list[tuple[str, str]]:
        """Returns the export names of all clones of the store, each with a description."""
        if not has_clones(self._state):
            return []
        found = (each.record for each in read_clones(self._state))
        return [(each.name, f"clone of {each.origin}") for each in found if each.store == self._store]

    def tidy(self) -> set[tuple[Digest, str]]:
        """Removes what crashes have left of layers and clones; returns the pins that clones need: version and holder."""
        if not has_clones(self._state):
            return set()
        found = [(parse_reference(each.record.base).digest, each.record.pin) for each in read_clones(self._state)]
        _sweep(self._state, self._table())
        return {(Digest(digest), pin) for digest, pin in found if digest is not None}

    def end(self) -> None:
        """Makes all durable that was written, and closes all clones; nobody may use them any more."""
        with self._lock:
            entries = dict(self._open)
        for name, entry in entries.items():
            with self._lock:
                entry.users = 0
            self._settle(name, entry)
        if self._made is not None:
            self._made.close()

    def _table(self) -> CloneTable:
        """Returns the record of clones, which is not there on a host that never had one."""
        table = self._made
        if table is None:
            table = CloneTable(self._state)
            with self._lock:
                if self._made is None:
                    self._made = table
                    return table
                spare, table = table, self._made
            spare.close()
        return table

    def _settle(self, name: str, entry: _Entry) -> None:
        """Closes a clone that nobody uses; logs what fails. It stays open where a flush may succeed another time."""
        with entry.lock:
            if self._is_used(name, entry):
                return
            try:
                if entry.volume is not None:
                    entry.volume.flush()
            except DiskFull as error:
                _log.error("what was written to the clone %s is not durable yet: %s", name, error)
                return
            except BlockmapError as error:
                _log.error("what was written last to the clone %s is lost: %s", name, error)
            with self._lock:
                if entry.users:
                    return
                del self._open[name]
            if entry.spare is not None:
                with suppress(BlockmapError):
                    self._forget_layer(entry.spare)
            entry.resources.close()

    def _is_used(self, name: str, entry: _Entry) -> bool:
        with self._lock:
            return entry.users > 0 or self._open.get(name) is not entry

    def _freeze(
        self,
        record: CloneRecord,
        base: ReadOnlyVolume,
        push: Callable[[CloneVolume, int, int, Sequence[Held], Sequence[int], int], None],
    ) -> None:
        """Puts a new layer on a clone's others; `push` stores that, given the clone's volume and the layer's number, with what
        `CloneVolume.freeze` gives."""
        volume = self.open(record, base)
        try:
            with self._lock:
                entry = self._open[record.name]
            with entry.lock:
                fresh, entry.spare = entry.spare, None
            fresh = fresh or self._new_layer()
            try:
                volume.freeze(fresh, partial(push, volume, fresh.number))
            except BaseException:
                self._forget_layer(fresh)
                raise
        finally:
            self.close(record.name)

    def _new_layer(self) -> CloneLayer:
        """Makes a layer that is in no stack yet."""
        number = self._table().add_layer()
        try:
            return CloneLayer(number, ScratchFile(layer_file(self._state, number)), OverlayMap())
        except BaseException:
            self._delete(self._table().forget_layers([number]))
            raise

    def _forget_layer(self, layer: CloneLayer) -> None:
        self._delete(self._table().forget_layers([layer.number]))

    def _delete(self, layers: Sequence[int]) -> None:
        """Removes the files of layers that are not recorded any more; a sweep finds what stays."""
        for layer in layers:
            with suppress(OSError):
                layer_file(self._state, layer).unlink(missing_ok=True)

    def _load(self, record: CloneRecord, base: ReadOnlyVolume, stack: ExitStack) -> CloneVolume:
        folder = clone_folder(self._state, record.id)
        stack.enter_context(owned_clone(folder, record.name, self._holder))
        table = self._table()
        found = table.find(record.name)  # as the one who had it before left it
        if found is None or found.id != record.id:
            raise NotFound(f"the clone {record.name} was removed a moment ago")
        if found.base != record.base:
            raise CloneRebased(f"the clone {record.name} is above {found.base} since a moment ago: try again")
        return load_clone(
            table,
            found,
            base,
            lambda number: ScratchFile(layer_file(self._state, number)),
            folder / "journal",
            boot_id(),
            stack,
        )


def is_clone_name(name: str) -> bool:
    return len(name) <= _MAX_NAME and _NAME.fullmatch(name) is not None


def clone_folder(state: Path, number: int) -> Path:
    """Returns the folder with a clone's lock and journal."""
    return state / "clones" / str(number)


@contextmanager
def owned_clone(folder: Path, name: str, holder: str) -> Iterator[None]:
    """Holds the lock of a clone, and says so in its file; HostError where another has it."""
    try:
        state = folder.parent.parent
        if not (state / "layers").is_dir():
            settle(state / "layers", state)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it matters until the host's end
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot use {folder}: {error.strerror}") from error
    try:
        _wait_lock(fd, name)
        with suppress(OSError):  # it is for messages only
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder.encode(), 0)
        yield
    finally:
        os.close(fd)


def holder_of(folder: Path) -> str | None:
    """Returns who has a clone open; None where nobody has."""
    try:
        fd = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _holder(fd)
    finally:
        os.close(fd)


def _sweep(state: Path, table: CloneTable) -> None:
    """Removes folders and files of clones and layers that are not recorded any more, those that a crash left among them."""
    before = time.time() - _YOUNG_S
    old = [layer for layer in table.loose_layers() if _written(layer_file(state, layer)) < before]
    table.forget_layers([layer for layer in old if not is_in_use(layer_file(state, layer))])
    # In this order: a number is on record before anything has it for a name.
    there = [*state.glob("clones/*"), *state.glob("layers/*")]
    clones, layers = table.known()
    for path in there:
        if path.name.isdecimal() and int(path.name) not in (clones if path.parent.name == "clones" else layers):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _written(path: Path) -> float:
    """Returns when a file was written, in seconds since 1970; what is not there may come any moment."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _wait_lock(fd: int, name: str) -> None:
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise HostError(
                    f"the clone {name} is in use by {_holder(fd)}: it has one writer at a time, detach it there first"
                ) from None
            time.sleep(0.01)


def _holder(fd: int) -> str:
    return os.pread(fd, _HOLDER_BYTES, 0).decode(errors="replace") or "another process"
