"""Names' logs: moves, races, lost answers, hints, damage."""

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from blockmap.errors import AlreadyExists, CannotList, Corrupt, NameMoved, StoreUnavailable, UsageError
from blockmap.format import catalogue, hint, keys
from blockmap.format import entry as entries
from blockmap.format import version as versions
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.entry import Entry
from blockmap.format.refs import NameEntry
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.publish.object_writer import ObjectWriter
from blockmap.store.base import Buffer, Pruner
from blockmap.store.memory import MemoryStore
from blockmap.store.names import EntryDraft, NameLog, NameReader, NameTarget
from tests.store.faulty import ExistsCounter, Faulty
from tests.store.steps import Steps

REPO, TAG = "registry.example.com:5000/team/redis", "7.2"
NAME, HINT = NameTarget(REPO, TAG), keys.name_hint(REPO, TAG)


def version(seed: object) -> Digest:
    return Digest(hashlib.sha256(str(seed).encode()).digest())


def log_of(store: Pruner, seconds: float = 1_700_000_000.0) -> NameLog:
    return NameLog(store, clock=lambda: seconds)


def put(log: NameLog, seed: object, message: str = "") -> Entry | None:
    return log.set(NAME, EntryDraft(version(seed), 1, message=message))


def move(log: NameLog, expected: Entry | None, seed: object, message: str = "") -> Entry:
    return log.append(NAME, expected, EntryDraft(version(seed), 1, message=message))


def test_a_name_begins_moves_and_is_removed(store: Pruner) -> None:
    log = log_of(store)
    assert log.newest(REPO, TAG) is None
    assert list(log.history(REPO, TAG)) == []
    assert log.catalogue() == {}
    first = move(log, None, "a")
    second = move(log, first, "b")
    third = log.append(NAME, second, EntryDraft(None, 0))
    assert [entry.n for entry in (first, second, third)] == [1, 2, 3]
    assert log.newest(REPO, TAG) == third
    assert third.version is None
    assert list(log.history(REPO, TAG)) == [third, second, first]
    assert log.catalogue() == {(REPO, TAG): 3}
    fourth = put(log, "a")
    assert fourth is not None
    assert (fourth.n, fourth.version) == (4, version("a"))


def test_a_long_history_is_read_ahead_and_no_further_than_wanted() -> None:
    store = MemoryStore()
    log = log_of(store)
    for number in range(31):
        put(log, number)
    steps = Steps(store, 1, 2, 1, 2, 4, 8, 16)  # the hint, its confirmation, then more each time
    assert [entry.n for entry in NameReader(steps).history(REPO, TAG)] == list(range(31, 0, -1))
    assert [len(step) for step in steps.serial] == [1, 2, 1, 2, 4, 8, 16]
    steps = Steps(store, 1, 2, 1)
    assert next(NameReader(steps).history(REPO, TAG)).n == 31
    assert len(steps.serial) == 3
    past = NameReader(store).past(REPO, TAG, NameEntry(7))
    assert past is not None
    assert past.version == version(6)
    assert NameReader(store).past(REPO, TAG, NameEntry(32)) is None


def test_setting_what_stands_creates_nothing(store: Pruner) -> None:
    log = log_of(store)
    assert put(log, "a") is not None
    before = store.list("names/")
    assert put(log, "a") is None
    assert store.list("names/") == before
    other = log.set(NAME, EntryDraft(version("a"), 2))
    assert other is not None
    assert (other.n, other.number) == (2, 2)


def test_names_do_not_share_a_log(store: Pruner) -> None:
    log = log_of(store)
    names = [("a", "1"), ("a", "2"), ("a/b", "1"), ("a:1/b", "1"), ("ab", "1")]
    for repo, tag in names:
        assert log.newest(repo, tag) is None
        log.append(NameTarget(repo, tag), None, EntryDraft(version((repo, tag)), 1))
    for repo, tag in names:
        found = log.newest(repo, tag)
        assert found is not None
        assert found.version == version((repo, tag))
    assert log.catalogue() == dict.fromkeys(names, 1)


def test_the_catalogue_has_the_newest_numbers(store: Pruner) -> None:
    log = log_of(store)
    for number in range(12):
        put(log, number)
    store.create("names/stray", [b""])
    store.create("names/a/b/c", [b""])
    store.create(f"names/a/b/{0:016d}", [b""])
    assert log.catalogue() == {(REPO, TAG): 12}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33])
def test_the_newest_is_found_without_hint_in_few_steps(length: int) -> None:
    store = MemoryStore()
    made = None
    for number in range(length):
        made = move(log_of(store), made, number)
    store.delete(HINT)
    counted = ExistsCounter(store)
    assert NameReader(counted).newest(REPO, TAG) == made
    assert counted.asked <= 2 * length.bit_length() + 2


def test_with_a_hint_one_step_confirms_the_newest() -> None:
    store = MemoryStore()
    for number in range(100):
        put(log_of(store), number)
    steps = Steps(store, 1, 2)
    assert NameReader(steps).newest(REPO, TAG) is not None
    assert steps.serial == [
        [f"get {HINT}"],
        [f"exists {keys.entry(REPO, TAG, 101)}", f"get {keys.entry(REPO, TAG, 100)}"],
    ]


# --- races


def test_the_slower_is_told_who_was_faster(store: Pruner) -> None:
    first = move(log_of(store), None, "a")
    winner = move(log_of(store, seconds=86400.0), first, "b", message="nightly build")
    with pytest.raises(NameMoved) as caught:
        move(log_of(store), first, "c")
    for part in (f"{REPO}:{TAG}", winner.host, "nightly build", "1970-01-02 00:00:00 UTC", "try again"):
        assert part in str(caught.value)
    assert log_of(store).newest(REPO, TAG) == winner


def test_set_takes_the_next_number_when_others_are_faster(store: Pruner) -> None:
    faulty = Faulty(store)
    for number in range(3):
        faulty.before_create = lambda number=number: put(log_of(store), f"other {number}")
        made = put(log_of(faulty), f"mine {number}")
        assert made is not None
        assert made.n == 2 * number + 2
    assert [entry.n for entry in log_of(store).history(REPO, TAG)] == [6, 5, 4, 3, 2, 1]


def test_set_is_content_when_another_sets_the_same(store: Pruner) -> None:
    faulty = Faulty(store)
    faulty.before_create = lambda: put(log_of(store), "same")
    assert put(log_of(faulty), "same") is None
    assert len(store.list("names/")) == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_lost_answer_is_found_out(store: Pruner, first: bool) -> None:
    faulty = Faulty(store)
    before = None if first else move(log_of(store), None, "a")
    faulty.lose_answer = True
    made = move(log_of(faulty), before, "b")
    assert log_of(store).newest(REPO, TAG) == made
    assert len(store.list("names/")) == made.n


def test_a_lost_answer_of_the_loser_is_found_out(store: Pruner) -> None:
    faulty = Faulty(store)
    faulty.before_create = lambda: put(log_of(store), "other")
    faulty.fail_create = True
    with pytest.raises(NameMoved):
        move(log_of(faulty), None, "mine")


def test_a_create_that_did_not_happen_is_said(store: Pruner) -> None:
    faulty = Faulty(store)
    faulty.fail_create = True
    with pytest.raises(StoreUnavailable, match="before the request"):
        move(log_of(faulty), None, "a")
    assert store.list("names/") == []
    assert move(log_of(faulty), None, "a").n == 1


def test_an_outcome_that_cannot_be_known_is_said(store: Pruner) -> None:
    faulty = Faulty(store)

    def stop() -> None:
        faulty.down = True

    faulty.before_create, faulty.lose_answer = stop, True
    with pytest.raises(StoreUnavailable, match=r"whether .* was moved is not known"):
        move(log_of(faulty), None, "a")
    faulty.down = False
    assert put(log_of(faulty), "a") is None


class Refusals(Faulty):
    """Counts the entries that were there already."""

    def __init__(self, inner: Pruner) -> None:
        super().__init__(inner)
        self.counted: list[str] = []

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        try:
            super().create(key, parts)
        except AlreadyExists:
            self.counted.append(key)
            raise


def test_many_writers_make_one_chain(store: Pruner) -> None:
    writers, moves = 8, 20
    start = threading.Barrier(writers)
    refusals = Refusals(store)
    told: list[tuple[int, str]] = []

    def write(writer: int) -> list[Entry]:
        log = log_of(refusals)
        done: list[Entry] = []
        start.wait()
        while len(done) < moves:
            seen = log.newest(REPO, TAG)
            try:
                done.append(move(log, seen, (writer, len(done)), message=f"writer {writer}"))
            except NameMoved as error:
                told.append((writer, str(error)))
        return done

    with ThreadPoolExecutor(writers) as pool:
        made = [entry for part in pool.map(write, range(writers)) for entry in part]
    chain = list(log_of(store).history(REPO, TAG))
    assert [entry.n for entry in chain] == list(range(writers * moves, 0, -1))
    assert sorted(made, key=lambda entry: -entry.n) == chain
    assert len({entry.version for entry in chain}) == writers * moves
    assert len(told) == len(refusals.counted)
    for loser, text in told:
        assert any(f"(writer {winner})" in text for winner in range(writers) if winner != loser)


# --- hints


@pytest.mark.parametrize(
    "damaged",
    [b"", b"x", b"-1", b"0", b"1", b"2", b"4", b"1000000", b"9" * 16, b"9" * 17, b"\xb2", b"3\n", b"\0" * 100],
)
def test_a_damaged_hint_is_none(store: Pruner, damaged: bytes) -> None:
    log = log_of(store)
    entry = None
    for number in range(3):
        entry = move(log, entry, number)
    store.replace(HINT, damaged)
    assert NameReader(store).newest(REPO, TAG) == entry
    assert store.get(HINT) == damaged, "who only reads leaves it"
    assert log.newest(REPO, TAG) == entry
    assert hint.decode(store.get(HINT), REPO, TAG).entry == entry


def hinted(entry: Entry, about: bytes | None = None) -> bytes:
    return hint.encode(hint.Hint(entry, entries.encode(entry), about))


def test_a_hint_that_lies_is_found_out(store: Pruner, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = log_of(store)
    first = move(log, None, "a")
    second = move(log, first, "b")
    third = move(log, second, "c")
    other = log.append(NameTarget("other", TAG), None, EntryDraft(version("x"), 1))
    later = replace(third, n=9, key=keys.entry(REPO, TAG, 9))
    for lie in (
        hinted(first),
        hinted(second),
        hinted(later),
        hinted(replace(third, version=version("evil"))),
        hinted(replace(second, version=version("evil"))),
        hinted(other),
        hinted(third)[:-10],
    ):
        store.replace(HINT, lie)
        assert NameReader(store).newest(REPO, TAG) == third
        assert store.get(HINT) == lie, "who only reads leaves it"
        assert log.newest(REPO, TAG) == third
        assert hint.decode(store.get(HINT), REPO, TAG).entry == third
    assert "entry 9 of" in caplog.text


def test_a_hint_of_a_name_that_is_not_there(store: Pruner) -> None:
    log = log_of(store)
    made = move(log, None, "a")
    store.delete(made.key)
    assert log.newest(REPO, TAG) is None


def test_a_hint_has_the_record_of_the_version(store: Pruner) -> None:
    record = Version(Root(ABSENT, 5), Root(ABSENT, 5), WriterLayout(0, 0))
    number = ObjectWriter(store).put_version(record, set())
    log_of(store).set(NAME, EntryDraft.of(record, number))
    about = hint.decode(store.get(HINT), REPO, TAG).version
    assert about is not None
    assert versions.decode(about, record.name) == record


# --- where an engine cannot list


class Unlisted(Faulty):
    def list(self, prefix: str) -> list[str]:
        raise CannotList("this engine cannot list")


def test_the_catalogue_of_an_engine_that_cannot_list(store: Pruner) -> None:
    reader = NameReader(Unlisted(store))
    assert reader.catalogue() == {}
    log = log_of(store)
    for tag in ("1", "2"):
        log.append(NameTarget("a/b", tag), None, EntryDraft(version(tag), 1))
    put(log, "c")
    put(log, "d")
    assert reader.catalogue() == log.catalogue() == {("a/b", "1"): 1, ("a/b", "2"): 1, (REPO, TAG): 2}


def test_what_two_writers_lost_comes_back_with_the_next(store: Pruner) -> None:
    reader = NameReader(Unlisted(store))
    log_of(store).append(NameTarget("lost", "1"), None, EntryDraft(version(1), 1))
    for damaged in (catalogue.encode({}), b"damaged"):
        store.replace(keys.CATALOGUE, damaged)
        log = log_of(store)
        log.catalogue()  # as an import does first
        put(log, damaged)
        assert reader.catalogue() == log.catalogue()
    assert ("lost", "1") in reader.catalogue()


def test_a_damaged_catalogue_is_said_where_there_is_no_other(store: Pruner) -> None:
    store.replace(keys.CATALOGUE, b"damaged")
    with pytest.raises(Corrupt, match="moving a name mends it"):
        NameReader(Unlisted(store)).catalogue()


def test_a_hint_that_cannot_be_read_or_written_stops_nobody(store: Pruner, caplog: pytest.LogCaptureFixture) -> None:
    class NoHints(Faulty):
        def get(self, key: str, *most: int) -> bytes:
            if key.startswith("hints/"):
                raise StoreUnavailable("permission denied")
            return super().get(key, *most)

    faulty = NoHints(store)
    faulty.hints_refused = True
    made = move(log_of(faulty), None, "a")
    assert log_of(faulty).newest(REPO, TAG) == made
    assert "is not used: permission denied" in caplog.text
    assert store.list("hints/") == []


def test_an_outage_is_not_an_absent_name(store: Pruner) -> None:
    put(log_of(store), "a")
    faulty = Faulty(store)
    faulty.down = True
    for call in (lambda: log_of(faulty).newest(REPO, TAG), lambda: log_of(faulty).catalogue()):
        with pytest.raises(StoreUnavailable):
            call()


# --- damage


def rewritten(store: Pruner, n: int, change: Callable[[bytes], bytes]) -> None:
    key = keys.entry(REPO, TAG, n)
    data = change(store.get(key))
    store.delete(key)
    store.create(key, [data])


in_every_way = pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b'"set"', b'"sat"'),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data * (entries.MAX_BYTES // len(data) + 1),
    ],
)


@in_every_way
def test_a_damaged_entry_is_corrupt(store: Pruner, change: Callable[[bytes], bytes]) -> None:
    log = log_of(store)
    second = move(log, move(log, None, "a"), "b")
    rewritten(store, 2, change)
    for call in (
        lambda: log.newest(REPO, TAG),
        lambda: list(log.history(REPO, TAG)),
        lambda: move(log, second, "c"),
    ):
        with pytest.raises(Corrupt, match=f"entry 2 of {REPO}:{TAG} is damaged|{keys.entry(REPO, TAG, 2)} has"):
            call()
    assert len(store.list("names/")) == 2


@in_every_way
@pytest.mark.parametrize("count", [1, 2])
def test_an_import_goes_on_after_a_damaged_entry_and_says_so(
    store: Pruner, change: Callable[[bytes], bytes], count: int
) -> None:
    log = log_of(store)
    for at in range(count):
        put(log, str(at))
    rewritten(store, count, change)
    said: list[str] = []
    target, draft = NameTarget(REPO, TAG), EntryDraft(version("0"), 1)
    made = log.set(target, draft, warn=said.append)
    assert made is not None
    assert made.n == count + 1
    (told,) = said
    assert f"goes on with entry {count + 1}" in told
    assert log.set(target, draft, warn=said.append) is None, "it stands for that now"
    assert log_of(store).newest(REPO, TAG) == NameReader(store).newest(REPO, TAG) == made
    assert len(said) == 1
    stale = hint.encode(hint.Hint(made, entries.encode(made), None))
    store.replace(keys.name_hint(REPO, TAG), stale)
    put(log, "more")
    store.replace(keys.name_hint(REPO, TAG), stale)
    rewritten(store, count + 1, change)
    found = log_of(store).newest(REPO, TAG)
    assert found is not None
    assert found.n == count + 2, "a hint of a damaged entry leads past it"


def test_an_entry_that_was_damaged_on_its_way_stands(store: Pruner) -> None:
    class Once(Faulty):
        """Damages the first answer with an entry."""

        left = 1

        def get(self, key: str, *most: int) -> bytes:
            data = super().get(key, *most)
            if not key.startswith("names/") or not self.left:
                return data
            self.left -= 1
            return b"damaged"

    put(log_of(store), "a")
    store.delete(keys.name_hint(REPO, TAG))
    faulty = Once(store)
    assert log_of(faulty).set(NameTarget(REPO, TAG), EntryDraft(version("a"), 1), warn=pytest.fail) is None
    assert not faulty.left
    assert len(store.list("names/")) == 1


# --- what is advice


def test_a_name_that_stands_has_its_hint_and_the_catalogue_put_right(store: Pruner) -> None:
    put(log_of(store), "a")
    log_of(store).append(NameTarget("other", "1"), None, EntryDraft(version(1), 1))
    right = {key: store.get(key) for key in (keys.name_hint(REPO, TAG), keys.CATALOGUE)}
    entry = log_of(store).newest(REPO, TAG)
    assert entry is not None
    lies = hint.BundleRef("default", "bundles/none", 10, 5)
    wrong = {
        keys.name_hint(REPO, TAG): (b"damaged", hint.encode(hint.Hint(entry, entries.encode(entry), None, (lies,)))),
        keys.CATALOGUE: (
            b"damaged",
            catalogue.encode({}),
            catalogue.encode({(REPO, TAG): 9, ("other", "1"): 1}),
            catalogue.encode({(REPO, TAG): 1, ("other", "1"): 1, ("gone", "1"): 1}),
        ),
    }
    for key, spoilt in wrong.items():
        for data in (*spoilt, None):
            store.delete(key)
            if data is not None:
                store.replace(key, data)
            log = log_of(store)
            log.catalogue()  # as an import does first
            put(log, "a")
            assert {own: store.get(own) for own in right} == right
    assert len(store.list("names/")) == 2


def test_an_entry_in_the_wrong_place_is_corrupt(store: Pruner) -> None:
    log = log_of(store)
    move(log, move(log, None, "a"), "b")
    first = store.get(keys.entry(REPO, TAG, 1))
    rewritten(store, 2, lambda data: first)
    with pytest.raises(Corrupt, match="entry 2"):
        log.newest(REPO, TAG)


def test_a_rewritten_past_is_corrupt(store: Pruner) -> None:
    log = log_of(store)
    move(log, move(log, move(log, None, "a"), "b"), "c")
    key = keys.entry(REPO, TAG, 2)
    old = entries.decode(store.get(key), key)
    forged = Entry(key, 2, version("evil"), 1, None, None, None, old.previous, old.nonce, old.time, old.host, "")
    rewritten(store, 2, lambda data: entries.encode(forged))
    history = log.history(REPO, TAG)
    assert next(history).n == 3
    with pytest.raises(Corrupt, match="is not the one that entry 3 continues"):
        next(history)


def test_names_that_leave_the_log_are_no_keys(store: Pruner) -> None:
    with pytest.raises(UsageError):
        log_of(store).newest("redis", "..")
