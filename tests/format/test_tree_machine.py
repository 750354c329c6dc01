"""A volume that is written, emptied, grown and stored in any order; a dict from blocks to pieces of chunks is the model."""

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockmap.format.chunker import SPAN
from blockmap.format.extent import Extent, zeros
from blockmap.format.tree import Draft, Root, build, coverage, find, rewrite
from blockmap.store.walk import diff
from tests.format.trees import CHUNKS, PLACES, SIZES, Model, Nodes, as_map, blocks_of, check, edges, written

spots = st.tuples(st.integers(0, 9), st.integers(-70, 150))


class Trees(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes()
        self.model: Model = {}
        self.history: list[tuple[Root, Model]] = []
        """All versions so far, which must not change."""

    @initialize(size=st.sampled_from(SIZES))
    def create(self, size: int) -> None:
        self.root = self.nodes.store(build([], size, {}))

    def block(self, spot: tuple[int, int]) -> int:
        near = edges(self.root.size)
        return min(max(near[spot[0] % len(near)] + spot[1], 0), self.root.size - 1)

    def commit(self, edits: list[Extent], size: int) -> None:
        self.history.append((self.root, self.model))
        made = rewrite(self.root, edits, size, self.nodes.load, PLACES)
        self.root = self.nodes.store(made)
        self.model = written(self.model, edits)
        if size == self.history[-1][0].size and self.model == self.history[-1][1]:
            assert made == Draft(self.history[-1][0]), "what changes nothing makes nothing"

    @rule(spot=spots, of=st.sampled_from(CHUNKS), first=st.integers(0, 63), length=st.integers(1, 64))
    def write(self, spot: tuple[int, int], of: tuple[bytes, int], first: int, length: int) -> None:
        chunk, blocks = of
        start, first = self.block(spot), first % blocks
        length = min(length, blocks - first, self.root.size - start)
        self.commit([Extent(start, length, chunk, blocks, first)], self.root.size)  # type: ignore[arg-type]

    @rule(spot=spots, length=st.sampled_from([1, 30, SPAN, SPAN + 9, coverage(1), coverage(1) + 1]))
    def discard(self, spot: tuple[int, int], length: int) -> None:
        start = self.block(spot)
        self.commit([zeros(start, min(start + length, self.root.size))], self.root.size)

    @rule(source=spots, to=spots, length=st.integers(1, 300))
    def copy(self, source: tuple[int, int], to: tuple[int, int], length: int) -> None:
        """Copies pieces of stored chunks, and zeros, to another place."""
        start, there = self.block(source), self.block(to)
        length = min(length, self.root.size - start, self.root.size - there)
        moved = {
            at - start + there: piece
            for at in range(start, start + length)
            if (piece := self.model.get(at)) is not None
        }
        edits, at = [], there
        for extent in as_map(moved):
            if at < extent.start:
                edits.append(zeros(at, extent.start))
            edits.append(extent)
            at = extent.end
        if at < there + length:
            edits.append(zeros(at, there + length))
        self.commit(edits, self.root.size)

    @rule(size=st.sampled_from(SIZES))
    def grow(self, size: int) -> None:
        if size >= self.root.size:
            self.commit([], size)

    @rule(spot=spots)
    def read(self, spot: tuple[int, int]) -> None:
        span = self.block(spot) // SPAN
        leaf = find(self.root, span, self.nodes.load)
        expected = {at: piece for at, piece in self.model.items() if at // SPAN == span}
        assert blocks_of([] if leaf is None else leaf.extents(span * SPAN)) == expected

    @rule(back=st.integers(0, 20))
    def compare(self, back: int) -> None:
        """Checks that the spans that differ from an earlier version are those with different blocks or cuts."""
        if not self.history:
            return
        root, model = self.history[-1 - back % len(self.history)]
        check(root, self.nodes.load_many)
        found = {span for span, _, _ in diff(root, self.root, self.nodes.load_many)}
        assert found == {at // SPAN for at, _ in model.items() ^ self.model.items()}

    @invariant()
    def the_tree_is_that_of_its_extents(self) -> None:
        if not hasattr(self, "root"):
            return
        check(self.root, self.nodes.load_many)
        expected = build(as_map(self.model), self.root.size, {}).root
        assert replace(self.root, placement=None) == expected


TestTrees = Trees.TestCase
TestTrees.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
