"""Opens the layers and the journal of a clone that this process owns."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from blockmap.volume.clone import CloneLayer, CloneVolume, LayerFile
from blockmap.volume.clone_table import CloneRecord, CloneTable
from blockmap.volume.overlay import Held
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.write_journal import WriteJournal

_log = logging.getLogger(__name__)


class OpenFile(LayerFile, Protocol):
    def close(self) -> None: ...


def load_clone(
    table: CloneTable,
    record: CloneRecord,
    base: ReadOnlyVolume,
    open_file: Callable[[int], OpenFile],
    journal: Path,
    boot: bytes,
    stack: ExitStack,
) -> CloneVolume:
    """Returns the volume of a clone; `stack` closes what it opens.

    `open_file` opens a layer by its number, and `boot` is the id of this boot. DiskFull, HostError, FormatError.
    """
    layers = []
    for number, extents in table.layers(record):
        file = open_file(number)
        stack.callback(file.close)
        layers.append(CloneLayer(number, file, extents))
    notes = WriteJournal(journal, boot, record.stored)
    stack.callback(notes.close)
    number = record.stored
    for change in notes.found:
        layers[0].map.put(change.start, change.end, change.kind)
        number = change.number + 1
    if notes.found:
        _log.info("clone %s: %d changes since its last flush are kept", record.name, len(notes.found))

    def keep(layer: int, extents: Sequence[Held], gone: Sequence[int], stored: int) -> None:
        table.keep(record.id, layer, extents, gone, stored)

    return CloneVolume(record.name, record.size, base, layers, notes, keep, record.stored, number)
