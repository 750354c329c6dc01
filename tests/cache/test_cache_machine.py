"""The cache against a dict: whatever happens, it holds a part of what was put, and never a wrong byte."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blockmap.cache import slot as slots
from blockmap.cache.cache import Cache
from blockmap.format import BLOCK

from .contents import allocated, content, name, read_present, with_holes

# Chunks of one to some blocks, the largest, one that ends within a block, and a node of more than 64 blocks.
LENGTHS = [1, 2, 3, 5, 8, 64]
BYTES = [count * BLOCK for count in LENGTHS] + [2 * BLOCK + 100, 70 * BLOCK + 1]
NUMBERS = st.integers(0, 3 * len(BYTES) - 1)


def length_of(number: int) -> int:
    return BYTES[number % len(BYTES)]


class CacheMachine(RuleBasedStateMachine):
    """`held` is what the cache has if it evicted nothing; `damaged` what it must drop when it is looked at."""

    @initialize(cap_blocks=st.sampled_from([12, 90, 200, 100_000]))
    def begin(self, cap_blocks: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="blockmap-cache-"))
        self.cap = cap_blocks * BLOCK
        self.held: dict[int, int] = {}
        self.damaged: set[int] = set()
        self.evicted = False
        self.pinned: list[int] = []
        self.cache = Cache(self.directory, self.cap)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
            shutil.rmtree(self.directory)

    @rule(number=NUMBERS, mask=st.none() | st.integers(1, (1 << 64) - 1))
    def put(self, number: int, mask: int | None) -> None:
        length = length_of(number)
        whole = slots.whole_mask(length)
        if mask is not None and slots.blocks_of(length) <= 64:
            mask &= whole
            if not mask:
                return
            data = with_holes(content(number, length), mask)
        else:
            mask, data = None, content(number, length)
        slot = self.cache.put(name(number), data, mask)
        if number in self.damaged:
            self.damaged.discard(number)
            del self.held[number]
        self.held[number] = self.held.get(number, 0) | (whole if mask is None else mask)
        if slot < 0:
            self.evicted = True
        else:
            assert not self.cache.dead[slot]
            assert self.cache.lookup(name(number)) == slot
            assert self.cache.mask(slot) & (whole if mask is None else mask) == (whole if mask is None else mask)
        self.evicted |= self.cache.status()["evicted"] > 0

    @rule(number=NUMBERS)
    def get(self, number: int) -> None:
        length = length_of(number)
        bad = self.cache.status()["damaged"]
        there = self.cache.lookup(name(number)) >= 0
        data = self.cache.get(name(number))
        if number in self.damaged:
            assert data is None
            assert self.cache.status()["damaged"] == bad + there
            self.forget(number)
        elif data is not None:
            assert data == content(number, length)
            assert self.held[number] == slots.whole_mask(length)
        elif not self.evicted:
            assert self.held.get(number) != slots.whole_mask(length)

    @rule(number=NUMBERS)
    def read(self, number: int) -> None:
        bad = self.cache.status()["damaged"]
        there = self.cache.lookup(name(number)) >= 0
        mask = read_present(self.cache, number, length_of(number))
        if number in self.damaged:
            assert mask is None
            assert self.cache.status()["damaged"] == bad + there
            self.forget(number)
        elif self.evicted:
            assert mask is None or mask & self.held[number] == mask
        else:
            assert mask == self.held.get(number)

    @rule(number=NUMBERS)
    def discard(self, number: int) -> None:
        self.cache.discard(self.cache.lookup(name(number)))
        self.forget(number)
        assert self.cache.lookup(name(number)) == -1

    @precondition(lambda self: len(self.pinned) < 3)
    @rule(number=NUMBERS)
    def pin(self, number: int) -> None:
        slot = self.cache.lookup(name(number))
        if slot >= 0:
            self.cache.pin(slot)
            self.pinned.append(slot)

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        self.cache.unpin(self.pinned.pop())

    @rule()
    def clear(self) -> None:
        kept = {number for number in self.held if self.cache.lookup(name(number)) in self.pinned}
        self.cache.clear()
        for number in set(self.held) - kept:
            self.forget(number)
            assert self.cache.lookup(name(number)) == -1

    @rule(limit=st.integers(1, 500 * BLOCK))
    def scrub(self, limit: int) -> None:
        assert self.cache.scrub(limit) <= len(self.damaged)

    @rule(cap_blocks=st.none() | st.sampled_from([12, 90, 200]))
    def restart(self, cap_blocks: int | None) -> None:
        self.cache.close()
        if cap_blocks is not None:
            self.cap = cap_blocks * BLOCK
        self.pinned.clear()
        self.cache = Cache(self.directory, self.cap)
        self.evicted |= self.cache.status()["evicted"] > 0

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Flips a byte of a slot's header, or of a block that is present, while the cache is closed."""
        candidates = sorted(n for n in self.held if self.cache.lookup(name(n)) >= 0 and n not in self.damaged)
        if not candidates:
            return
        number = data.draw(st.sampled_from(candidates))
        slot = self.cache.lookup(name(number))
        length, mask = length_of(number), self.cache.mask(slot)
        blocks = [index for index in range(slots.blocks_of(length)) if slots.has(mask, index)]
        start = self.cache.data_position(slot)
        index = data.draw(st.sampled_from([-1, *blocks]))
        if index < 0:
            at = start - slots.header_bytes(length) + data.draw(st.integers(0, 63 + 8 * slots.blocks_of(length)))
        else:
            at = start + index * BLOCK + data.draw(st.integers(0, BLOCK - 1))
        self.restart(None)
        byte = os.pread(self.cache.fd, 1, at)[0]
        os.pwrite(self.cache.fd, bytes([byte ^ data.draw(st.integers(1, 255))]), at)
        self.damaged.add(number)

    @precondition(lambda self: not self.damaged)
    @rule()
    def lose_the_index(self) -> None:
        self.cache.close()
        (self.directory / "index.db").write_bytes(b"not a database" * 100)
        self.pinned.clear()
        self.cache = Cache(self.directory, self.cap)
        assert self.cache.status()["slots"] == self.cache.status()["bytes"] == 0
        self.held.clear()

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "cache"):
            return
        status = self.cache.status()
        slot_of = {number: self.cache.lookup(name(number)) for number in self.held}
        alive = {number: slot for number, slot in slot_of.items() if slot >= 0}
        assert status["slots"] == len(alive)
        assert status["bytes"] == sum(allocated(length_of(n), self.cache.mask(slot)) for n, slot in alive.items())
        assert status["bytes"] <= self.cap
        assert status["pinned_bytes"] == sum(
            allocated(length_of(n), self.cache.mask(slot)) for n, slot in alive.items() if slot in self.pinned
        )
        assert not any(self.cache.dead[slot] for slot in alive.values())

    def forget(self, number: int) -> None:
        self.held.pop(number, None)
        self.damaged.discard(number)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
