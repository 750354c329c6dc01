"""What connections share, and that one more costs the same however many there are."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import cast

import pytest

from blockmap.format.digest import ABSENT, Digest
from blockmap.format.refs import parse_reference
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy
from blockmap.replay.replay import Replay
from blockmap.server.opener import ResolvedStart
from blockmap.server.registry import Registry
from blockmap.store.memory import MemoryStore
from blockmap.store.resolver import Resolved
from tests.volume.opened import opened

ROOT = Root(ABSENT, 100)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with opened(MemoryStore(), ROOT, tmp_path) as view:
        yield Registry(view.fetcher)


def found(label: str = "default", replay: Replay | None = None, number: int = 1) -> ResolvedStart:
    """One of many versions, all of zeros, and the bundle that is replayed for its start."""
    name = Digest(number.to_bytes(32))
    version = Version(ROOT, ROOT, WriterLayout(0, 0))
    return ResolvedStart(Resolved(parse_reference(f"a@sha256:{name.hex()}+{label}"), name, version, ROOT), replay)


def bundle() -> Replay:
    return cast(Replay, object())


def steps(act: Callable[[], object]) -> int:
    """How many calls an act makes, of functions of Python's and of C."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def test_one_more_connection_costs_the_same_however_many_there_are(registry: Registry) -> None:
    registry.open(found(), DEFAULT)
    costs = []
    for _ in range(2):
        costs.append([steps(lambda: registry.open(found(), DEFAULT)), steps(lambda: registry.note_profile(found(), 1))])
        costs[-1].append(steps(registry.open(found(), DEFAULT).close))
        for number in range(300):
            registry.open(found(number=number), DEFAULT)
    assert costs[0] == costs[1]


def test_a_volume_is_shared_by_those_of_its_policy(registry: Registry) -> None:
    one, two = registry.open(found(), DEFAULT), registry.open(found("migrate"), DEFAULT)
    other = registry.open(found(), OutagePolicy(0))
    assert one.volume is two.volume is not other.volume
    one.close()
    assert registry.open(found(), DEFAULT).volume is two.volume
    other.close()
    assert [each["connections"] for each in registry.status()["exports"]] == [2]  # type: ignore[attr-defined]


def test_a_start_is_that_of_the_latest_connections(registry: Registry) -> None:
    """While another bundle is replayed for those who come later, the earlier start stays that of its own connections."""
    first, second = bundle(), bundle()
    one, two = registry.open(found(replay=first), DEFAULT), registry.open(found(replay=second), DEFAULT)
    assert (one.is_first, two.is_first) == (True, True)
    three = registry.open(found(), DEFAULT)
    assert three.start is two.start is not one.start
    registry.note_profile(found(), 7)
    assert (one.start.profile, two.start.profile) == (7, 7)
    two.close()
    three.close()
    four = registry.open(found(), DEFAULT)
    assert four.start is one.start
    one.close()
    four.close()
    assert registry.open(found(), DEFAULT).start.profile == 0
