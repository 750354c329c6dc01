"""What was written over a version becomes the edits of its tree."""

import random
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN, Parameters
from blockmap.format.extent import Extent
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.dirty import BlockRuns, DirtyRange, block_runs, edits, nodes_above, write_runs
from blockmap.publish.object_writer import ObjectWriter
from blockmap.publish.stages import Stages
from blockmap.publish.trees import draft_rewrite
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from tests.image.builder import bulk
from tests.volume.building import Watched, publish

BYTES = 40 * BLOCK
marks = st.lists(st.tuples(st.integers(0, BYTES), st.integers(1, 3 * BLOCK), st.booleans()), max_size=8)


def ranges(chosen: Sequence[tuple[int, int, bool]]) -> list[DirtyRange]:
    """Returns ascending, disjoint ranges, as an overlay map has them."""
    state = bytearray(BYTES)
    for start, length, is_zero in chosen:
        end = min(start + length, BYTES)
        state[start:end] = bytes([1 + is_zero]) * (end - start)
    found: list[DirtyRange] = []
    for at, kind in enumerate(state):
        if not kind:
            continue
        if found and found[-1].end == at and found[-1].is_zero == (kind == 2):
            found[-1] = DirtyRange(found[-1].start, at + 1, kind == 2)
        else:
            found.append(DirtyRange(at, at + 1, kind == 2))
    return found


@settings(deadline=None)
@given(marks)
def test_runs_hold_each_block_that_was_touched_once(chosen: list[tuple[int, int, bool]]) -> None:
    dirty = ranges(chosen)
    runs = block_runs(dirty)
    kinds: dict[int, set[bool]] = {}
    for start, end, is_zero in dirty:
        for block in range(start // BLOCK, -(-end // BLOCK)):
            whole = start <= block * BLOCK and (block + 1) * BLOCK <= end
            kinds.setdefault(block, set()).add(is_zero and whole)
    assert {block for start, end in runs.data for block in range(start, end)} == {
        b for b, k in kinds.items() if k != {True}
    }
    assert {block for start, end in runs.zeros for block in range(start, end)} == {
        b for b, k in kinds.items() if k == {True}
    }
    for own in runs:
        assert own == sorted(own)
        assert all(one[1] < two[0] for one, two in pairwise(own))


@settings(max_examples=30, deadline=None)
@given(marks, st.integers(0, 1 << 30))
def test_the_edits_over_a_base_are_what_was_written(chosen: list[tuple[int, int, bool]], seed: int) -> None:
    store = MemoryStore()
    content = bytearray(bulk(1, BYTES // 2) + bytes(BYTES // 2))
    root = publish(store, [(0, bytes(content))], SPAN)
    base = Version(root, Root(bytes(32), SPAN), WriterLayout(0, 0))  # type: ignore[arg-type]
    dirty = ranges(chosen)
    noise = random.Random(seed)
    for start, end, is_zero in dirty:
        content[start:end] = bytes(end - start) if is_zero or noise.random() < 0.3 else noise.randbytes(end - start)
    runs = block_runs(dirty)

    def read(buf: memoryview, offset: int) -> None:
        buf[:] = content[offset : offset + len(buf)]

    with ChunkWriter(ObjectWriter(store).put_pack, lambda names: [None] * len(names), Parameters(), Stages()) as chunks:
        write_runs(chunks, runs, read)
        chunks.finish()
        changed = edits(chunks, runs)
    covered = [block for extent in changed for block in range(extent.start, extent.end)]
    assert covered == sorted({block for own in runs for start, end in own for block in range(start, end)})
    repository = Repository(store)
    nodes = nodes_above(root, runs, repository.packs.nodes)
    drafts = draft_rewrite(base, changed, SPAN, lambda name, place: nodes.get(name) or repository.node(name, place))
    after = bytearray(BYTES)
    leaf = drafts.volume.nodes.get(drafts.volume.root.digest)
    if leaf is None:
        leaf = None if not drafts.volume.root.placement else repository.node(root.digest, root.placement)
    for extent in leaf.extents() if leaf is not None else ():  # type: ignore[union-attr]
        assert extent.chunk is not None
        place = dict(zip(leaf.chunks, leaf.placements, strict=True))[extent.chunk] or chunks.table.placement(
            extent.chunk
        )  # type: ignore[union-attr]
        assert place is not None
        data = repository.chunk(extent.chunk, place)
        after[extent.start * BLOCK : extent.end * BLOCK] = data[
            extent.first * BLOCK : (extent.first + extent.length) * BLOCK
        ]
    assert after == content


def test_nodes_on_the_way_are_read_level_by_level() -> None:
    store = Watched(MemoryStore())
    size = 300 * SPAN
    root = publish(store, [(span * SPAN + 7, bulk(span, 9 * BLOCK)) for span in range(0, 300, 3)], size)
    store.ranges.clear()
    whole = [(6 * SPAN, 7 * SPAN)]
    runs = [(7, 9), *whole, (9 * SPAN + 7, 9 * SPAN + 8), (297 * SPAN, 297 * SPAN + 9)]
    nodes = nodes_above(root, BlockRuns([], runs), Repository(store).packs.nodes)
    asked = len(store.ranges)
    assert asked <= 1 + 2 + 3, "the root, two inner nodes, and leaves that lie together in one pack"
    base = Version(root, Root(bytes(32), size), WriterLayout(0, 0))  # type: ignore[arg-type]
    draft_rewrite(base, edits_of_zeros(runs), size, lambda name, place: nodes[name])


def edits_of_zeros(runs: list[tuple[int, int]]) -> list[Extent]:
    with ChunkWriter(lambda pack: None, lambda names: [None] * len(names), Parameters(), Stages()) as chunks:
        chunks.finish()
        return edits(chunks, BlockRuns([], runs))
