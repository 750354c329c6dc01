"""Advice may fail, never harm: whatever hints, bundles, the catalogue and this host's own records hold, names open."""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockmap.errors import CannotList, Corrupt
from blockmap.format import BLOCK, bundle, catalogue, hint, keys, oci, record
from blockmap.format import entry as entries
from blockmap.format import version as versions
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.hint import BundleRef, encode_bundles
from blockmap.format.node import Node
from blockmap.format.oci import DocumentRecord
from blockmap.format.placement import Placement
from blockmap.format.reading_list import ReadItem
from blockmap.format.version import Version
from blockmap.origin.records import RecordCache
from blockmap.publish.object_writer import ObjectWriter
from blockmap.server.listing import Listing
from blockmap.server.server import Server
from blockmap.store.base import Pruner
from blockmap.store.bundles import newest_bundles
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import create_store, parse_format
from blockmap.store.packs import Sealer, compress
from blockmap.store.profiles import ProfileLog
from blockmap.store.repository import Repository
from blockmap.store.walk import nodes
from tests.format.test_parsers import JSON, changed
from tests.image.builder import bulk
from tests.server.test_opening import HINT, Host, block, volume
from tests.volume.bundled import bundled

quiet = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@cache
def made() -> tuple[dict[str, bytes], Version, BundleRef]:
    """The objects of a store with the name a:1, its version, and the bundle that the hint tells of."""
    store = MemoryStore()
    with tempfile.TemporaryDirectory() as directory:
        store.create(keys.FORMAT, [create_store(directory)[0].get(keys.FORMAT)])
    own = volume(store, 1)
    about = bundled(store, own.root, [0, 1, 2], keys.bundle(own.name, "default", 1, 1))
    ProfileLog(store).advise("a", own.name)
    return {key: store.get(key) for key in store.list("")}, own, about


def stored() -> MemoryStore:
    store = MemoryStore()
    for key, data in made()[0].items():
        store.create(key, [data])
    return store


@contextmanager
def living(directory: Path, store: Pruner) -> Iterator[Host]:
    host = Host(directory, store)
    try:
        yield host
    finally:
        host.close()


def opens(directory: Path, store: Pruner) -> None:
    """Opens the name, and the version by its digest, and reads both."""
    own = made()[1]
    with living(directory, store) as here:
        for export in ("a:1", f"a@sha256:{own.name.hex()}"):
            found = here.start(export)
            assert found.resolved.name == own.name
            assert here.first(found.resolved) == block(1)
            if found.replay is not None:
                found.replay.wait_head(10)


def stays_open(store: Pruner) -> None:
    """Opens a name whose advice is wrong, and again at the host's next start, when the advice is right, and with nothing
    in the cache but what the host has noted."""
    with tempfile.TemporaryDirectory() as directory:
        opens(Path(directory), store)
        opens(Path(directory), store)
        store.replace(HINT, made()[0][HINT])
        empty_cache(Path(directory))
        opens(Path(directory), store)


def empty_cache(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_file() and not path.name.startswith("names.db"):
            path.unlink()


def told(store: Pruner) -> hint.Hint:
    return hint.decode(store.get(HINT), "a", "1")


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


@st.composite
def references(draw: st.DrawFn) -> BundleRef:
    """References to bundles that are nearly right."""
    _, own, about = made()
    prefix = keys.bundles(own.name)
    key = draw(
        st.sampled_from(["default", "default/", "", "default/1", "default/" + "9" * 16, "default/" + "0" * 16])
        .map(lambda rest: prefix + rest)
        | st.sampled_from([about.key, about.key + "/1", about.key + "0", prefix + "../" + about.key, keys.FORMAT])
        | texts
        | texts.map(lambda rest: prefix + rest)
        | texts.map(lambda rest: f"{prefix}default/{rest}")
    )  # fmt: skip
    table = draw(st.sampled_from([about.table, about.table - 1, about.table + 1, 0]) | st.integers(0, 1 << 20))
    length = table + draw(st.sampled_from([about.length - about.table, 0, 1]) | st.integers(0, 1 << 31))
    return BundleRef(draw(st.just("default") | texts), key, length, table)


@quiet
@given(st.lists(references(), max_size=3))
def test_any_references_to_bundles(bundles: list[BundleRef]) -> None:
    store = stored()
    store.replace(HINT, hint.encode(replace(told(store), bundles=tuple(bundles))))
    stays_open(store)


@quiet
@given(st.data())
def test_any_hint(data: st.DataObject) -> None:
    store = stored()
    lines = record.unseal(store.get(HINT))
    at = data.draw(st.integers(0, len(lines) - 1))
    value: dict[str, Any] = record.decode(lines[at]) if lines[at].startswith(b"{") else {}
    if value and data.draw(st.sampled_from([True, False])):
        value[data.draw(st.sampled_from(sorted(value)))] = data.draw(JSON)
        lines[at] = record.encode(value)
    else:
        lines[at] = data.draw(changed(lines[at]))
    store.replace(HINT, data.draw(st.sampled_from([record.seal(lines), b"\n".join(lines)]) | st.binary(max_size=100)))
    stays_open(store)


PLACES = st.sampled_from(
    [Placement(Digest(b"\7" * 32), 0, 0, 100, 100), Placement(Digest(b"\7" * 32), 1, 1 << 31, 1 << 20, 1 << 20), None]
)


def misplaced(own: Version, place: Placement | None) -> bytes:
    """Returns the record of a version, whose name does not tell that its placements are wrong."""
    return versions.encode(
        replace(own, root=replace(own.root, placement=place), extra=replace(own.extra, placement=place))
    )


@quiet
@given(PLACES)
def test_a_hint_whose_record_has_other_placements(place: Placement | None) -> None:
    store = stored()
    store.replace(HINT, hint.encode(replace(told(store), version=misplaced(made()[1], place))))
    stays_open(store)


def resealed(head: bytes) -> bytes:
    return head + sha256(head).digest()


@quiet
@given(st.data())
def test_any_bundle(data: st.DataObject) -> None:
    store = stored()
    about = made()[2]
    whole = store.get(about.key)
    head, frames = whole[: about.table], whole[about.table :]
    head = data.draw(
        st.sampled_from([changed(head), changed(head[:-32]).map(resealed), st.just(head)]).flatmap(lambda s: s)
    )
    frames = data.draw(changed(frames) | st.just(frames))
    store.replace(about.key, head + frames)
    lies = replace(about, table=len(head), length=len(head) + len(frames))
    store.replace(HINT, hint.encode(replace(told(store), bundles=(data.draw(st.sampled_from([about, lies])),))))
    stays_open(store)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda place: place._replace(offset=place.offset + 1),
        lambda place: place._replace(offset=1 << 31),
        lambda place: place._replace(raw=place.raw + BLOCK),
        lambda place: place._replace(raw=1 << 31),
        lambda place: place._replace(codec=place.codec + 7),
        lambda place: place._replace(stored=place.stored - 1),
        lambda place: place._replace(pack=Digest(b"\7" * 32)),
    ],
    ids=["a byte off", "far off", "longer", "huge", "another codec", "shorter", "another pack"],
)
def test_a_bundle_whose_nodes_misplace_what_is_below_them(
    level: int, wrong: Callable[[Placement], Placement], tmp_path: Path
) -> None:
    """No digest covers places: such nodes verify."""
    store, own = stored(), made()[1]

    def misplace(node: Node) -> Node:
        if node.level != level:
            return node
        return node.with_placements([place and wrong(place) for place in node.placements])

    about = bundled(store, own.root, [0, 1, 2], keys.bundle(own.name, "default", 1, 2), change=misplace)
    store.replace(HINT, hint.encode(replace(told(store), bundles=(about,))))
    with living(tmp_path, store) as here:
        found = here.start()
        assert found.replay is not None
        assert found.replay.wait_head(10)
        assert found.replay.wait_end(10)
        for at in (0, 10, 9 * SPAN, 9 * SPAN + 19):
            buf = bytearray(BLOCK)
            here.reader(found.resolved)(memoryview(buf), at * BLOCK)
            assert (
                bytes(buf)
                == (bulk(1, 20 * BLOCK) if at < SPAN else bulk(1001, 20 * BLOCK))[at % SPAN * BLOCK :][:BLOCK]
            )
        assert here.damage == []


VALUES: st.SearchStrategy[Any] = st.none() | st.integers(-(1 << 62), 1 << 62) | texts | st.binary(max_size=40)


@st.composite
def records(draw: st.DrawFn) -> tuple[str, Any]:
    """Records of this host that are arbitrary or nearly right."""
    _, own, about = made()
    key = draw(st.sampled_from([keys.version(own.name, 1), keys.version(own.name, 2), keys.bundles(own.name)]))
    right = encode_bundles([about]) if key.startswith("bundles/") else made()[0][keys.version(own.name, 1)]
    wrong = (
        st.lists(references(), max_size=2).map(encode_bundles)
        if key.startswith("bundles/")
        else PLACES.map(lambda place: misplaced(own, place))
    )
    return key, draw(VALUES | changed(right) | changed(right[:-65]).map(lambda part: record.seal([part])) | wrong)


@quiet
@given(st.lists(records(), max_size=4), st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), max_size=3), st.booleans())
def test_any_records_of_this_host(kept: list[tuple[str, Any]], names: list[tuple[Any, ...]], named: bool) -> None:
    store = stored()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        RecordCache(directory, store.url).close()
        with closing(sqlite3.connect(directory / "names.db")) as db, db:
            for key, data in kept:
                db.execute(
                    "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (store.url, key, b"" if data is None else data)
                )
            for repo, tag, n, entry in names:
                values = ("a", "1", n or 1, entry or b"") if named else (repo, tag, n or 0, entry or b"")
                db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?)", (store.url, *values))
        opens(directory, store)
        empty_cache(directory)
        opens(directory, store)
        known = RecordCache(directory, store.url)
        assert [each for each, _ in Listing(store, known, 1.0).names()] == ["a:1"]
        known.close()


# --- what is kept


def kept_by(directory: Path, key: str) -> bytes | None:
    known = RecordCache(directory, "memory:")
    found = known.record(key)
    known.close()
    return found


def test_a_bundle_is_kept_once_its_head_was_verified(tmp_path: Path) -> None:
    _, own, about = made()
    store = stored()
    store.replace(HINT, hint.encode(replace(told(store), bundles=(replace(about, key=about.key[:-1] + "7"),))))
    opens(tmp_path, store)
    assert kept_by(tmp_path, keys.bundles(own.name)) is None
    store.replace(HINT, made()[0][HINT])
    opens(tmp_path, store)
    assert kept_by(tmp_path, keys.bundles(own.name)) == encode_bundles([about])


def test_a_kept_bundle_that_turns_out_wrong_is_forgotten(tmp_path: Path) -> None:
    _, own, about = made()
    store = stored()
    store.delete(about.key)
    store.delete(HINT)
    known = RecordCache(tmp_path, store.url)
    known.keep(keys.bundles(own.name), encode_bundles([about]))
    known.close()
    opens(tmp_path, store)
    assert kept_by(tmp_path, keys.bundles(own.name)) == encode_bundles([])


def test_the_bundle_of_another_volume_is_not_kept(tmp_path: Path) -> None:
    _, own, _ = made()
    store = stored()
    other = bundled(store, volume(store, 2, "2").root, [0, 1], keys.bundle(own.name, "default", 2, 1))
    store.replace(HINT, hint.encode(replace(told(store), bundles=(other,))))
    with living(tmp_path, store) as here:
        found = here.start()
        assert found.replay is not None
        assert found.replay.wait_end(10)
        assert "another volume" in found.replay.failed
        assert here.first(found.resolved) == block(1)
    assert kept_by(tmp_path, keys.bundles(own.name)) is None


def test_a_record_that_no_entry_confirmed_is_not_kept(tmp_path: Path) -> None:
    """The hint of a:1 tells of the version of a:2."""
    store = stored()
    other = volume(store, 2, "2")
    now = told(store)
    lie = replace(now.entry, version=other.name, root=other.root.placement, run=other.run)
    store.replace(
        HINT, hint.encode(replace(now, entry=lie, stored=entries.encode(lie), version=versions.encode(other)))
    )
    opens(tmp_path, store)
    assert kept_by(tmp_path, keys.version(other.name, 1)) is None


def nodes_of(store: MemoryStore, own: Version) -> list[tuple[Digest, bytes]]:
    """Returns names and stored forms of all nodes of a version."""
    frames: list[tuple[Digest, bytes]] = []
    packs = Repository(store).packs
    list(nodes(own.root, lambda refs: packs.nodes(refs, lambda item, frame: frames.append((item.name, frame)))))
    return frames


def test_lists_of_a_bundle_are_cut_to_the_volume(tmp_path: Path) -> None:
    _, own, _ = made()
    store = stored()
    size = own.root.size
    outside = [
        ReadItem(0, 2, None, 0),
        ReadItem(size - 1, 5, b"etc/passwd", 0),
        ReadItem(size, 1, None, 0),
        ReadItem(1 << 60, 1 << 20, None, 0),
        ReadItem(3, 0, None, 0),
        ReadItem(1, (1 << 32) - 1, None, 0),
        ReadItem(1, 5, None, 0),
    ]
    frames = nodes_of(store, own)
    parts, table = bundle.encode(frames, [], outside, 1 << 50, bytes(16), Sealer().seal, compress)
    key = keys.bundle(own.name, "default", 2, 1)
    store.create(key, parts)
    store.replace(
        HINT, hint.encode(replace(told(store), bundles=(BundleRef("default", key, sum(map(len, parts)), table),)))
    )
    with living(tmp_path, store) as here:
        replay = here.start().replay
        assert replay is not None
        head = replay.wait_head(10)
    assert head is not None
    assert head.read_items == [
        ReadItem(0, 2, None, 0),
        ReadItem(size - 1, 1, b"etc/passwd", 0),
        ReadItem(1, size - 3, None, 0),
    ]
    assert head.image_blocks == size


def test_bytes_of_a_bundle_that_nothing_refers_to_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.stream._UNKNOWN_LINK_BYTES", 1 << 20)
    monkeypatch.setattr("blockmap.replay.stream._MIN_UNDER_WAY_BYTES", 1 << 20)
    _, own, _ = made()
    store = stored()
    surplus = [(Digest(bytes([at]) * 32), (1 << 64) - 1, bulk(at, 64 * BLOCK)) for at in range(200)]
    monkeypatch.setattr(
        "blockmap.format.bundle.BundleHead.within", lambda head, _: replace(head, pieces=head.pieces[:1])
    )
    parts, table = bundle.encode(nodes_of(store, own), surplus, [], 1, bytes(16), Sealer().seal, compress)
    key = keys.bundle(own.name, "default", 2, 1)
    store.create(key, parts)
    about = BundleRef("default", key, sum(map(len, parts)), table)
    store.replace(HINT, hint.encode(replace(told(store), bundles=(about,))))
    with living(tmp_path, store) as here:
        replay = here.start().replay
        assert replay is not None
        assert replay.wait_end(10)
        assert not replay.failed
    assert about.length > 50 << 20
    assert replay.bytes < 8 << 20


class Torn:
    """A store whose hints are longer than anybody accepts."""

    local = True

    def __init__(self, inner: MemoryStore) -> None:
        self.inner, self.url = inner, inner.url
        self.get_range, self.list, self.exists = inner.get_range, inner.list, inner.exists
        self.create, self.replace, self.delete = inner.create, inner.replace, inner.delete

    def get(self, key: str, *most: int) -> bytes:
        if key.startswith("hints/"):
            raise Corrupt(f"{key} is too long")
        return self.inner.get(key, *most)


def test_a_hint_that_cannot_be_read(tmp_path: Path) -> None:
    store = Torn(stored())
    opens(tmp_path, store)
    opens(tmp_path, store)


def test_what_is_no_bundle_hides_no_bundle_of_its_label() -> None:
    _, own, about = made()
    store = stored()
    store.create(keys.bundle(own.name, "default", 10**16 - 1, 1), [b"none"])
    assert newest_bundles(store, own.name) == (about,)


@quiet
@given(st.data())
def test_any_record_of_a_document(data: st.DataObject) -> None:
    """What this host has noted of a digest is checked as what the store says is."""
    store = stored()
    right, wrong = (replace(made()[1], manifest=text) for text in (b"right", b"wrong"))
    for each in (right, wrong):
        ObjectWriter(store).put_version(each, set())
    digest = sha256(b"right").digest()
    store.create(keys.oci(digest, 1), [oci.encode(DocumentRecord(right.name, 1))])
    lies = [oci.encode(DocumentRecord(own, 1, index)) for own in (right.name, wrong.name) for index in (None, b"right")]
    with tempfile.TemporaryDirectory() as directory:
        known = RecordCache(Path(directory), store.url)
        known.keep(
            keys.oci(digest, 0), data.draw(st.sampled_from(lies).flatmap(lambda lie: st.just(lie) | changed(lie)))
        )
        for each in (right, wrong):
            known.keep(keys.version(each.name, 1), misplaced(each, data.draw(PLACES)))
        known.close()
        for _ in range(2):
            with living(Path(directory), store) as here:
                found = here.find(f"a@sha256:{digest.hex()}")
                assert found.name == right.name
                assert here.first(found) == block(1)


# --- the catalogue


class Unlisted:
    """Passes all calls on, as a store without listings."""

    local = True

    def __init__(self, inner: MemoryStore) -> None:
        self.url = inner.url
        self.get, self.get_range, self.exists = inner.get, inner.get_range, inner.exists

    def list(self, prefix: str) -> list[str]:
        raise CannotList("no listings")


REPOS = ["a", "../a", ".", "a/../b", ".tmp-a", "a+b", "a@b"]
NAMES = st.dictionaries(
    st.tuples(texts | st.sampled_from(REPOS), texts | st.sampled_from(["1", "..", "/"])),
    st.integers(1, 10**16 - 1),
    max_size=5,
)


@quiet
@given(NAMES)
def test_names_in_the_catalogue_that_nobody_can_type_are_left_out(names: dict[tuple[str, str], int]) -> None:
    store = stored()
    names["a", "1"] = 1
    store.replace(keys.CATALOGUE, catalogue.encode(names))
    with tempfile.TemporaryDirectory() as directory:
        known = RecordCache(Path(directory), store.url)
        assert [name for name, _ in Listing(Unlisted(store), known, 1.0).names()] == ["a:1"]
        known.close()


@quiet
@given(st.data())
def test_any_catalogue(data: st.DataObject) -> None:
    store = stored()
    right = catalogue.encode({("a", "1"): 1, ("b", "2"): 7})
    store.replace(
        keys.CATALOGUE, data.draw(changed(right) | changed(right[:-65]).map(lambda part: record.seal([part])))
    )
    with tempfile.TemporaryDirectory() as directory:
        known = RecordCache(Path(directory), store.url)
        listing = Listing(Unlisted(store), known, 1.0)
        with suppress(Corrupt):  # there is no catalogue, and nothing is known
            assert {name for name, _ in listing.names()} <= {"a:1"}
        entry = made()[0][keys.entry("a", "1", 1)]
        known.confirm("a", "1", 1, entry)
        assert {name for name, _ in Listing(Unlisted(store), known, 1.0).names()} <= {"a:1"}
        known.close()


# --- a whole server


@quiet
@given(st.data())
def test_a_server_opens_whatever_the_advice_is(data: st.DataObject) -> None:
    store = stored()
    own = made()[1]
    now = told(store)
    chosen = data.draw(st.sampled_from(["hint", "bundles", "none"]))
    if chosen == "hint":
        store.replace(HINT, data.draw(changed(store.get(HINT))))
    elif chosen == "bundles":
        store.replace(HINT, hint.encode(replace(now, bundles=tuple(data.draw(st.lists(references(), max_size=3))))))
    else:
        store.delete(HINT)
    form = parse_format(store.get(keys.FORMAT), store.url)
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(2):
            with patch("blockmap.server.server.open_served", lambda *_: (store, form)):
                server = Server(store.url, Path(directory), 1 << 26)
            try:
                opened = server.open("a:1")
                buf = memoryview(bytearray(BLOCK))
                opened.volume.reader(opened.start)(buf, 0)
                assert bytes(buf) == block(1)
                assert opened.volume.name == f"a@sha256:{own.name.hex()}"
                number, items, _ = server.readings("a:1")
                assert number in (0, 1)
                assert all(item.start + item.blocks <= own.root.size for item in items)
                opened.close()
            finally:
                server.close()
