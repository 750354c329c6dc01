"""Cuts, compared with plain Python that goes block by block."""

from itertools import count, islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from blockmap.errors import FormatError
from blockmap.format import BLOCK
from blockmap.format.chunker import MAX_BLOCKS, SPAN, Parameters, hashes, split, zero_blocks

ZEROS = bytes(BLOCK)
Cuts = list[tuple[int, int]]


def made_block(seed: int) -> bytes:
    return seed.to_bytes(8, "little") * (BLOCK // 8)


def cuts_after(block: bytes, bits: int) -> bool:
    return xxh3_64_intdigest(block) >> (64 - bits) == 0


# Blocks after which a chunk may be cut with 8 bits (so with fewer, too), with 4 but not 8, and not with 1 or more.
OFTEN = list(islice((made_block(n) for n in count(1) if cuts_after(made_block(n), 8)), 2))
SOMETIMES = list(
    islice((b for n in count(1) if cuts_after(b := made_block(n), 4) and not cuts_after(b, 8)), 3)
)  # fmt: skip
NEVER = list(islice((b for n in count(1) if not cuts_after(b := made_block(n), 1)), 5))
KINDS = {"o": OFTEN, "s": SOMETIMES, "n": NEVER, "0": [ZEROS], "~": [ZEROS[:-1] + b"\1"]}

runs = st.lists(st.tuples(st.sampled_from("osnnn0~"), st.integers(1, 9) | st.integers(1, 200)), max_size=12)
parameters = st.builds(
    lambda bits, low, more: Parameters(bits, low, min(low + more, MAX_BLOCKS)),
    st.sampled_from([1, 4, 8]),
    st.integers(1, MAX_BLOCKS),
    st.integers(0, MAX_BLOCKS),
) | st.just(Parameters())
positions = st.integers(0, 3 * SPAN) | st.integers(1, 200).map(lambda back: 2 * SPAN - back)


def data_of(run: list[tuple[str, int]]) -> bytes:
    return b"".join(KINDS[kind][at % len(KINDS[kind])] for kind, length in run for at in range(length))


def cut(data: bytes, block: int, of: Parameters) -> Cuts:
    found = hashes(data)
    result = split(found, zero_blocks(data, found), block, True, of)
    assert result.done == len(data) // BLOCK
    return result.chunks


def reference(data: bytes, block: int, of: Parameters) -> Cuts:
    """The rules of the format, one block at a time."""
    chunks, start = [], None
    length = len(data) // BLOCK
    for at in range(length):
        content = data[at * BLOCK : (at + 1) * BLOCK]
        if content == ZEROS:
            if start is not None:
                chunks.append((start, at))
            start = None
            continue
        if start is None:
            start = at
        blocks = at + 1 - start
        by_content = blocks >= of.min and xxh3_64_intdigest(content) >> (64 - of.bits) == 0
        if by_content or blocks == of.max or (block + at + 1) % SPAN == 0:
            chunks.append((start, at + 1))
            start = None
    if start is not None:
        chunks.append((start, length))
    return chunks


@settings(deadline=None, max_examples=300)
@given(runs, positions, parameters)
def test_cuts_are_where_the_rules_say(run: list[tuple[str, int]], block: int, of: Parameters) -> None:
    data = data_of(run)
    found = cut(data, block, of)
    assert found == reference(data, block, of)
    taken = [at for start, end in found for at in range(start, end)]
    solid = [at for at in range(len(data) // BLOCK) if data[at * BLOCK : (at + 1) * BLOCK] != ZEROS]
    assert taken == solid, "each block that is not zero is in one chunk, and no other"
    for start, end in found:
        assert 1 <= end - start <= of.max
        assert (block + start) // SPAN == (block + end - 1) // SPAN


@settings(deadline=None, max_examples=200)
@given(runs, positions, parameters, st.lists(st.integers(0, 90), max_size=30))
def test_a_stream_is_cut_alike_however_it_arrives(
    run: list[tuple[str, int]], block: int, of: Parameters, steps: list[int]
) -> None:
    data = data_of(run)
    whole = cut(data, block, of)
    found: Cuts = []
    at = base = 0
    for step in [*steps, None]:
        at = len(data) // BLOCK if step is None else min(at + step, len(data) // BLOCK)
        waiting = data[base * BLOCK : at * BLOCK]
        known = hashes(waiting)
        part = split(known, zero_blocks(waiting, known), block + base, step is None, of)
        assert at - base - part.done < of.max, "less than a chunk is left waiting"
        found += [(base + start, base + end) for start, end in part.chunks]
        base += part.done
    assert base == at
    assert found == whole


@given(runs, runs, positions)
def test_a_forced_cut_forgets_what_was_before(
    before: list[tuple[str, int]], after: list[tuple[str, int]], block: int
) -> None:
    """The importer forces a cut by beginning a run; a zero block does the same."""
    first, second = data_of(before), data_of(after)
    there = len(first) // BLOCK + 1
    found = cut(first + ZEROS + second, block, Parameters())
    own = [(start + there, end + there) for start, end in cut(second, block + there, Parameters())]
    assert found == cut(first, block, Parameters()) + own


@given(runs, st.integers(0, SPAN - 1), st.integers(0, 1000))
def test_equal_contents_are_cut_alike_in_every_span(run: list[tuple[str, int]], at: int, span: int) -> None:
    data = data_of(run)
    assert cut(data, at, Parameters()) == cut(data, at + span * SPAN, Parameters())


@given(st.binary(min_size=1, max_size=60))
def test_an_insertion_moves_cuts_only_nearby(seed: bytes) -> None:
    """After some chunks, the cuts depend on the content alone again: deduplication rests on it."""
    of = Parameters()
    data = b"".join(made_block(int.from_bytes(seed, "little") % (1 << 60) + at) for at in range(2000))
    shifted = made_block(1 << 62) * 3 + data
    one = {data[start * BLOCK : end * BLOCK] for start, end in cut(data, 0, of)}
    two = {shifted[start * BLOCK : end * BLOCK] for start, end in cut(shifted, 0, of)}
    assert len(one - two) <= 12, "cuts agree again within a few chunks"


def test_the_minimum_and_what_overrides_it() -> None:
    of = Parameters()
    often, never = OFTEN[0], NEVER[0]
    assert cut(often * 12, 0, of) == [(0, 4), (4, 8), (8, 12)]
    assert cut(never * 3 + often + never, 0, of) == [(0, 4), (4, 5)]
    assert cut(never * 2 + often + never * 2, 0, of) == [(0, 5)], "a block that cuts too early does not cut"
    assert cut(never * 100, 0, of) == [(0, 64), (64, 100)]
    assert cut(never + ZEROS + never * 2, 0, of) == [(0, 1), (2, 4)], "zeros cut whatever the minimum is"
    assert cut(never * 5, SPAN - 1, of) == [(0, 1), (1, 5)], "so do the edges of spans"
    assert cut(never * 63 + ZEROS + never, 0, of) == [(0, 63), (64, 65)]
    assert cut(b"", 0, of) == cut(ZEROS * 9, 0, of) == []


def test_what_may_still_grow_waits() -> None:
    of, data = Parameters(), NEVER[0] * 63
    for end, chunks, done in ((63, [], 0), (3, [], 0)):
        found = hashes(data[: end * BLOCK])
        assert (part := split(found, [], 0, False, of)).chunks == chunks
        assert part.done == done
    found = hashes(NEVER[0] * 64)
    assert split(found, [], 0, False, of).chunks == [(0, 64)]
    found = hashes(NEVER[0] * 2 + ZEROS * 3)
    part = split(found, [2, 3, 4], 0, False, of)
    assert (part.chunks, part.done) == ([(0, 2)], 5)
    assert split(hashes(NEVER[0] * 5), [], SPAN - 5, False, of).chunks == [(0, 5)]


def test_hashes_are_xxh3_of_each_block() -> None:
    data = OFTEN[0] + ZEROS + NEVER[1]
    for form in (data, bytearray(data), memoryview(data)):
        assert hashes(form).tolist() == [xxh3_64_intdigest(block) for block in (OFTEN[0], ZEROS, NEVER[1])]
    assert hashes(b"").tolist() == []


def test_a_block_with_the_hash_of_zeros_is_not_zeros() -> None:
    """An xxHash match is no proof of equal content."""
    data = NEVER[0] + ZEROS + NEVER[1]
    forged = np.full(3, xxh3_64_intdigest(ZEROS), dtype=np.uint64)
    assert zero_blocks(data, forged) == [1]
    assert split(forged, [1], 0, True, Parameters()).chunks == [(0, 1), (2, 3)]


def test_the_mean_is_what_the_parameters_say() -> None:
    data = b"".join(made_block(at) for at in range(1, 8193))
    lengths = [end - start for start, end in cut(data, 0, Parameters())]
    assert 16 <= sum(lengths) / len(lengths) <= 22, "the minimum less 1, and 16 more"
    assert all(end == start for (_, end), (start, _) in pairwise(cut(data, 0, Parameters())))


@pytest.mark.parametrize(
    ("bits", "low", "high"), [(0, 4, 64), (33, 4, 64), (-1, 4, 64), (4, 0, 64), (4, 5, 4), (4, 4, 65), (4, -1, 3)]
)
def test_parameters_that_describe_no_chunker(bits: int, low: int, high: int) -> None:
    with pytest.raises(FormatError, match="does not describe a chunker"):
        Parameters(bits, low, high)
