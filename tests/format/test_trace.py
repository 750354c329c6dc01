"""Traces: those of servers are read, whole or cut off, and other bytes are refused."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import trace
from blockmap.format.digest import Digest
from blockmap.format.trace import DECLARED, EXACT, HEAD_BYTES, NEW, READ, WAIT, End, TraceHead

SIZE = 1 << 40
HEAD = TraceHead("a/redis", "migrate", Digest(b"v" * 32), Digest(b"r" * 32), SIZE, 17, NEW | EXACT, End.QUIET, 900, 3)
GOLDEN = "d8d51fe526c5fb078d550f5e9ffc6deda506e39c5c67fbb7da2079493c600575"
reads = st.lists(
    st.tuples(st.integers(0, (1 << 32) - 1), st.integers(1, (1 << 32) - 1), st.integers(0, SIZE - 1)), max_size=20
)

waits = st.lists(
    st.tuples(
        st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, SIZE - 1),
        st.integers(1, (1 << 32) - 1), st.integers(1, 2), st.just(bytes(3)),
    ),
    max_size=5,
)  # fmt: skip


def whole(found: list[tuple[int, int, int]], head: TraceHead = HEAD) -> bytes:
    return trace.encode_head(head) + np.array(found, READ).tobytes()


@given(reads, st.integers(0, 7), st.sampled_from(End))
def test_what_is_written_comes_back(found: list[tuple[int, int, int]], flags: int, end: End) -> None:
    head = TraceHead("redis", "default", Digest(b"v" * 32), Digest(b"r" * 32), SIZE, 1, flags, end)
    back = trace.decode(whole(found, head))
    assert back.head == head
    assert back.reads.dtype == READ
    assert back.reads.tolist() == found
    assert back.head.is_new == bool(flags & NEW)
    assert back.head.is_evidence == (flags & (NEW | DECLARED) == NEW | DECLARED and end != End.FAILED)


@given(reads, st.integers(0, 40))
def test_a_file_that_was_cut_off_has_the_reads_until_then(found: list[tuple[int, int, int]], zeros: int) -> None:
    data = whole(found)
    assert trace.decode(data + bytes(16 * zeros)).reads.tolist() == found
    for cut in range(HEAD_BYTES, len(data), 7):
        assert trace.decode(data[:cut]).reads.tolist() == found[: (cut - HEAD_BYTES) // 16]


@given(reads, waits)
def test_waits_are_known_where_all_of_them_are_there(
    found: list[tuple[int, int, int]], waited: list[tuple[int, int, int, int, int, bytes]]
) -> None:
    data = whole(found) + trace.encode_waits(np.array(waited, WAIT))
    back = trace.decode(data + bytes(8))
    assert back.reads.tolist() == found
    assert back.waits is not None
    assert back.waits.tolist() == waited
    for short in (data[:-1], data[: len(whole(found)) + 15], whole(found), whole(found) + bytes(40)):
        back = trace.decode(short)
        assert (back.reads.tolist(), back.waits) == (found, None)


def test_the_format_is_frozen() -> None:
    data = whole([(1, 4096, 8192), (2000, 100, 50)])
    assert len(data) == HEAD_BYTES + 32
    assert sha256(data).hexdigest() == GOLDEN
    assert trace.encode_waits(np.array([(1, 2, 3, 4, 5, b"")], WAIT)).hex() == (
        "0100000000000000626d776169747300" + "0100000002000000" + "0300000000000000" + "0400000005000000"
    )


@pytest.mark.parametrize(("at", "byte"), [(0, 0), (4, 2), (6, 9), (7, 1), (96, 0xFF), (160, 0xFF)])
def test_what_is_no_trace_is_refused(at: int, byte: int) -> None:
    data = bytearray(whole([(1, 4096, 0)]))
    data[at] = byte
    with pytest.raises(FormatError):
        trace.decode(bytes(data))


def test_a_short_file_and_a_read_outside_are_refused() -> None:
    with pytest.raises(FormatError, match="too short"):
        trace.decode(whole([])[: HEAD_BYTES - 1])
    with pytest.raises(FormatError, match="outside"):
        trace.decode(whole([(1, 4096, SIZE)]))
    with pytest.raises(FormatError, match="outside"):
        trace.decode(whole([]) + trace.encode_waits(np.array([(1, 2, SIZE, 4, 1, b"")], WAIT)))


def test_a_name_that_does_not_fit_is_refused() -> None:
    for repo, label in (("r" * 257, "x"), ("r", "x" * 65)):
        with pytest.raises(FormatError, match="too long"):
            trace.encode_head(TraceHead(repo, label, HEAD.version, HEAD.root, SIZE, 1))
