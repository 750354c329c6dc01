"""A server that trusts keys opens what they signed, by name and by digest, whatever hints and this host's records say."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.errors import NotFound, StoreUnavailable, Untrusted
from blockmap.format import BLOCK, hint, keys
from blockmap.format import entry as entries
from blockmap.format.chunker import SPAN
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.origin.records import RecordCache
from blockmap.publish.object_writer import ObjectWriter
from blockmap.server.listing import Listing
from blockmap.store.base import Pruner
from blockmap.store.http import open_http
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.opening import create_store
from blockmap.store.signing import Signer
from tests.image.builder import bulk
from tests.server.test_opening import HINT, Host, Hosts, Remote, block, entry, host, store
from tests.store import servers
from tests.store.faulty import Faulty
from tests.store.signers import forge, signer, trusting
from tests.store.steps import Steps
from tests.volume.building import publish_trees
from tests.volume.bundled import bundled

__all__ = ["host", "store"]

OURS, THEIRS = signer(1), signer(2)
TRUST = trusting(OURS)


def volume(store: Pruner, seed: int, own: Signer | None, tag: str = "1") -> Version:
    """Moves a:TAG to a volume of two levels whose first block is block(seed), signed by `own`."""
    trees = publish_trees(store, [(0, bulk(seed, 20 * BLOCK)), (9 * SPAN, bulk(seed + 1000, 20 * BLOCK))], 10 * SPAN)
    made = Version(trees.root, Root(bytes(32), trees.root.size), WriterLayout(0, 0), run=trees.run)  # type: ignore[arg-type]
    made = made if own is None else own.version(made)
    number = ObjectWriter(store).put_version(made, set())
    log = NameLog(store, signer=own)
    log.append(NameTarget("a", tag), log.newest("a", tag), EntryDraft.of(made, number))
    return made


def at(made: Version) -> str:
    return f"a@sha256:{made.name.hex()}"


def refused(here: Host, *exports: str, why: str = "signed") -> None:
    for export in exports:
        with pytest.raises(Untrusted, match=why):
            here.find(export)


def test_what_we_signed_is_opened_in_as_few_steps(store: Pruner, host: Hosts) -> None:
    volume(store, 1, OURS)
    steps = Steps(store, 1, 3)
    here = host(steps, trust=TRUST)
    found = here.find()
    assert len(steps.serial) == 2
    assert here.first(found) == block(1)
    steps.expect(3)
    here.seconds += 10
    assert here.first(here.find()) == block(1)
    assert len(steps.serial) <= 5


@pytest.mark.parametrize("own", [None, THEIRS])
@pytest.mark.parametrize("hinted", [True, False])
def test_what_we_did_not_sign_is_refused(store: Pruner, host: Hosts, own: Signer | None, hinted: bool) -> None:
    made = volume(store, 1, own)
    if not hinted:
        store.delete(HINT)
    here = host(Remote(store), trust=TRUST)
    for _ in range(2):
        refused(here, "a:1", why="entry 1 of a:1 is .*signed")
        refused(here, at(made), why="version .* is .*signed")
    assert here.known.names() == []
    here = host(Remote(store))
    assert here.first(here.find()) == block(1)


def test_nothing_of_an_untrusted_image_is_fetched(store: Pruner, host: Hosts) -> None:
    """Its hint, with a bundle, says nothing that is acted upon."""
    made = volume(store, 1, None)
    about = bundled(store, made.root, [0, 1, 2], keys.bundle(made.name, "default", 1, 1))
    told = hint.decode(store.get(HINT), "a", "1")
    store.replace(HINT, hint.encode(replace(told, bundles=(about,))))
    steps = Steps(store, 1)
    here = host(steps, trust=TRUST)
    refused(here, "a:1", at(made))
    assert [asked for step in steps.serial for asked in step if "packs/" in asked or "bundles/" in asked] == []
    assert here.replays.status()["replays"] == []


def test_what_a_host_opened_before_it_trusted_keys_is_refused(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1, None)
    here = host(Remote(store))
    for export in ("a:1", at(made)):
        assert here.first(here.find(export)) == block(1)
    refused(host(Remote(store), trust=TRUST), "a:1", at(made))
    away = Faulty(Remote(store))
    here = host(away, trust=TRUST)
    away.down = True
    for export in ("a:1", at(made)):
        with pytest.raises(StoreUnavailable):
            here.find(export)


def test_what_we_signed_is_opened_from_this_hosts_records_while_the_store_is_away(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1, OURS)
    here = host(Remote(store), trust=TRUST)
    for export in ("a:1", at(made)):
        assert here.first(here.find(export)) == block(1)
    away = Faulty(Remote(store))
    away.down = True
    here = host(away, trust=TRUST)
    for export in ("a:1", at(made)):
        assert here.first(here.find(export)) == block(1)
    refused_here = host(away, trust=trusting(THEIRS))
    for export in ("a:1", at(made)):
        with pytest.raises(StoreUnavailable):
            refused_here.find(export)


def test_a_name_that_this_host_knows_is_refused_once_it_is_moved_unsigned(store: Pruner, host: Hosts) -> None:
    first = volume(store, 1, OURS)
    here = host(Remote(store), trust=TRUST)
    here.find()
    second = volume(store, 2, None)
    here.seconds += 10
    refused(here, "a:1", why="entry 2 of a:1 is not signed")
    refused(here, at(second))
    assert here.first(here.find(at(first))) == block(1)
    volume(store, 2, OURS)
    here.seconds += 10
    assert here.first(here.find()) == block(2)


def test_an_unsigned_removal_is_ignored(store: Pruner, host: Hosts) -> None:
    volume(store, 1, OURS)
    here = host(Remote(store), trust=TRUST)
    here.find()
    log = NameLog(store)
    log.append(NameTarget("a", "1"), log.newest("a", "1"), EntryDraft(None, 0))
    for seconds in (0.5, 10.0, 0.5):
        here.seconds += seconds
        assert here.first(here.find()) == block(1)
    assert host(Remote(store), trust=TRUST).find().version.name
    with pytest.raises(NotFound):
        host(Remote(store)).find()
    signed = NameLog(store, signer=OURS)
    signed.append(NameTarget("a", "1"), signed.newest("a", "1"), EntryDraft(None, 0))
    with pytest.raises(NotFound):
        host(Remote(store), trust=TRUST).find()


def lies(store: Pruner, other: Version) -> Iterator[tuple[str, bytes]]:
    good = hint.decode(store.get(HINT), "a", "1")
    moved = replace(good.entry, version=other.name)
    theirs = THEIRS.entry(replace(moved, signature=None))
    unsigned = replace(good.entry, signature=None)
    record = store.get(keys.version(other.name, 1))
    dropped = b"".join(line + b"\n" for line in (good.version or b"").split(b"\n")[:2])
    yield "our signature of another entry", hint.encode(hint.Hint(moved, entries.encode(moved), record))
    yield "an entry of theirs", hint.encode(hint.Hint(theirs, entries.encode(theirs), record))
    yield "no signature", hint.encode(hint.Hint(unsigned, entries.encode(unsigned), good.version))
    yield "another record", hint.encode(hint.Hint(good.entry, good.stored, record))
    yield "no signature of the record", hint.encode(hint.Hint(good.entry, good.stored, dropped))
    yield "an unsigned entry to come", hint.encode(hint.Hint(*to_come(moved), record))


def to_come(moved: entries.Entry) -> tuple[entries.Entry, bytes]:
    later = replace(moved, n=2, key=entry(2), previous=bytes(32), signature=None)
    return later, entries.encode(later)


def test_no_hint_lets_anything_else_through(store: Pruner, host: Hosts) -> None:
    volume(store, 1, OURS)
    other = volume(store, 2, None, "other")
    for of, data in lies(store, other):
        store.replace(HINT, data)
        here = host(Remote(store), trust=TRUST)
        found = here.find()
        assert here.first(found) == block(1), of
        here.known.forget_name("a", "1")
        here.known.forget(keys.version(found.name, 1))


def test_a_record_that_lost_its_signature_is_refused(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1, OURS)
    forge(store, keys.version(made.name, 1), lambda lines: lines[:2])
    store.delete(HINT)
    refused(host(Remote(store), trust=TRUST), "a:1", at(made), why="version .* is not signed")


def test_over_http_nothing_else_is_opened_either(tmp_path: Path, host: Hosts, need: Callable[..., None]) -> None:
    need("nginx")
    directory, _ = create_store(str(tmp_path / "store"))
    signed, unsigned = volume(directory, 1, OURS, "1"), volume(directory, 2, None, "2")
    (tmp_path / "nginx").mkdir()
    with servers.nginx(tmp_path / "nginx", tmp_path / "store") as url:
        here = host(open_http(url), trust=TRUST)  # type: ignore[arg-type]
        for export in ("a:1", at(signed)):
            assert here.first(here.find(export)) == block(1)
        refused(here, "a:2", at(unsigned))


def test_only_what_can_be_opened_is_listed(store: Pruner, tmp_path: Path) -> None:
    for tag, own in (("1", OURS), ("2", None), ("3", THEIRS), ("4", OURS)):
        volume(store, int(tag), own, tag)
    log = NameLog(store)
    log.append(NameTarget("a", "4"), log.newest("a", "4"), EntryDraft(None, 0))
    known = RecordCache(tmp_path, store.url)
    try:
        assert [name for name, _ in Listing(store, known, 1.0, trust=TRUST).names()] == ["a:1", "a:4"]
        assert [name for name, _ in Listing(store, known, 1.0).names()] == ["a:1", "a:2", "a:3"]
        for tag in "123":
            known.confirm("a", tag, 1, store.get(keys.entry("a", tag, 1)))
        away = Faulty(Remote(store))
        away.down = True
        assert [name for name, _ in Listing(away, known, 1.0, trust=TRUST).names()] == ["a:1"]
    finally:
        known.close()
