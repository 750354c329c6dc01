"""A layer's file on a disk that forgets what was not synced, a page at a time, when the power is cut."""

import os
import random
from pathlib import Path

from blockmap.durable import Buffer
from blockmap.errors import DiskFull
from blockmap.format import BLOCK
from blockmap.volume.scratch import ScratchFile


class PowerCut(BaseException):
    """Ends whatever runs, as a crash does."""


Unsynced = dict[int, list[bytes]]
"""By page: what it had when it was last synced, then after each change."""


class VolatileFile(ScratchFile):
    """A real file, of which `cut` leaves any of the contents that each page had since the last sync."""

    def __init__(self, path: Path, since: Unsynced | None = None) -> None:
        """`since` is what a process that had it before left unsynced."""
        super().__init__(path)
        self.path = path
        self.full = False
        self._since: Unsynced = {} if since is None else since

    def write(self, data: Buffer, offset: int) -> None:
        if self.full:
            raise DiskFull("no room left")
        self._note(offset, len(data))
        super().write(data, offset)
        self._note(offset, len(data))

    def punch(self, offset: int, count: int) -> None:
        self._note(offset, count)
        super().punch(offset, count)
        self._note(offset, count)

    def write_zeros(self, offset: int, count: int) -> None:
        self._note(offset, count)
        super().write_zeros(offset, count)
        self._note(offset, count)

    def sync(self) -> None:
        super().sync()
        self._since.clear()

    def cut(self, choice: random.Random) -> None:
        """Makes the file what a power cut may leave."""
        for page, had in self._since.items():
            super().write(choice.choice(had), page * BLOCK)
        self._since.clear()

    def _note(self, offset: int, count: int) -> None:
        with open(self.path, "rb") as file:
            for page in range(offset // BLOCK, (offset + count - 1) // BLOCK + 1):
                now = os.pread(file.fileno(), BLOCK, page * BLOCK).ljust(BLOCK, b"\0")
                self._since.setdefault(page, []).append(now)
