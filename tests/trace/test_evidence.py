"""What reads say of a start."""

import random

import pytest

from blockmap.trace.evidence import Touched, looks_like_mount
from tests.trace.starting import COPY, MOUNT, reads

FAR = [(n << 30, 4096) for n in range(1, 31)]


@pytest.mark.parametrize(
    ("first", "is_mount"),
    [
        (MOUNT, True),
        ([*FAR, (0, 131072), *FAR], True),  # the kernel's read-ahead around the superblock
        (FAR, False),
        ([*FAR, (0, 262144)], False),  # a copying program's piece
        ([*FAR, (0, 1024)], False),
        ([*FAR, (1024, 512), (1536, 512)], False),
        ([*FAR, *FAR, *FAR, (0, 4096)], False),  # too late
        (COPY, False),
        ([(n * 4096, 4096) for n in range(64)], False),
        ([*COPY[8:16], *COPY[:8], *COPY[16:]], False),  # by several connections
        (MOUNT[:10], False),  # a probe
        ([(1024, 1024)], False),
        ([], False),
    ],
)
def test_a_mount(first: list[tuple[int, int]], is_mount: bool) -> None:
    assert looks_like_mount(reads(first)) is is_mount


def test_first_touches() -> None:
    touched = Touched()
    assert touched.add(reads([])) is None
    assert touched.add(reads([(0, 4096), (8192, 4096)], [5, 6])) == 6
    assert touched.add(reads([(0, 4096), (8192, 100)], [7, 8])) is None
    assert touched.add(reads([(0, 4096), (4000, 200), (8192, 4096)], [9, 10, 11])) == 10
    assert touched.add(reads([(4096, 104)], [12])) is None
    assert touched.add(reads([(4096, 105)], [13])) == 13
    assert touched.add(reads([(0, 12288)], [14])) == 14
    assert touched.add(reads([(0, 12288)], [15])) is None


def test_first_touches_as_a_bitmap_has_them() -> None:
    rng = random.Random(7)
    for _ in range(50):
        touched, seen = Touched(), set[int]()
        for time in range(20):
            each = [(rng.randrange(200), rng.randrange(1, 30)) for _ in range(rng.randrange(1, 4))]
            fresh = [set(range(at, at + length)) - seen for at, length in each]
            for offset, length in each:
                seen |= set(range(offset, offset + length))
            assert (touched.add(reads(each, [time] * len(each))) is None) == (not any(fresh))
