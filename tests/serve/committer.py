"""A host that commits a clone to one name again and again: python -m tests.serve.committer URL NAME WHO BLOCK MOVES FOLDER.

Each commit counts up in a block of this host's own. Where another host was faster, the host opens what the name stands for now,
which must have what it has counted up to, and tries again. It prints what it has made: the number of the entry, the version
below, the version; and what it was told when it lost.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from blockmap.commit.task import PublishedCapture
from blockmap.errors import NameMoved, StoreError
from blockmap.format import BLOCK
from blockmap.server.server import Server
from blockmap.store.log import nonce
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from blockmap.volume.clone import CloneVolume
from blockmap.volume.clone_table import CaptureDraft
from tests.commit.in_process import InProcess

_T = TypeVar("_T")


class Committer:
    def __init__(self, url: str, name: str, who: str, block: int, where: Path) -> None:
        self._url, self._name, self._who, self._at = url, name, who, block * BLOCK
        self.told: list[str] = []

        publisher = InProcess(url, where / "state")
        self.server = insist(
            lambda: Server(url, where / "cache", 1 << 28, state=where / "state", publisher=publisher, hydrate=False)
        )
        insist(lambda: self.server.clone(name, who, None))

    def commit(self, number: int) -> tuple[int, str, str]:
        """Counts up to `number` in the version that the name stands for."""
        repo, tag = self._name.split(":")
        while True:
            below = insist(lambda: self._count(number))
            draft = CaptureDraft(repo, tag, False, f"{self._who} {number}", self._who, "[]", nonce())
            captured = insist(partial(self.server.capture, self._who, draft))
            try:
                while not isinstance(done := self.server.published(captured, 10), PublishedCapture):
                    pass
                return done.entry, below, done.export
            except NameMoved as error:
                self.told.append(str(error))
                insist(lambda: self.server.settle_captures(self._who, True, None, False))
                insist(lambda: self.server.rewind(self._who, self._newest()))

    def _newest(self) -> str:
        """Returns what the name stands for, past what this host has confirmed a moment ago."""
        repo, tag = self._name.split(":")
        entry = NameReader(open_store(self._url)[0]).newest(repo, tag)
        assert entry is not None
        assert entry.version is not None
        return f"{repo}@sha256:{entry.version.hex()}"

    def _count(self, number: int) -> str:
        """Writes a number in place of the one before; returns the version below the clone."""
        opened = self.server.open(self._who)
        try:
            assert isinstance(opened.volume, CloneVolume)
            buf = bytearray(8)
            opened.volume.reader(opened.start)(memoryview(buf), self._at)
            assert int.from_bytes(buf, "little") in (number - 1, number), f"{self._who} lost {number - 1}: {buf!r}"
            opened.volume.write(number.to_bytes(8, "little") * (BLOCK // 8), self._at)
            return opened.volume.base.name
        finally:
            opened.close()


def insist(act: Callable[[], _T]) -> _T:
    """Tries again where the store did not answer."""
    for _ in range(50):
        try:
            return act()
        except StoreError as error:
            print(error, file=sys.stderr)
            time.sleep(0.1)
    return act()


def main(url: str, name: str, who: str, block: str, moves: str, where: str) -> None:
    host = Committer(url, name, who, int(block), Path(where))
    made = [host.commit(number) for number in range(1, int(moves) + 1)]
    host.server.close()
    print(json.dumps({"made": made, "told": host.told}))


if __name__ == "__main__":
    main(*sys.argv[1:])
