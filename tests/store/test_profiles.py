"""The log of profiles: numbers, races, lost answers; bundles of real volumes, and what the hints of names say of them."""

from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import or_

import pytest

from blockmap.errors import Corrupt, StoreUnavailable
from blockmap.format import BLOCK, bundle, hint, keys
from blockmap.format.profile import Profile, ProfileItem
from blockmap.format.reading_list import ReadItem
from blockmap.learn import build_bundle
from blockmap.learn.stored_index import index_of
from blockmap.publish.object_writer import put
from blockmap.store.bundles import newest_bundles
from blockmap.store.memory import MemoryStore
from blockmap.store.names import NameLog
from blockmap.store.packs import Packs
from blockmap.store.profiles import ProfileLog, ProfileReader
from blockmap.store.repository import Repository
from blockmap.store.walk import nodes
from tests.image.builder import bulk
from tests.learn.volumes import ROOT, digest
from tests.store.faulty import Faulty
from tests.volume import building

REPO, LABEL = "team/redis", "a/b"
ITEM = ProfileItem(0, 1, digest("c"), 0, None, 0, 0, 1)
MADE = Profile(REPO, LABEL, 0, digest("v"), ROOT, 1, [ITEM])


def log_of(store: MemoryStore | Faulty) -> ProfileLog:
    return ProfileLog(store, clock=lambda: 1_700_000_000.0)


def test_numbers_are_dense_and_the_newest_is_found() -> None:
    store = MemoryStore()
    log = log_of(store)
    assert log.newest(REPO, LABEL) is None
    for n in range(1, 12):
        assert log.append(MADE).n == n
        found = ProfileReader(store).newest(REPO, LABEL)
        assert found is not None
        assert (found.n, found.items, found.time) == (n, [ITEM], 1_700_000_000)
    log.append(replace(MADE, label="default"))
    assert log.labels(REPO) == {LABEL: 11, "default": 1}
    assert log.labels("team") == {}
    assert log.all() == {(REPO, LABEL): 11, (REPO, "default"): 1}


def test_of_two_publishers_both_get_a_number() -> None:
    store = Faulty(MemoryStore())
    other = log_of(store.inner)  # type: ignore[arg-type]
    store.before_create = lambda: [other.append(replace(MADE, starts=9)) for _ in range(3)] and None
    assert log_of(store).append(MADE).n == 4
    assert [other.get(REPO, LABEL, n).starts for n in (1, 2, 3, 4)] == [9, 9, 9, 1]


def test_a_lost_answer_makes_no_second_profile() -> None:
    store = Faulty(MemoryStore())
    store.lose_answer = True
    assert log_of(store).append(MADE).n == 1
    assert log_of(store).number(REPO, LABEL) == 1
    store.fail_create = True
    with pytest.raises(StoreUnavailable):
        log_of(store).append(MADE)


def test_a_damaged_profile_is_corrupt() -> None:
    store = MemoryStore()
    store.create(keys.profile(REPO, LABEL, 1), [b"junk"])
    with pytest.raises(Corrupt, match="profile 1 of"):
        log_of(store).newest(REPO, LABEL)


def test_the_last_of_this_host_is_found_below_those_of_others() -> None:
    log = log_of(MemoryStore())
    mine = log.append(MADE)
    assert log.latest_by(mine.host, REPO, LABEL) == mine
    assert log.latest_by("elsewhere", REPO, LABEL) is None


# --- bundles

SIZE = 3 * 4096
PIECES = [
    (0, bulk(1, 40 * BLOCK)),
    (100, bulk(2, 200 * BLOCK)),
    (4090, bulk(3, 20 * BLOCK)),
    (9000, bytes([7]) * BLOCK * 9),
]
READINGS = [
    ReadItem(4095, 2, None, 0),
    ReadItem(150, 64, b"bin/sh", 4),
    ReadItem(5, 1, None, 0),
    ReadItem(9001, 3, None, 0),
    ReadItem(50, 60, None, 0),  # zeros, and then ten blocks
]


def test_a_bundle_holds_what_is_read_and_nothing_else() -> None:
    store = MemoryStore()
    root = building.publish(store, PIECES, SIZE)
    model = building.model(PIECES, SIZE)
    repository = Repository(store)
    parts, length = build_bundle.build_bundle(repository, root, READINGS, 1000)
    data = b"".join(parts)
    head = Packs.open_bundle(data[:length])
    assert head.read_items == READINGS
    assert head.image_blocks == 1000
    frames = [Packs.open_frame(head, at, data[own.offset : own.end]) for at, own in enumerate(head.frames)]
    held: dict[bytes, tuple[int, bytes]] = {}
    for piece in head.pieces:
        here = frames[piece.frame][piece.offset : piece.offset + piece.mask.bit_count() * BLOCK]
        assert bundle.is_good(piece, here)
        held[piece.chunk] = piece.mask, bytes(bundle.spread(piece, here))
    wanted = {block for own in READINGS for block in range(own.start, own.start + own.blocks)}
    seen: dict[bytes, int] = {}
    for extent in index_of(repository, root).extents:
        assert extent.chunk is not None
        for at in range(extent.length):
            mask, content = held.get(extent.chunk, (0, b""))
            block = extent.first + at
            if extent.start + at in wanted:
                assert mask >> block & 1
                start = (extent.start + at) * BLOCK
                assert content[block * BLOCK : (block + 1) * BLOCK] == model[start : start + BLOCK]
                seen[extent.chunk] = seen.get(extent.chunk, 0) | 1 << block
    assert {chunk: mask for chunk, (mask, _) in held.items()} == seen
    stored: set[bytes] = set()
    list(nodes(root, lambda refs: repository.packs.nodes(refs, lambda _, frame: stored.add(frame))))
    found = [bytes(frames[own.frame][own.offset : own.offset + own.length]) for own in head.nodes]
    assert set(found) == stored
    assert head.nodes[0].node == root.digest


def test_what_comes_besides_comes_last_and_once() -> None:
    store = MemoryStore()
    root = building.publish(store, PIECES, SIZE)
    repository = Repository(store)
    parts, length = build_bundle.build_bundle(repository, root, READINGS, 1000)
    alone = Packs.open_bundle(b"".join(parts)[:length])
    watched = building.Watched(store)
    parts, length = build_bundle.build_bundle(
        Repository(watched), root, READINGS, 1000, True, [(9000, 9), (0, 40), (200, 1)]
    )
    packs = sorted((key, start, end) for key, start, end in watched.ranges)
    assert all(one[0] != two[0] or one[2] <= two[1] for one, two in pairwise(packs)), "nothing is read twice"
    head = Packs.open_bundle(b"".join(parts)[:length])
    assert head.read_items == READINGS
    count = len(alone.pieces)
    assert [(own.chunk, own.mask) for own in head.pieces[:count]] == [(own.chunk, own.mask) for own in alone.pieces]
    masks: dict[bytes, list[int]] = {}
    for own in head.pieces:
        masks.setdefault(own.chunk, []).append(own.mask)
    assert all(sum(own) == reduce(or_, own) for own in masks.values()), "no block twice"
    first = next(own.frame for own in head.pieces[count:])
    assert head.listed_frames >= first, "zeros are listed as well"
    assert alone.listed_frames == len(alone.frames)
    before = sum(own.mask.bit_count() for own in alone.pieces)
    assert sum(own.mask.bit_count() for own in head.pieces) - before == 6 + 39


def test_only_nodes_above_what_is_read_are_there() -> None:
    store = MemoryStore()
    root = building.publish(store, PIECES, SIZE)
    parts, length = build_bundle.build_bundle(Repository(store), root, [ReadItem(9001, 1, None, 0)], 1000)
    head = Packs.open_bundle(b"".join(parts)[:length])
    assert len(head.nodes) == 2
    assert len(head.pieces) == 1


def test_the_hints_of_names_say_where_the_newest_bundles_are() -> None:
    store = MemoryStore()
    root = building.publish(store, PIECES, SIZE)
    version = building.name(store, root, REPO, "1")
    building.name(store, root, REPO, "also")
    building.name(store, root, "other", "1")
    log, names = ProfileLog(store), NameLog(store)
    parts, length = build_bundle.build_bundle(Repository(store), root, READINGS, 1000)
    assert put(store, keys.bundle(version.name, LABEL, 1, 1), parts)
    assert put(store, keys.bundle(version.name, LABEL, 2, 1), parts)
    assert log.advise(REPO, version.name) == 2
    expected = (hint.BundleRef(LABEL, keys.bundle(version.name, LABEL, 2, 1), sum(map(len, parts)), length),)
    for tag in ("1", "also"):
        told = names.hint(REPO, tag)
        assert told is not None
        assert told.bundles == expected
    other = names.hint("other", "1")
    assert other is not None
    assert other.bundles == ()


def test_a_name_that_moves_tells_the_bundles_of_its_new_version() -> None:
    store = MemoryStore()
    one, two = (building.publish(store, pieces, SIZE) for pieces in (PIECES, PIECES[:2]))
    first = building.name(store, one, REPO, "1")
    parts, _ = build_bundle.build_bundle(Repository(store), one, READINGS, 1000)
    put(store, keys.bundle(first.name, LABEL, 1, 1), parts)
    ProfileLog(store).advise(REPO, first.name)
    names = NameLog(store)
    building.name(store, two, REPO, "1")
    moved = names.hint(REPO, "1")
    assert moved is not None
    assert moved.bundles == ()
    building.name(store, one, REPO, "1")
    back = names.hint(REPO, "1")
    assert back is not None
    assert back.bundles == newest_bundles(store, first.name) != ()


def test_a_damaged_bundle_is_left_out_of_hints(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    for n, junk in enumerate((b"junk", bytes(32), b"bmpk\x01\x03\0\0" + b"\xff" * 24), 1):
        store.create(keys.bundle(digest("v"), f"l{n}", 1, 1), [junk])
    assert newest_bundles(store, digest("v")) == ()
    assert caplog.text.count("left out") == 3
