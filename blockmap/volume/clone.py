"""A volume that clients write to: layers of local extents above a version.

A change goes to the highest layer: bytes into its scratch file, then the range into its map, then a note of that into the
journal; then it is answered. `flush` takes the map's changes as they are, makes the scratch file durable, then stores these
changes in one transaction: whatever the stored map says is in the file, is there. So after a crash each byte has a value
written since the last flush that finished, or that flush's value. After a mere end of the process, the kernel has the files
as they were, and the journal says which changes the stored map lacks: nothing that was answered is lost, as a client that
connects again and flushes expects.

Space is given back at once where zeros take the place of bytes: the hole reads as the zeros that were written, whichever
map is stored.
"""

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from blockmap.durable import Buffer
from blockmap.errors import DiskFull, HostError
from blockmap.format import BLOCK
from blockmap.format.chunker import MAX_BLOCKS, SPAN
from blockmap.volume.overlay import Held, Kind, OverlayMap, OverlayPiece, look
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.reads import Read, ReadRecorder, Slow, Source
from blockmap.volume.start import Start
from blockmap.volume.write_journal import RECORDS, MapChange

_GRAIN_BITS: Final = 16
"""The overlay is looked up for reads of a grain that some change touched; 64 KiB is the least grain."""
_GRAINS_BITS: Final = 22
"""At most 4 Mi grains, one byte each, for volumes of more than 256 GiB."""
_SPAN_BITS: Final = (SPAN * BLOCK).bit_length() - 1
"""Bits of 16 MiB, which a leaf covers."""
_ZEROS = bytes(1 << 20)
_EXTENTS_AT_ONCE = 1024
"""With so many extents a block status ends; clients ask on."""
_DATA: Final = Kind.DATA
"""Looking a member up in its class takes a good part of what a small write does."""
_LOOK_BYTES = 64 << 20
"""Bytes of the overlay that a block status looks up at once: others wait meanwhile."""


class LayerFile(Protocol):
    """The bytes of one layer, at the volume's offsets. All methods but `punch` raise DiskFull or HostError."""

    def read(self, buf: memoryview, offset: int) -> None: ...

    def write(self, data: Buffer, offset: int) -> None: ...

    def write_zeros(self, offset: int, count: int) -> None: ...

    def punch(self, offset: int, count: int) -> None: ...

    def sync(self) -> None: ...


class ChangeNotes(Protocol):
    """Notes of the changes that are not stored yet; DiskFull, HostError."""

    def write(self, change: MapChange) -> None: ...


Keep = Callable[[int, Sequence[Held], Sequence[int], int], None]
"""Stores changes of a layer's map, in one durable transaction: the layer, extents by their starts, starts where there is none
any more, and the first change that is not among them. DiskFull, HostError."""


@dataclass(slots=True, eq=False)
class CloneLayer:
    """One layer; its volume's lock guards map and count."""

    number: int
    file: LayerFile
    map: OverlayMap
    writers: int = 0
    """Changes under way."""


class CloneVolume:
    """A clone that is open: a Volume. One object for each clone, however many clients it has, so that what one of them flushes
    is durable for all."""

    writable = True

    def __init__(
        self,
        name: str,
        size: int,
        base: ReadOnlyVolume,
        layers: Sequence[CloneLayer],
        journal: ChangeNotes,
        keep: Keep,
        stored: int = 0,
        number: int = 0,
    ) -> None:
        """`layers` has the highest first, whose map has all changes before `number`, and is stored with those before `stored`."""
        self._name = name
        self._size = size
        self._base = base
        self._journal = journal
        self._keep = keep
        # Held while a flush is under way, across I/O of the local disk; _lock is taken while it is held.
        self._turn = threading.Lock()
        self._failed = ""
        """Why nothing more is written, once the disk has lost something; guarded by _turn, read without it."""
        # Guards what follows; never held across I/O, nor while another lock is taken.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        """Notified when the last change under way ends that `freeze` waits for, and when changes may begin again."""
        self._freezing = False
        """True while no change may begin."""
        self._layers = tuple(layers)
        self._maps = tuple(layer.map for layer in layers)
        self._number, self._stored = number, stored
        """The numbers of the next change, and of the first that is not stored."""
        self._answered = 1
        """Counts changes of any kind, and what the layers had before as one. Bytes are in the file before they count."""
        self._flushed = 0
        """The value of `_answered` up to which all is durable."""
        self._shift = max(_GRAIN_BITS, max(size - 1, 0).bit_length() - _GRAINS_BITS)
        self._touched = bytearray(((size - 1) >> self._shift) + 1)
        """One byte a grain: 1 where a read may have to look into the layers, or ends behind the base. Set while locked, and
        read without: a read that comes after a change was answered sees it."""
        self._near = bytearray(len(self._touched))
        """The same for a read of one extent that begins in a grain, however long it is."""
        self._reach = -(-MAX_BLOCKS * BLOCK >> self._shift)
        """The grains that such a read may have behind its first one."""
        for each in self._maps:
            for start, end, _ in each:
                self._touch(start, end)
        if size > base.size:
            self._touch(base.size, size)
        self._led_to: set[int] = set()
        """Spans of the tree whose nodes were wanted, so that a commit does not wait for them; adding to it needs no lock."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    @property
    def base(self) -> ReadOnlyVolume:
        """Returns the version below the layers."""
        return self._base

    @property
    def waiting(self) -> int:
        return self._base.waiting

    @property
    def untouched(self) -> bool:
        """Returns True if nothing was written yet, so that all bytes are the base's."""
        with self._lock:
            return not any(map(len, self._maps))

    def has_written(self, captured: Collection[int], offset: int) -> bool:
        """Returns True if the layers above the highest of `captured`, all where none of these is there, have anything behind an
        offset."""
        with self._lock:
            for layer in self._layers:
                if layer.number in captured:
                    break
                if layer.map.end() > offset:
                    return True
        return False

    def reader(self, start: Start, recorder: ReadRecorder | None = None) -> Read:
        """Returns a function that raises what the base's does, and HostError. What a layer has is not noted: whoever learns
        from reads learns what starts need of the image."""
        bound = self._base, self._base.reader(start, recorder)
        hot_of, dead, used, fd = self._base.hit_path()
        near, touched, shift = self._near, self._touched, self._shift
        preadv, bisect, find = os.preadv, bisect_right, touched.find
        mask, span_bits = (1 << _SPAN_BITS) - 1, _SPAN_BITS

        def slowly(buf: memoryview, offset: int) -> Slow | None:
            nonlocal bound, hot_of
            base = self._base
            if bound[0] is not base:  # the clone was put on a version that has what a layer had
                bound, hot_of = (base, base.reader(start, recorder)), base.hit_path().hot_of
            first, last = offset >> shift, offset + len(buf) - 1 >> shift
            if not touched[first] and (first == last or find(1, first + 1, last + 1) < 0):
                return bound[1](buf, offset)
            with self._lock:
                base, layers, pieces = self._base, self._layers, look(self._maps, offset, offset + len(buf))
            mine = bound
            below = mine[1] if mine[0] is base else base.reader(start, recorder)
            return self._read_merged(below, base.size, layers, pieces, buf, offset)

        def read(buf: memoryview, offset: int) -> Slow | None:
            # As the base's own reader does, and not through it: that would cost each read 10 %.
            if not near[offset >> shift]:
                hot = hot_of(offset >> span_bits)
                if hot is not None:
                    starts, ends, places = hot
                    at = offset & mask
                    i = bisect(starts, at) - 1
                    if i >= 0 and at + len(buf) <= ends[i]:
                        place, slot = places[i]
                        if slot >= 0 and preadv(fd, (buf,), place + at) == len(buf) and not dead[slot]:
                            used[slot] = 1
                            return None
            return slowly(buf, offset)

        return read if recorder is None else slowly

    def extents(self, offset: int, count: int, start: Start) -> list[tuple[int, int, bool]]:
        found: list[tuple[int, int, bool]] = []
        at, end = offset, min(offset + count, self._size)
        while at < end and len(found) < _EXTENTS_AT_ONCE:
            with self._lock:
                pieces = look(self._maps, at, min(end, at + _LOOK_BYTES))
            for piece in pieces:
                found += self._piece_extents(piece, start)
            at = pieces[-1].end
        return found

    def want(self, offset: int, count: int, start: Start) -> None:
        if offset < self._base.size:
            self._base.want(offset, count, start)

    def want_nodes(self, offset: int) -> None:
        if offset < self._base.size:
            self._base.want_nodes(offset)

    def write(self, data: Buffer, offset: int) -> None:
        """Writes bytes; DiskFull, HostError."""
        layer = self._begin()
        try:
            layer.file.write(data, offset)
            self._put(layer, offset, offset + len(data), _DATA)
        finally:
            self._end(layer)

    def zero(self, offset: int, count: int, *, allocate: bool = False) -> None:
        """Makes a range zeros; with `allocate`, later writes to it find room. DiskFull, HostError."""
        layer = self._begin()
        try:
            if allocate:
                layer.file.write_zeros(offset, count)
                self._put(layer, offset, offset + count, Kind.DATA)
            elif self._put(layer, offset, offset + count, Kind.ZEROS):
                layer.file.punch(offset, count)
        finally:
            self._end(layer)

    def trim(self, offset: int, count: int) -> None:
        """Makes a range zeros: the kernel's loop driver turns a wish for zeros into a trim. DiskFull, HostError."""
        self.zero(offset, count)

    def flush(self) -> None:
        """Makes all durable that was answered before the call; DiskFull, after which it may be tried again, HostError."""
        with self._lock:
            wanted = self._answered
        with self._turn:
            if self._flushed >= wanted:
                return  # one that began later has done it
            self._store(self._keep)

    def freeze(self, fresh: CloneLayer, push: Keep) -> None:
        """Puts a new layer on the others, and freezes the one below it as it is at one moment: whatever began after
        another change was answered is frozen only if that is. Changes wait meanwhile.

        `push` stores what `keep` would, and the new stack with it, in one transaction. DiskFull, HostError; nothing has
        happened then.
        """
        self.flush()  # so that little is left to do while changes wait
        with self._turn:
            try:
                with self._lock:
                    self._freezing = True
                    while self._layers[0].writers:
                        self._idle.wait()
                self._store(push)
                with self._lock:
                    self._layers = (fresh, *self._layers)
                    self._maps = tuple(layer.map for layer in self._layers)
            finally:
                with self._lock:
                    self._freezing = False
                    self._idle.notify_all()

    def rebase(self, base: ReadOnlyVolume, layer: int) -> list[CloneLayer]:
        """Puts the clone on a version that has what its layers up to `layer` have, in place of them; returns these.

        Reads that have begun may use them for a moment more.
        """
        with self._turn, self._lock:
            at = next(at for at, each in enumerate(self._layers) if each.number == layer)
            gone = self._layers[at:]
            self._layers, self._base = self._layers[:at], base
            self._maps = tuple(each.map for each in self._layers)
        return list(gone)

    def _store(self, keep: Keep) -> None:
        """Makes durable what is answered; the turn is held."""
        if self._failed:
            raise HostError(self._failed)
        with self._lock:
            layer, answered, number = self._layers[0], self._answered, self._number
            changed, found = layer.map.take_changed()
        try:
            self._sync(layer)
            if changed or keep is not self._keep:
                gone = [start for start, extent in zip(changed, found, strict=True) if extent is None]
                keep(layer.number, [extent for extent in found if extent is not None], gone, number)
        except BaseException:
            with self._lock:
                layer.map.put_back(changed)
            raise
        with self._lock:
            self._flushed, self._stored = answered, number

    def _piece_extents(self, piece: OverlayPiece, start: Start) -> list[tuple[int, int, bool]]:
        at, end, _, kind = piece
        if kind is not None:
            return [(at, end - at, kind == Kind.ZEROS)]
        found: list[tuple[int, int, bool]] = []
        inside = min(end, self._base.size)
        while at < inside:
            found += self._base.extents(at, inside - at, start)
            at = found[-1][0] + found[-1][1]
        return found if at == end else [*found, (at, end - at, True)]

    def _sync(self, layer: CloneLayer) -> None:
        try:
            layer.file.sync()
        except (DiskFull, HostError) as error:
            # The kernel may have thrown away what it could not write, and would not say so a second time.
            self._failed = f"{self._name} takes no more writes until it is opened again, as its disk lost some: {error}"
            raise HostError(self._failed) from error

    def _begin(self) -> CloneLayer:
        """Returns the layer to which a change goes, and which is not frozen before `_end` is called."""
        while True:
            if self._failed:
                raise HostError(self._failed)
            with self._lock:
                while self._freezing:
                    self._idle.wait()
                layer = self._layers[0]
                noted = self._number + layer.writers - self._stored
                # One change makes room in the journal, once half of it is taken; the others do not wait for it.
                if noted < RECORDS // 2 or (noted < RECORDS and self._turn.locked()):
                    layer.writers += 1
                    return layer
            self.flush()

    def _put(self, layer: CloneLayer, start: int, end: int, kind: Kind) -> bool:
        """Puts a change into the map, and notes it; returns True if zeros took the place of bytes."""
        with self._lock:
            self._answered += 1
            had = kind is not _DATA and layer.map.has(start, end, _DATA)
            if start == end or not layer.map.put(start, end, kind):
                return False
            self._touch(start, end)
            number = self._number
            self._number += 1
        self._journal.write(MapChange(number, start, end, kind))
        for span in (start >> _SPAN_BITS, end - 1 >> _SPAN_BITS):
            if span not in self._led_to:
                self._led_to.add(span)
                self.want_nodes(span << _SPAN_BITS)
        return had

    def _end(self, layer: CloneLayer) -> None:
        with self._lock:
            layer.writers -= 1
            if self._freezing and not layer.writers:
                self._idle.notify_all()

    def _touch(self, start: int, end: int) -> None:
        first, last = start >> self._shift, (end - 1 >> self._shift) + 1
        if last - first == 1 and self._touched[first]:
            return
        self._touched[first:last] = b"\1" * (last - first)
        first = max(first - self._reach, 0)
        self._near[first:last] = b"\1" * (last - first)

    @staticmethod
    def _read_merged(
        below: Read,
        size: int,
        layers: Sequence[CloneLayer],
        pieces: Sequence[OverlayPiece],
        buf: memoryview,
        offset: int,
    ) -> Slow | None:
        """Reads pieces of `layers` and of what is below them, which has `size` bytes."""
        began = time.perf_counter()
        if len(pieces) == 1 and pieces[0].kind is None and pieces[0].end <= size:
            return below(buf, offset)
        source = Source.ZEROS
        for piece in pieces:
            part = buf[piece.start - offset : piece.end - offset]
            source = max(source, _read_piece(below, size, layers, piece, part))
        return Slow(source, time.perf_counter() - began)


def _read_piece(below: Read, size: int, layers: Sequence[CloneLayer], piece: OverlayPiece, buf: memoryview) -> Source:
    if piece.kind == Kind.DATA:
        layers[piece.level].file.read(buf, piece.start)
        return Source.LOCAL
    source, inside = Source.ZEROS, 0
    if piece.kind is None and piece.start < size:
        inside = min(piece.end, size) - piece.start
        slow = below(buf[:inside], piece.start)
        source = Source.CACHE if slow is None else slow.source
    for at in range(inside, len(buf), len(_ZEROS)):
        part = buf[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
    return source
