"""Two hosts move names on a store that fails; a list of versions is the model."""

import hashlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blockmap.errors import NameMoved, StoreUnavailable
from blockmap.format import entry as entries
from blockmap.format import hint, keys
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.store.memory import MemoryStore
from blockmap.store.names import EntryDraft, NameLog, NameReader, NameTarget
from tests.store.faulty import Faulty

NAMES = [("redis", "7"), ("redis", "latest"), ("host:5000/redis", "7")]
VERSIONS = [Digest(hashlib.sha256(bytes([seed])).digest()) for seed in range(4)]

hosts = st.integers(0, 1)
names = st.sampled_from(NAMES)
versions = st.sampled_from(VERSIONS)
faults = st.sampled_from(["none", "lost answer", "no answer", "no hints"])


class Names(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.inner = MemoryStore()
        self.stores = [Faulty(self.inner), Faulty(self.inner)]
        ticks = itertools.count(1_700_000_000)
        self.logs = [NameLog(store, clock=lambda: next(ticks)) for store in self.stores]
        self.model: dict[tuple[str, str], list[tuple[Digest | None, int]]] = {name: [] for name in NAMES}
        self.seen: list[dict[tuple[str, str], Entry | None]] = [{}, {}]
        """What each host last read, which it may build on much later."""

    def arm(self, host: int, fault: str) -> None:
        store = self.stores[host]
        store.lose_answer = fault == "lost answer"
        store.fail_create = fault == "no answer"
        store.hints_refused = fault == "no hints"

    def attempt(self, host: int, fault: str, call: Callable[[], Entry | None]) -> Entry | Exception | None:
        self.arm(host, fault)
        try:
            return call()
        except (NameMoved, StoreUnavailable) as error:
            return error
        finally:
            self.arm(host, "none")
            self.stores[host].before_create = None

    @rule(host=hosts, name=names, version=versions, number=st.integers(1, 2), fault=faults)
    def set(self, host: int, name: tuple[str, str], version: Digest, number: int, fault: str) -> None:
        stood = self.model[name][-1] if self.model[name] else None
        result = self.attempt(host, fault, lambda: self.logs[host].set(NameTarget(*name), EntryDraft(version, number)))
        if stood == (version, number):
            assert result is None
        elif fault == "no answer":
            assert isinstance(result, StoreUnavailable)
        else:
            assert isinstance(result, Entry)
            self.model[name].append((version, number))
            assert result.n == len(self.model[name])

    @rule(host=hosts, name=names)
    def look(self, host: int, name: tuple[str, str]) -> None:
        self.seen[host][name] = self.logs[host].newest(*name)

    @rule(host=hosts, name=names, version=st.none() | versions, fault=faults)
    def append(self, host: int, name: tuple[str, str], version: Digest | None, fault: str) -> None:
        """A commit: expects what the host saw, however long ago."""
        expected = self.seen[host].get(name)
        current = (expected.n if expected else 0) == len(self.model[name])
        result = self.attempt(
            host, fault, lambda: self.logs[host].append(NameTarget(*name), expected, EntryDraft(version, 1))
        )
        if not current:
            assert isinstance(result, NameMoved)
        elif fault == "no answer":
            assert isinstance(result, StoreUnavailable)
        else:
            assert isinstance(result, Entry)
            self.model[name].append((version, 1))
            self.seen[host][name] = result

    @rule(host=hosts, name=names, mine=versions, theirs=versions, fault=faults)
    def race(self, host: int, name: tuple[str, str], mine: Digest, theirs: Digest, fault: str) -> None:
        """The other host's entry comes between this one's look and its create."""
        log, other = self.logs[host], self.logs[1 - host]
        expected = log.newest(*name)

        def meanwhile() -> None:
            other.append(NameTarget(*name), expected, EntryDraft(theirs, 1))

        self.stores[host].before_create = meanwhile
        result = self.attempt(host, fault, lambda: log.append(NameTarget(*name), expected, EntryDraft(mine, 1)))
        self.model[name].append((theirs, 1))
        assert isinstance(result, NameMoved)

    @rule(host=hosts, name=names, mine=versions, theirs=versions, fault=st.sampled_from(["none", "lost answer"]))
    def race_of_imports(self, host: int, name: tuple[str, str], mine: Digest, theirs: Digest, fault: str) -> None:
        """Both take a number, whoever is first; one that finds its own version there takes none."""
        self.stores[host].before_create = lambda: self.logs[1 - host].set(NameTarget(*name), EntryDraft(theirs, 1))
        steps = self.model[name]
        if steps[-1:] != [(mine, 1)]:
            result = self.attempt(host, fault, lambda: self.logs[host].set(NameTarget(*name), EntryDraft(mine, 1)))
            if steps[-1:] != [(theirs, 1)]:
                steps.append((theirs, 1))
            if theirs == mine:
                assert result is None
            else:
                assert isinstance(result, Entry)
                steps.append((mine, 1))
        self.stores[host].before_create = None

    @rule(name=names, hint=st.binary(max_size=20) | st.integers(0, 40).map(lambda n: str(n).encode()))
    def spoil_hint(self, name: tuple[str, str], hint: bytes) -> None:
        self.inner.replace(keys.name_hint(*name), hint)

    @rule(name=names, data=st.data())
    def age_hint(self, name: tuple[str, str], data: st.DataObject) -> None:
        """A slow reader overwrites the hint with what it saw long ago; or the hint is of a log that was ahead."""
        if self.model[name]:
            n = data.draw(st.integers(1, len(self.model[name])))
            seen, stored = NameReader(self.inner).entry(*name, n)
            if data.draw(st.booleans()):
                seen = replace(seen, n=n + 1, key=keys.entry(*name, n + 1), previous=b"\1" * 32)
                stored = entries.encode(seen)
            self.inner.replace(keys.name_hint(*name), hint.encode(hint.Hint(seen, stored, None)))

    @rule(name=names)
    def lose_hint(self, name: tuple[str, str]) -> None:
        self.inner.delete(keys.name_hint(*name))

    @precondition(lambda self: any(self.model.values()))
    @rule(host=hosts)
    def restart(self, host: int) -> None:
        self.seen[host].clear()

    @invariant()
    def names_stand_for_what_they_should(self) -> None:
        reader = NameReader(self.inner)
        for name, expected in self.model.items():
            newest = reader.newest(*name)
            assert (newest and (newest.version, newest.number)) == (expected[-1] if expected else None)
            chain = [(entry.version, entry.number) for entry in reader.history(*name)]
            assert chain == expected[::-1]
        assert reader.catalogue() == {name: len(expected) for name, expected in self.model.items() if expected}

    @invariant()
    def logs_are_dense(self) -> None:
        assert self.inner.list("names/") == sorted(
            keys.entry(*name, n) for name, expected in self.model.items() for n in range(1, len(expected) + 1)
        )


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # spoilt hints are logged, thousands of them


TestNames = Names.TestCase
TestNames.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
