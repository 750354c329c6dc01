"""The cache is looked through while nobody asks."""

import threading
from pathlib import Path

import pytest

from blockmap.cache.cache import Cache
from blockmap.cache.scrubber import Scrubber
from blockmap.format import BLOCK

from .contents import content, name


def test_damage_that_nobody_reads_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path, 1 << 20)
    slots = [cache.put(name(number), content(number, 3 * BLOCK)) for number in range(20)]
    with open(tmp_path / "data", "r+b") as file:
        file.seek(cache.data_position(slots[7]) + 100)
        file.write(b"\xff\x00")
    looked = threading.Event()

    def scrub(limit_bytes: int) -> None:
        cache.scrub(limit_bytes)
        looked.set()

    scrubber = Scrubber(cache.look_after, scrub, every_s=0)
    assert looked.wait(30)
    scrubber.close()
    assert cache.lookup(name(7)) < 0
    assert all(cache.get(name(number)) is not None for number in range(20) if number != 7)
    assert cache.status()["damaged"] == 1
    assert "is damaged; it is dropped" in caplog.text
    cache.close()


def test_it_ends_at_once() -> None:
    Scrubber(lambda: None, lambda limit_bytes: None, every_s=3600).close()
