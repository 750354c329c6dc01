"""Blobs that are made once for all who read them, and never sent whole unless they are right."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.errors import Corrupt, StoreUnavailable
from blockmap.registry.spool import Spool, SpooledBlob

DATA = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(DATA).digest()


class Maker:
    """Makes a blob in pieces, as far as it is let."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data, self.made, self.others = data, 0, 0
        self.go_on = threading.Semaphore(0)

    def fill(self, blob: SpooledBlob) -> None:
        blob.fill(self.pieces, self.other)

    def pieces(self) -> Iterator[bytes]:
        self.made += 1
        for at in range(0, len(self.data), 10_000):
            self.go_on.acquire()
            yield self.data[at : at + 10_000]

    def other(self) -> None:
        self.others += 1


def test_readers_share_what_is_made_and_get_it_as_it_comes(tmp_path: Path) -> None:
    spool, maker = Spool(tmp_path, 1 << 20), Maker()
    first = spool.read(DIGEST, len(DATA), maker.fill, 0, len(DATA))
    maker.go_on.release()
    assert next(first) == DATA[:10_000]
    with ThreadPoolExecutor(4) as pool:
        rest = [
            pool.submit(lambda at: b"".join(spool.read(DIGEST, len(DATA), maker.fill, at, len(DATA))), at)
            for at in (0, 5, 100_000)
        ]
        maker.go_on.release(100)
        assert [each.result() for each in rest] == [DATA, DATA[5:], DATA[100_000:]]
    assert b"".join(first) == DATA[10_000:]
    assert maker.made == 1


def test_what_is_wrong_is_not_sent_to_its_end(tmp_path: Path) -> None:
    spool, maker = Spool(tmp_path, 1 << 20), Maker(DATA[:-1] + b"x")
    maker.go_on.release(100)
    got = bytearray()
    with pytest.raises(Corrupt):
        got.extend(byte for piece in spool.read(DIGEST, len(DATA), maker.fill, 0, len(DATA)) for byte in piece)
    assert len(got) < len(DATA)
    assert maker.others == 1
    right = Maker()
    right.go_on.release(100)
    assert b"".join(spool.read(DIGEST, len(DATA), right.fill, 0, len(DATA))) == DATA


def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    spool, right = Spool(tmp_path, 1 << 20), Maker()

    def failing() -> Iterator[bytes]:
        yield DATA[:10]
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        list(spool.read(DIGEST, len(DATA), lambda blob: blob.fill(failing, right.other), 0, len(DATA)))
    right.go_on.release(100)
    assert b"".join(spool.read(DIGEST, len(DATA), right.fill, 0, len(DATA))) == DATA
    assert right.others == 0


def test_what_nobody_reads_goes_when_room_is_needed(tmp_path: Path) -> None:
    spool, makers = Spool(tmp_path, len(DATA) + 10), [Maker(bytes([n]) * 1000 + DATA[1000:]) for n in range(3)]
    for maker in makers:
        maker.go_on.release(1000)
        digest = hashlib.sha256(maker.data).digest()
        for _ in range(2):
            assert b"".join(spool.read(digest, len(DATA), maker.fill, 0, len(DATA))) == maker.data
    digest = hashlib.sha256(makers[0].data).digest()
    assert b"".join(spool.read(digest, len(DATA), makers[0].fill, 0, len(DATA))) == makers[0].data
    assert [maker.made for maker in makers] == [2, 1, 1]
