"""What a host that trusts keys opens, of a store in which others write, or which others own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from blockmap.errors import Corrupt, NotFound, Untrusted
from blockmap.format import entry as entries
from blockmap.format import hint, keys, oci, record
from blockmap.format import signature as signatures
from blockmap.format import version as versions
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.hint import Hint
from blockmap.format.oci import DocumentRecord
from blockmap.format.placement import Placement
from blockmap.format.refs import parse_reference
from blockmap.format.tree import Root
from blockmap.format.version import NodeRun, Version, WriterLayout
from blockmap.publish.object_writer import ObjectWriter
from blockmap.store.base import Pruner
from blockmap.store.call import Call
from blockmap.store.memory import MemoryStore
from blockmap.store.names import EntryDraft, NameLog, NameReader, NameTarget
from blockmap.store.observed import Observed
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Signer, Trust
from blockmap.store.trusted_names import TrustedNames
from tests.store.signers import changed, forge, overwrite, signer, trusting

OURS, THEIRS = signer(1), signer(2)
TRUST = trusting(OURS)
PLACE = Placement(Digest(b"\7" * 32), 1, 80, 100, 4000)
RUN = NodeRun(Digest(b"\7" * 32), 80, 5000)
MANIFEST = b'{"layers":[]}'


def version(seed: int) -> Version:
    root = Root(Digest(bytes([seed]) * 32), 5000, PLACE)
    return Version(root, Root(ABSENT, 5000), WriterLayout(1, 32), MANIFEST, b'{"a":%d}' % seed, run=RUN)


def put(store: Pruner, made: Version, own: Signer | None) -> int:
    """Stores a record of a version; returns its number."""
    return ObjectWriter(store).put_version(made if own is None else own.version(made), set())


def move(store: Pruner, tag: str, made: Version | None, own: Signer | None, number: int = 1) -> None:
    """Creates the next entry of a:TAG, whatever it stood for."""
    log = NameLog(store, lambda: 1_700_000_000.0, own)
    draft = EntryDraft(None, 0) if made is None else EntryDraft.of(made, number)
    log.append(NameTarget("a", tag), log.newest("a", tag), draft)


@pytest.fixture
def store() -> Pruner:
    """A store in which a:1 stands for version(1), signed by us."""
    made = MemoryStore()
    move(made, "1", version(1), OURS, put(made, version(1), OURS))
    return made


def opened(store: Pruner, export: str, trust: Trust = TRUST) -> Digest:
    return find_version(Repository(store, trust), parse_reference(export)).name


def at(made: Version) -> str:
    return f"a@sha256:{made.name.hex()}"


def refused(store: Pruner, *exports: str, why: str = "signed") -> None:
    for export in exports:
        with pytest.raises(Untrusted, match=why):
            opened(store, export)


def test_what_we_signed_is_opened(store: Pruner) -> None:
    document = sha256(MANIFEST).digest()
    store.create(keys.oci(document, 1), [oci.encode(DocumentRecord(version(1).name, 1, None))])
    for trust in (Trust(), TRUST, trusting(THEIRS, OURS)):
        for export in ("a:1", at(version(1)), f"a@sha256:{document.hex()}"):
            assert opened(store, export, trust) == version(1).name


def test_what_nobody_or_somebody_else_signed_is_refused() -> None:
    document = sha256(MANIFEST).digest()
    for own, why in ((None, "is not signed"), (THEIRS, f"is signed with key {THEIRS.public.id}")):
        store = MemoryStore()
        move(store, "1", version(1), own, put(store, version(1), own))
        store.create(keys.oci(document, 1), [oci.encode(DocumentRecord(version(1).name, 1, None))])
        refused(store, "a:1", why=f"entry 1 of a:1 {why}, and only what key {OURS.public.id} signed is opened here")
        refused(store, at(version(1)), f"a@sha256:{document.hex()}", why=f"version {version(1).name.hex()} {why}")
        assert opened(store, "a:1", Trust()) == opened(store, at(version(1)), Trust()) == version(1).name


def test_both_the_entry_and_the_version_have_to_be_signed() -> None:
    store = MemoryStore()
    move(store, "1", version(1), None, put(store, version(1), OURS))
    assert opened(store, at(version(1))) == version(1).name
    refused(store, "a:1", why="entry 1 of a:1 is not signed")
    move(store, "2", version(2), OURS, put(store, version(2), None))
    refused(store, "a:2", at(version(2)), why="version .* is not signed")


# --- whoever owns the storage changes an object, and seals it again

THEIRS_LINE: bytes = signatures.encode(THEIRS.version(version(1)).signature)  # type: ignore[arg-type]
HEX = "ab" * 32
PLACED: dict[str, Any] = {"codec": 1, "offset": 1, "pack": HEX, "raw": 1, "stored": 1}
ENTRY_CHANGES: list[dict[str, Any]] = [
    {"host": "elsewhere"},
    {"key": keys.entry("b", "1", 1)},
    {"kind": "remove", "version": None},
    {"message": "x"},
    {"n": 2},
    {"nonce": "x"},
    {"number": 2},
    {"oci": HEX},
    {"previous": HEX},
    {"root": PLACED},
    {"root": None},
    {"run": {"end": 2, "pack": HEX, "start": 1}},
    {"run": None},
    {"time": 5},
    {"version": version(2).name.hex()},
    {"format": 2},
    {"more": 1},
]


def test_every_field_of_an_entry_is_changed_below() -> None:
    fields = record.decode(entries.line(OURS.entry(entry_of(MemoryStore()))))
    assert {key for each in ENTRY_CHANGES for key in each} == {*fields, "more"}


def entry_of(store: MemoryStore) -> entries.Entry:
    move(store, "1", version(1), OURS, put(store, version(1), OURS))
    return NameReader(store).entry("a", "1", 1)[0]


@pytest.mark.parametrize("changes", ENTRY_CHANGES, ids=str)
def test_no_field_of_an_entry_can_be_changed(store: Pruner, changes: dict[str, Any]) -> None:
    put(store, version(2), OURS)
    put(store, version(1), OURS)
    forge(store, keys.entry("a", "1", 1), lambda lines: [changed(lines[0], **changes), lines[1]])
    with pytest.raises((Untrusted, Corrupt, NotFound)):  # NotFound: a removal that is ignored, and nothing before it
        opened(store, "a:1")


VERSION_CHANGES: list[dict[str, Any]] = [
    {"author": "x"},
    {"config": None},
    {"created": "x"},
    {"extra": HEX},
    {"format": 2},
    {"layout": {"threshold": 1, "writer": 1}},
    {"manifest": None},
    {"message": "x"},
    {"parents": [HEX]},
    {"root": version(2).root.digest.hex()},
    {"size": 5001},
    {"more": 1},
]


@pytest.mark.parametrize("changes", VERSION_CHANGES, ids=str)
def test_no_field_of_a_version_can_be_changed(store: Pruner, changes: dict[str, Any]) -> None:
    assert {key for each in VERSION_CHANGES for key in each} == {*record.decode(version(1).line()), "more"}
    forge(store, keys.version(version(1).name, 1), lambda lines: [changed(lines[0], **changes), *lines[1:]])
    for export in ("a:1", at(version(1))):
        with pytest.raises(Corrupt):
            opened(store, export)


def test_where_a_version_says_that_things_are_is_advice(store: Pruner) -> None:
    """Nodes and chunks are verified when they are read; the entry, whose placement is signed, is preferred."""
    lost = record.encode({"extra": None, "root": None})
    forge(store, keys.version(version(1).name, 1), lambda lines: [lines[0], lost, lines[2]])
    found = find_version(Repository(store, TRUST), parse_reference("a:1"))
    assert (found.name, found.root.placement) == (version(1).name, PLACE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: lines[:-1], "is not signed"),
        (lambda lines: [*lines[:-1], THEIRS_LINE], f"is signed with key {THEIRS.public.id}"),
        (lambda lines: [*lines[:-1], changed(THEIRS_LINE, key=OURS.public.id)], "does not have the signature"),
        (lambda lines: [*lines[:-1], changed(lines[-1], key=THEIRS.public.id)], f"signed with key {THEIRS.public.id}"),
        (lambda lines: [*lines[:-1], changed(lines[-1], signature="A" * 86 + "==")], "does not have the signature"),
    ],
    ids=["dropped", "another's", "another's under our id", "ours under another's id", "zeros"],
)
@pytest.mark.parametrize("key", [keys.entry("a", "1", 1), keys.version(version(1).name, 1)], ids=["entry", "version"])
def test_a_signature_cannot_be_changed(
    store: Pruner, key: str, change: Callable[[list[bytes]], list[bytes]], why: str
) -> None:
    forge(store, key, change)
    refused(store, "a:1", why=why)
    if key.startswith("versions/"):
        refused(store, at(version(1)), why=why)
    assert opened(store, "a:1", Trust()) == version(1).name


def test_a_signature_of_one_name_is_none_of_another(store: Pruner) -> None:
    move(store, "2", version(2), OURS, put(store, version(2), OURS))
    mine, other = (record.unseal(store.get(keys.entry("a", tag, 1))) for tag in "12")
    overwrite(store, keys.entry("a", "1", 1), record.seal([mine[0], other[1]]))
    refused(store, "a:1", why="does not have the signature")


def test_an_entry_of_another_name_or_number_is_not_that_of_this_one(store: Pruner) -> None:
    move(store, "1", version(2), OURS, put(store, version(2), OURS))
    NameLog(store, signer=OURS).append(NameTarget("b", "1"), None, EntryDraft.of(version(2), 1))
    for source in (keys.entry("b", "1", 1), keys.entry("a", "1", 2)):
        overwrite(store, keys.entry("a", "3", 1), store.get(source))
        with pytest.raises(Corrupt, match="is not the entry names/a/3/"):
            opened(store, "a:3")
    old = store.get(keys.entry("a", "1", 1))
    move(store, "1", version(1), None)
    overwrite(store, keys.entry("a", "1", 3), old)
    with pytest.raises(Corrupt, match="is not the entry names/a/1/0000000000000003"):
        opened(store, "a:1")


def test_a_signed_entry_that_was_hidden_is_not_missed(store: Pruner) -> None:
    """The README says so: who owns the storage can show what a name stood for before."""
    move(store, "1", version(2), OURS, put(store, version(2), OURS))
    assert opened(store, "a:1") == version(2).name
    store.delete(keys.entry("a", "1", 2))
    assert opened(store, "a:1") == version(1).name


# --- others write to the same store


def test_an_unsigned_move_of_a_signed_name_is_refused_until_a_signed_one(store: Pruner) -> None:
    move(store, "1", version(2), None, put(store, version(2), None))
    refused(store, "a:1", why="entry 2 of a:1 is not signed")
    move(store, "1", version(2), OURS, put(store, version(2), OURS))
    assert opened(store, "a:1") == version(2).name


def test_an_unsigned_removal_is_ignored_and_said(store: Pruner, caplog: pytest.LogCaptureFixture) -> None:
    for own in (None, THEIRS, None):
        move(store, "1", None, own)
    assert opened(store, "a:1") == version(1).name
    assert "the removal of a:1 is ignored: entry 4 of a:1 is not signed" in caplog.text
    with pytest.raises(NotFound, match="there is no image a:1"):
        opened(store, "a:1", Trust())


def test_a_signed_removal_counts(store: Pruner) -> None:
    move(store, "1", None, OURS)
    move(store, "1", None, None)
    for trust in (TRUST, Trust()):
        with pytest.raises(NotFound, match="there is no image a:1"):
            opened(store, "a:1", trust)


def test_before_an_ignored_removal_there_has_to_be_a_signed_entry(store: Pruner) -> None:
    move(store, "2", version(2), None, put(store, version(2), None))
    move(store, "2", None, None)
    refused(store, "a:2", why="entry 1 of a:2 is not signed")
    move(store, "3", None, None)
    with pytest.raises(NotFound, match="there is no image a:3"):
        opened(store, "a:3")


def test_a_fence_counts_as_the_entry_that_it_repeats(store: Pruner) -> None:
    log, target = NameLog(store), NameTarget("a", "1")
    for _ in range(2):
        log.fence(target)
    assert opened(store, "a:1") == opened(store, "a:1@{3}") == version(1).name
    move(store, "1", None, None)
    log.fence(target)
    assert opened(store, "a:1") == version(1).name
    move(store, "1", version(2), None, put(store, version(2), OURS))
    log.fence(target)
    refused(store, "a:1", why="entry 6 of a:1 is not signed")


@pytest.mark.parametrize("forged", [{"version": version(2).name}, {"number": 2}, {"previous": bytes(32)}], ids=str)
def test_a_fence_that_repeats_nothing_is_refused(store: Pruner, forged: dict[str, Any]) -> None:
    put(store, version(2), OURS)
    NameLog(store).fence(NameTarget("a", "1"))
    fence, _ = NameReader(store).entry("a", "1", 2)
    overwrite(store, keys.entry("a", "1", 2), entries.encode(replace(fence, **forged)))
    refused(store, "a:1", "a:1@{2}", why="entry 2 of a:1 is not signed, and is no fence")


def test_what_a_name_was_is_judged_as_well(store: Pruner) -> None:
    put(store, version(2), OURS)
    move(store, "1", version(2), None)
    move(store, "1", None, None)
    move(store, "1", version(2), OURS)
    for export, stands in (("a:1", 2), ("a:1@{1}", 1), ("a:1@{4}", 2), ("a:1@{2026-01-01}", 2)):
        assert opened(store, export) == version(stands).name
    refused(store, "a:1@{2}", "a:1@{3}", why="entry 2 of a:1 is not signed")


def test_removals_without_end_are_not_followed(store: Pruner) -> None:
    for _ in range(80):
        move(store, "1", None, None)
    calls: list[Call] = []
    with pytest.raises(Untrusted, match="64 entries in a row"):
        TrustedNames(Observed(store, calls.append), TRUST).newest("a", "1")
    assert len(calls) < 80
    move(store, "1", version(1), OURS)
    assert opened(store, "a:1") == version(1).name


def test_records_that_are_not_ours_hide_no_record_that_is(store: Pruner) -> None:
    put(store, version(2), None)
    put(store, version(2), THEIRS)
    assert put(store, version(2), OURS) == 3
    for number in (1, 2, 3):
        move(store, "2", version(2), OURS, number)
        for export in ("a:2", at(version(2))):
            assert opened(store, export) == version(2).name
    document = sha256(MANIFEST).digest()
    for number, made in ((1, version(2)), (2, version(3))):
        put(store, made, None)
        store.create(keys.oci(document, number), [oci.encode(DocumentRecord(made.name, 1, None))])
    assert opened(store, f"a@sha256:{document.hex()}") == version(2).name
    assert opened(store, f"a@sha256:{document.hex()}", Trust()) == version(3).name
    store.create(keys.oci(version(2).name, 1), [oci.encode(DocumentRecord(version(3).name, 1, None))])
    assert opened(store, at(version(2))) == version(2).name


# --- hints are advice


def hints(store: Pruner) -> Iterator[bytes]:
    """Yields hints that lead to what nobody signed."""
    stored = store.get(keys.entry("a", "1", 2))
    entry, about = entries.decode(stored, keys.entry("a", "1", 2)), store.get(keys.version(version(2).name, 1))
    yield hint.encode(Hint(entry, stored, about))
    unlogged = replace(entry, nonce="x")
    yield hint.encode(Hint(unlogged, entries.encode(unlogged), about))
    signed = entries.encode(THEIRS.entry(entry))
    yield hint.encode(Hint(entries.decode(signed, entry.key), signed, versions.encode(THEIRS.version(version(2)))))


def test_no_hint_lets_an_unsigned_entry_through(store: Pruner) -> None:
    put(store, version(2), None)
    move(store, "1", version(2), None)
    advised = list(hints(store))
    for each in advised:
        store.replace(keys.name_hint("a", "1"), each)
        refused(store, "a:1", why="entry 2 of a:1 is not signed")
    store.delete(keys.entry("a", "1", 2))
    for each in advised:
        store.replace(keys.name_hint("a", "1"), each)
        assert opened(store, "a:1") == version(1).name


# --- writing


def test_entries_are_signed_once(store: Pruner) -> None:
    target, ours, theirs = NameTarget("a", "1"), NameLog(store, signer=OURS), NameLog(store, signer=THEIRS)
    draft = EntryDraft.of(version(1), 1)
    assert ours.set(target, draft) is None
    assert NameLog(store).set(target, draft) is None
    made = theirs.set(target, draft)
    assert made is not None
    assert (made.n, made.signature.key if made.signature else None) == (2, THEIRS.public.id)
    forge(store, keys.entry("a", "1", 2), lambda lines: [lines[0], changed(lines[1], key=OURS.public.id)])
    again = ours.set(target, draft)
    assert again is not None
    assert again.n == 3
    assert [each.n for each in ours.history("a", "1")] == [3, 2, 1]


def test_history_is_a_chain_over_signatures(store: Pruner) -> None:
    move(store, "1", version(2), OURS, put(store, version(2), OURS))
    forge(store, keys.entry("a", "1", 1), lambda lines: lines[:1])
    with pytest.raises(Corrupt, match="entry 1 of a:1 is not the one that entry 2 continues"):
        list(NameReader(store).history("a", "1"))


def test_the_catalogue_of_a_store_says_nothing_about_trust(store: Pruner) -> None:
    move(store, "2", version(2), None, put(store, version(2), None))
    names = TrustedNames(store, TRUST)
    assert names.catalogue() == {("a", "1"): 1, ("a", "2"): 1}
    with pytest.raises(Untrusted):
        names.newest("a", "2")
