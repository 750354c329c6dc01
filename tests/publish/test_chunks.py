"""The writer of chunks: what it cuts does not depend on how it is fed, and what fails in any stage comes out."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import StoreUnavailable
from blockmap.format import BLOCK
from blockmap.format.chunker import MAX_BLOCKS, SPAN, Parameters, hashes, split, zero_blocks
from blockmap.format.digest import Digest, block_digests, chunk_digest
from blockmap.format.pack import Pack
from blockmap.format.placement import Placement
from blockmap.publish.chunks import LOOKUP_BYTES, LOOKUP_CHUNKS, ChunkWriter
from blockmap.publish.object_writer import ObjectWriter
from blockmap.publish.stages import Stages
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from tests.image.builder import bulk

PARAMETERS = Parameters()


def nothing(names: Sequence[Digest]) -> list[Placement | None]:
    return [None] * len(names)


def written(
    feed: Callable[[ChunkWriter], None], known: Callable[[Sequence[Digest]], Sequence[Placement | None]] = nothing
) -> tuple[ChunkWriter, MemoryStore]:
    store = MemoryStore()
    with ChunkWriter(ObjectWriter(store).put_pack, known, PARAMETERS, Stages()) as chunks:
        feed(chunks)
        chunks.finish()
    return chunks, store


def extents(chunks: ChunkWriter) -> list[tuple[int, int, Digest]]:
    """Start, blocks, chunk; ascending."""
    return [
        (extent.start, extent.length, extent.chunk)
        for _, own in chunks.extents.spans(chunks.table)
        for extent in own
        if extent.chunk is not None
    ]


def oracle(runs: Sequence[tuple[int, bytes]]) -> list[tuple[int, int, Digest]]:
    """Each run in one shot."""
    found = []
    for block, data in runs:
        of = hashes(data)
        for start, end in split(of, zero_blocks(data, of), block, True, PARAMETERS).chunks:
            name = chunk_digest(block_digests(data[start * BLOCK : end * BLOCK]))
            found.append((block + start, end - start, name))
    return sorted(found)


def contents(kind: int, blocks: int) -> bytes:
    if kind == 0:
        return bytes(blocks * BLOCK)
    data = bulk(kind, blocks * BLOCK)
    return data if kind < 3 or blocks < 5 else data[: 2 * BLOCK] + bytes(BLOCK) + data[3 * BLOCK :]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 100, SPAN - 100]), st.integers(0, 4), st.integers(1, 400)),
        min_size=1, max_size=5,
    ),
    st.integers(1, 500), st.randoms(use_true_random=False), st.booleans(),
)  # fmt: skip
def test_chunks_do_not_depend_on_the_size_of_writes(shape, step, chosen, cut) -> None:  # type: ignore[no-untyped-def]
    """Runs apart from each other, or side by side with a cut between."""
    runs, at = [], 0
    for gap, kind, blocks in shape:
        at += 0 if cut else gap
        runs.append((at, contents(kind, blocks)))
        at += blocks

    def feed(chunks: ChunkWriter) -> None:
        for block, data in runs:
            if cut:
                chunks.cut()
            done = 0
            while done < len(data):
                count = min(chosen.randint(1, step) * BLOCK, len(data) - done)
                buffer = bytearray(data[done : done + count])
                chunks.write(block + done // BLOCK, memoryview(buffer))
                buffer[:] = b"\xff" * len(buffer)  # what was written is not looked at again
                done += count

    chunks, store = written(feed)
    assert extents(chunks) == oracle(runs)
    repository = Repository(store)
    for _, length, name in set(extents(chunks)):
        place = chunks.table.placement(name)
        assert place is not None
        assert len(repository.chunk(name, place)) == length * BLOCK
    counts = chunks.counts
    assert counts.blocks == sum(length for _, length, _ in extents(chunks))
    assert counts.chunks == counts.new_chunks == len({name for _, _, name in extents(chunks)})


def test_order_of_runs_does_not_matter_to_extents() -> None:
    runs = [(SPAN * 3 + 5, contents(1, 50)), (7, contents(2, 80)), (SPAN - 10, contents(1, 30))]
    chunks, _ = written(lambda sink: [sink.write(*run) for run in runs] and None)
    assert extents(chunks) == oracle(runs)


def test_no_chunk_crosses_a_span_or_holds_zeros() -> None:
    data = contents(1, 300)
    chunks, _ = written(lambda sink: sink.write(SPAN - 150, data))
    for start, length, _ in extents(chunks):
        assert start // SPAN == (start + length - 1) // SPAN
        assert 1 <= length <= MAX_BLOCKS


def test_known_chunks_are_placed_and_not_stored() -> None:
    data = contents(1, 300)
    first, _ = written(lambda sink: sink.write(0, data))
    second, store = written(
        lambda sink: sink.write(0, data + contents(2, 1)), lambda names: [first.table.placement(name) for name in names]
    )
    # The last chunk of the first may go on in the second.
    assert second.counts.new_chunks <= 2
    assert second.counts.chunks >= first.counts.chunks
    names = {name for _, _, name in extents(first)} & {name for _, _, name in extents(second)}
    assert all(second.table.placement(name) == first.table.placement(name) for name in names)
    assert len(store.list("packs/")) == 1


def test_chunks_are_looked_up_some_at_a_time_each_once_and_in_order() -> None:
    asked: list[Sequence[Digest]] = []

    def known(names: Sequence[Digest]) -> list[Placement | None]:
        asked.append(names)
        return [None] * len(names)

    data = contents(1, 12_000)
    chunks, _ = written(lambda sink: sink.write(0, data + data), known)
    names = [name for segment in asked for name in segment]
    assert names == [chunks.table.name(number) for number in range(len(chunks.table))]
    sizes = [sum(chunks.table.blocks(chunks.table.get(name) or 0) for name in segment) * BLOCK for segment in asked]
    assert len(asked) >= 2
    for segment, size in zip(asked[:-1], sizes, strict=False):
        assert len(segment) >= LOOKUP_CHUNKS or LOOKUP_BYTES <= size <= LOOKUP_BYTES + MAX_BLOCKS * BLOCK


def test_packs_end_at_their_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.publish.chunks.TARGET_BYTES", 1 << 20)
    data = contents(1, 2000)
    chunks, store = written(lambda sink: sink.write(0, data))
    sizes = [len(store.get(key)) for key in store.list("packs/")]
    assert chunks.counts.packs == len(sizes) >= 8
    assert max(sizes) <= (1 << 20) + 60 * 300
    assert sum(sizes) == chunks.counts.stored_bytes
    repository = Repository(store)
    for start, length, name in extents(chunks):
        place = chunks.table.placement(name)
        assert place is not None
        assert repository.chunk(name, place) == data[start * BLOCK : (start + length) * BLOCK]
    # In volume order, so that neighbours come in one range.
    order = [chunks.table.placement(name) for _, _, name in extents(chunks)]
    for before, after in itertools.pairwise(order):
        assert before is not None
        assert after is not None
        assert before.pack != after.pack or before.offset + before.stored == after.offset


# --- what goes wrong


def ended(before: set[threading.Thread]) -> bool:
    """Whether the threads that were started since are gone."""
    limit = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


class Broken(Exception):
    pass


def fail(*_: object) -> None:
    raise Broken("on purpose")


@pytest.mark.parametrize("stage", ["put", "known", "zstd"])
@pytest.mark.parametrize("blocks", [10, 20_000])
def test_what_fails_in_a_stage_comes_out_and_threads_end(
    stage: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end for a short volume, from a write for a long one: the caller is not left writing into the void."""
    monkeypatch.setattr("blockmap.publish.chunks.TARGET_BYTES", 1 << 20)
    if stage == "zstd":
        monkeypatch.setattr("blockmap.publish.chunks.Sealer.frames", fail)
    before = set(threading.enumerate())
    put = fail if stage == "put" else (lambda pack: None)
    known = fail if stage == "known" else nothing
    calls = 0
    with (  # noqa: PT012 - each of them may raise
        pytest.raises(Broken, match="on purpose"),
        ChunkWriter(put, known, PARAMETERS, Stages()) as chunks,  # type: ignore[arg-type]
    ):
        for block in range(0, blocks, 100):
            calls += 1
            chunks.write(block, bulk(block, 100 * BLOCK))
        chunks.finish()
    assert ended(before)
    if blocks > 10:
        assert calls < 200, "an error stops the caller before the end"


def test_leaving_early_ends_the_threads_and_stores_no_more() -> None:
    before = set(threading.enumerate())
    stored: list[Pack] = []
    with pytest.raises(Broken), ChunkWriter(stored.append, nothing, PARAMETERS, Stages()) as chunks:  # noqa: PT012
        chunks.write(0, bulk(1, 500 * BLOCK))
        raise Broken
    assert ended(before)
    assert not stored, "16 MiB were not there yet"


def test_a_slow_store_bounds_what_is_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller waits for the store; memory does not grow with the volume."""
    monkeypatch.setattr("blockmap.publish.chunks.TARGET_BYTES", 1 << 20)
    gate, put, written_blocks = threading.Event(), threading.Semaphore(0), 0

    def slow(pack: Pack) -> None:
        put.release()
        assert gate.wait(60)

    chunks = ChunkWriter(slow, nothing, PARAMETERS, Stages())
    stuck = threading.Event()

    def feed() -> None:
        nonlocal written_blocks
        for block in range(0, 40_000, 200):
            chunks.write(block, bulk(block, 200 * BLOCK))
            written_blocks = block
        stuck.set()

    with chunks:
        thread = threading.Thread(target=feed)
        thread.start()
        assert put.acquire(timeout=30)
        assert put.acquire(timeout=30)
        last, limit = -1, time.monotonic() + 30
        while written_blocks != last and time.monotonic() < limit:  # until it stands still
            last = written_blocks
            time.sleep(0.3)
        assert not stuck.is_set()
        assert written_blocks * BLOCK < 112 << 20
        gate.set()
        thread.join()
        chunks.finish()


def test_a_store_that_refuses_says_so() -> None:
    def put(pack: Pack) -> None:
        raise StoreUnavailable("no room left")

    with (  # noqa: PT012 - each of them may raise
        pytest.raises(StoreUnavailable, match="no room"),
        ChunkWriter(put, nothing, PARAMETERS, Stages()) as chunks,
    ):
        chunks.write(0, contents(1, 3))
        chunks.finish()
