"""Stores with a clock that tests move, images in them, and collections as tests make them."""

import json
from pathlib import Path

from blockmap.format.refs import parse_reference
from blockmap.image.importer import Importer
from blockmap.image.layer import config_chains
from blockmap.image.sources import open_source
from blockmap.store.memory import MemoryStore
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import parse_format
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.upkeep.collect import Collector
from blockmap.upkeep.verify import check_version
from tests.image.builder import bulk
from tests.image.layouts import archive, file, layout

HOUR = 3600.0
DAY = 24 * HOUR
GRACE, KEEP = HOUR, DAY
FORMAT = json.dumps(
    {
        "chunker": {"bits": 4, "hash": "xxh3-64", "max": 64, "min": 4},
        "may": [],
        "requires": [],
        "store": "5f0c2c5e-8f0d-4a55-9f0a-2f6f3b1b7a11",
        "version": 1,
    }
).encode()
BASE = archive([file("shared", bulk(1, 200_000))])
OWN = {name: archive([file("own", bulk(number, 60_000))]) for number, name in enumerate("abc", 2)}


class Clocked(MemoryStore):
    """A store with a clock of its own."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0
        super().__init__("memory:", lambda: self.seconds)

    def copy(self) -> "Clocked":
        """Returns another store with the same objects."""
        made = Clocked()
        made.seconds = self.seconds
        made._objects, made._modified = dict(self._objects), dict(self._modified)
        return made


def put(store: Clocked, name: str, work: Path, to: str = "") -> None:
    where = work / f"image-{name}"
    source = where if where.exists() else layout(where, [BASE, OWN[name]])
    found = open_source(f"oci:{source}", platform="linux/amd64", work=work)
    try:
        repo, tag = (to or f"{name}:1").split(":")
        Importer(store, parse_format(FORMAT, store.url), lambda said: None).run(found, repo, tag)
    finally:
        found.close()


def collector(store: Clocked, keep: float = KEEP) -> Collector:
    return Collector(store, keep, GRACE, config_chains)


def collect(store: Clocked, keep: float = KEEP) -> int:
    """Condemns and sweeps, after what was kept has got old; returns how many objects were deleted."""
    store.seconds += keep + GRACE + 1
    one = collector(store, keep)
    assert one.condemn(one.state(), one.plan(one.state()))
    store.seconds += GRACE + 1
    assert one.due_in(one.state()) <= 0
    return one.sweep(one.state()).objects


def remove(store: Clocked, name: str) -> None:
    NameLog(store).remove(NameTarget(name, "1"), "")


def faults(store: Clocked, name: str) -> list[str]:
    repository = Repository(store)
    found = find_version(repository, parse_reference(name))
    return [fault.message for fault in check_version(repository, found.version)]


def check_all(store: Clocked) -> None:
    """Checks that all that a name stands for is whole."""
    for (repo, tag), _ in NameLog(store).catalogue().items():
        entry = NameLog(store).newest(repo, tag)
        if entry is not None and entry.version is not None:
            assert faults(store, f"{repo}:{tag}") == []
