"""The fetcher against a dict: whatever fails, is damaged, evicted or wanted meanwhile, a read gives its content or says why
not."""

import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockmap.cache.cache import Cache
from blockmap.errors import Corrupt, StoreUnavailable
from blockmap.fetch.fetcher import Fetcher
from blockmap.fetch.neighbours import Neighbours
from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.origin.link import Link
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.origin.ranges import Ranges
from blockmap.store.memory import MemoryStore
from blockmap.store.plan import Wanted, chunk_at
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk
from tests.volume.building import Watched, publish

BLOCKS = 300
LIMIT_S = 20.0

numbers = st.integers(0, 1 << 16)


class FetcherMachine(RuleBasedStateMachine):
    @initialize(cap=st.sampled_from([0, 200_000, 1 << 30]), rate=st.sampled_from([0.0, 32e6, 1e12]))
    def begin(self, cap: int, rate: float) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.store = Watched(MemoryStore())
        self.store.create(keys.FORMAT, [b"{}"])
        whole = bulk(1, BLOCKS * BLOCK)
        root = publish(self.store, [(0, whole)], SPAN)
        self.model: dict[Wanted, bytes] = {}
        at = 0
        for _, leaf in leaves(root, Repository(self.store.inner).packs.nodes):
            for name, place in zip(leaf.chunks, leaf.placements, strict=True):
                assert place is not None
                self.model[chunk_at(name, place)] = whole[at : at + place.raw]
                at += place.raw
        self.items = list(self.model)
        self.known = Neighbours()
        self.known.add(self.items)
        self.damaged = 0
        self.refused = 0
        self.store.damage = self.strike
        self.cache = Cache(self.directory, cap)
        link = Link()
        link.bytes_per_s = rate
        self.fetcher = Fetcher(Ranges(self.store, link), self.cache)
        self.pool = ThreadPoolExecutor(4)

    def strike(self, data: bytes, start: int) -> bytes:
        """The faults that were ordered, one a range."""
        if self.refused > 0:
            self.refused -= 1
            raise StoreUnavailable("reset")
        if self.damaged > 0:
            self.damaged -= 1
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data

    def read(self, number: int, more: int, policy: OutagePolicy) -> None:
        wanted = [self.items[(number + each) % len(self.items)] for each in range(more + 1)]
        attempt = self.fetcher.outage.attempt(policy)
        assert self.fetcher.get(wanted, self.known.around, attempt) == self.model[wanted[0]]

    @rule(number=numbers, more=st.integers(0, 4))
    def read_patiently(self, number: int, more: int) -> None:
        """Whatever was ordered: few enough faults for every attempt."""
        self.store.down = False
        self.read(number, more, OutagePolicy(LIMIT_S))

    @rule(number=numbers)
    def read_without_patience(self, number: int) -> None:
        down = self.store.down
        try:
            self.read(number, 0, OutagePolicy(0))
        except StoreUnavailable:
            assert down or self.fetcher.outage.away or self.fetcher.status()["outages"] > 0
        except Corrupt:
            raise AssertionError("three faults at most are in store, and a fourth attempt is made") from None

    @rule(chosen=st.lists(numbers, min_size=2, max_size=6))
    def read_together(self, chosen: list[int]) -> None:
        self.store.down = False
        for done in [self.pool.submit(self.read, number, 2, OutagePolicy(LIMIT_S)) for number in chosen]:
            done.result(LIMIT_S * 2)

    @rule(first=numbers, count=st.integers(0, 8))
    def want(self, first: int, count: int) -> None:
        first %= len(self.items)
        self.fetcher.want(lambda: self.items[first : first + count])

    @rule(count=st.integers(1, 3))
    def damage(self, count: int) -> None:
        self.damaged = count

    @rule(count=st.integers(1, 3))
    def refuse(self, count: int) -> None:
        self.refused = count

    @rule()
    def go_down(self) -> None:
        self.store.down = True

    @rule(number=numbers)
    def lose(self, number: int) -> None:
        """What eviction does."""
        slot = self.cache.lookup(self.items[number % len(self.items)].key)
        if slot >= 0:
            self.cache.discard(slot)

    @invariant()
    def what_the_cache_has_is_right(self) -> None:
        for item, content in self.model.items():
            data = self.cache.get(item.key)
            assert data is None or data == content

    def teardown(self) -> None:
        self.store.down = False
        end = time.monotonic() + LIMIT_S
        while self.fetcher.status()["in_flight"]:
            assert time.monotonic() < end, "a flight that never lands"
            time.sleep(0.001)
        self.pool.shutdown()
        self.fetcher.close()
        self.cache.close()
        shutil.rmtree(self.directory)


TestFetcherMachine = FetcherMachine.TestCase
TestFetcherMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
