"""Places on disk and cuts of chunks: they depend on a layer and those below it, and on nothing else."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.filesystem.ext4 import geometry
from blockmap.filesystem.ext4.geometry import Cursor
from blockmap.filesystem.ext4.writer import Ext4Writer
from tests.filesystem.ext4.odd import LAYERS, LOWER, MIDDLE, bulk
from tests.filesystem.ext4.volumes import BLOCK, THRESHOLD, FileSink, huge, make, reader, write
from tests.image.model import Layer, entry, file, members, symlink

OTHER: Layer = [
    file(b".wh.usr"), entry(b"etc"), file(b"etc/other", bulk(99, 500_000)), file(b"many/.wh..wh..opq"),
    *(file(b"dirs/7/%d" % n, b"1") for n in range(500)), symlink(b"long", b"x" * 200), file(b".wh.large"),
]  # fmt: skip
BIG = 10 * (1 << 30) // 3


def fixed(block: int) -> bool:
    group, at = divmod(block, 32768)
    if at < 65 and geometry.has_copy(group):
        return True
    base = 65 if group == 0 else 0
    return group % 16 == 0 and base <= at < base + 16 * 514


@given(st.lists(st.integers(0, 200_000), max_size=30))
def test_the_cursor_gives_out_every_block_once_but_for_fixed_ones(counts: list[int]) -> None:
    cursor, at = Cursor(), 0
    for count in counts:
        runs = cursor.take(count)
        assert sum(length for _, length in runs) == count
        for start, length in runs:
            assert start >= at
            assert all(fixed(block) for block in {at, (at + start) // 2, start - 1} if at <= block < start)
            assert not any(fixed(block) for block in (start, start + length - 1))
            for group in range(start // 32768 + 1, (start + length - 1) // 32768 + 1):
                assert not fixed(group * 32768)
            at = start + length


def edges(sink: FileSink) -> set[int]:
    return {at for start, end, _ in sink.runs for at in (start, end)}


def inside(sink: FileSink, range_: tuple[int, int]) -> list[tuple[int, int, str]]:
    return [run for run in sorted(sink.runs) if range_[0] <= run[0] and run[1] <= range_[1]]


@pytest.mark.parametrize("stack", [[LOWER], [LOWER, MIDDLE], [LOWER, [], MIDDLE]])
def test_a_layer_has_the_same_chunks_below_any_other(stack: list[Layer], tmp_path: Path) -> None:
    """Contents of a layer, with their places and cuts, depend on the chain up to the layer alone."""
    alone, sink = make(tmp_path / "alone", stack)
    uppers: list[list[Layer]] = [[OTHER], [*LAYERS[2:], OTHER], [[]], [[file(b".wh..wh..opq")]]]
    for upper in uppers:
        volume, other = make(tmp_path / "other", [*stack, *upper])
        assert volume.layer_blocks[: len(stack)] == alone.layer_blocks
        for range_ in alone.layer_blocks:
            assert inside(sink, range_) == inside(other, range_)
            if range_[0] != range_[1]:
                assert inside(sink, range_)
    numbers = {each.path: each.number for each in reader(tmp_path / "alone").walk()}
    make(tmp_path / "other", [*stack, OTHER])
    kept = {each.path: each.number for each in reader(tmp_path / "other").walk() if each.path in numbers}
    assert all(numbers[path] == number for path, number in kept.items() if path not in changed(OTHER))
    assert len(kept) > 300


def changed(layer: Layer) -> set[bytes]:
    return {member.path for member, _ in layer}


def test_inodes_are_numbered_directories_first_then_by_the_archive(tmp_path: Path) -> None:
    make(tmp_path / "raw", [
        [file(b"b"), entry(b"z"), file(b"a"), entry(b"y"), file(b"m/f")],
        [file(b"second"), entry(b"y/sub"), file(b"b", b"new")],
    ])  # fmt: skip
    numbers = {each.path: each.number for each in reader(tmp_path / "raw").walk()}
    assert numbers == {
        b"": 2, b"lost+found": 11, b"z": 12, b"y": 13, b"m": 14, b"a": 16, b"m/f": 17,
        b"y/sub": 18, b"second": 19, b"b": 20,
    }  # fmt: skip


def test_contents_lie_in_the_order_of_the_archive(tmp_path: Path) -> None:
    layer = [file(b"z", bulk(1, 9000)), file(b"e"), file(b"a", bulk(2, 1)), file(b"m", bulk(3, 4097))]
    volume, _ = make(tmp_path / "raw", [layer])
    start = volume.layer_blocks[0][0]
    assert {path: runs for path, _, runs in volume.files} == {
        b"z": [(start, 3)], b"e": [], b"a": [(start + 3, 1)], b"m": [(start + 4, 2)],
    }  # fmt: skip
    assert volume.layer_blocks == [(start, start + 6)]


def test_cuts_at_the_edges_of_layers_and_of_large_files_alone(tmp_path: Path) -> None:
    layer = [
        file(b"small", bulk(1, 5000)),
        file(b"below", bulk(2, (THRESHOLD - 1) * BLOCK)),
        file(b"at", bulk(3, THRESHOLD * BLOCK)),
        file(b"after", bulk(4, 100)),
        file(b"above", bulk(5, (THRESHOLD + 3) * BLOCK - 1)),
        file(b"last", bulk(6, 10)),
    ]
    volume, sink = make(tmp_path / "raw", [layer, [file(b"next", bulk(7, 10))]])
    runs = {path: runs[0] for path, _, runs in volume.files}
    start, end = volume.layer_blocks[0]
    wanted = {start, end}
    for name in (b"at", b"above"):
        wanted |= {runs[name][0], sum(runs[name])}
    assert {at for at in edges(sink) if start <= at <= end} == wanted
    volume, sink = write(tmp_path / "raw", [iter([(member, iter([data])) for member, data in layer])], threshold=0)
    assert {at for at in edges(sink) if start <= at <= end} == {start, end}


def test_cuts_at_the_edges_of_fixed_ranges(tmp_path: Path) -> None:
    """Contents that cross groups, and metadata on both sides of them."""
    volume, sink = write(tmp_path / "raw", [huge(b"huge", BIG, bytes(4096))])
    ((_, _, runs),) = volume.files
    assert len(runs) > 3
    found = edges(sink)
    for start, length in runs:
        assert {start, start + length} <= found
    for start, end, _ in sink.runs:
        assert fixed(start) == fixed(end - 1)
        assert not any(fixed(group * 32768) for group in range(start // 32768 + 1, (end - 1) // 32768 + 1))


def test_hidden_contents(tmp_path: Path) -> None:
    """Contents are hidden if they were replaced or deleted, also in the same layer, unless a link keeps them."""
    lower = [file(b"replaced", bulk(1, 9000)), file(b"kept", bulk(2, 9000)), file(b"deleted", bulk(3, 5000))]
    lower += [file(b"twice", bulk(4, 1)), file(b"twice", bulk(5, 1)), entry(b"d"), file(b"d/in", bulk(6, 8192))]
    volume, _ = make(tmp_path / "raw", [lower])
    start = volume.layer_blocks[0][0]
    assert volume.hidden == [(start + 8, start + 9)]
    volume, _ = make(tmp_path / "raw", [lower, [file(b"replaced", b"new"), file(b".wh.deleted"), file(b"d", b"file")]])
    assert volume.hidden == [(start, start + 3), (start + 6, start + 9), (start + 10, start + 12)]


def test_a_layer_changes_those_leaves_of_a_directory_that_have_its_names(tmp_path: Path) -> None:
    """A name that comes or goes changes the leaf of its hash; one that does not fit there divides it, and the index changes."""
    names = [file(b"d/%04d" % n) for n in range(1000)]
    make(tmp_path / "one", [names])
    few = [file(b"d/new"), file(b"d/.wh.0501")]
    make(tmp_path / "two", [names, few])
    make(tmp_path / "three", [names, few, [file(b"d/more-%d" % n) for n in range(500)]])
    one, two, three = (blocks_of(tmp_path / name, b"d") for name in ("one", "two", "three"))
    assert len(one) == len(two)
    assert [before != after for before, after in zip(one, two, strict=True)].count(True) == 2
    assert two[0] == one[0]
    assert len(three) > len(two)
    assert three[0] != two[0]


def blocks_of(raw: Path, path: bytes) -> list[bytes]:
    runs = {each.path: each.runs for each in reader(raw).walk()}[path]
    with open(raw, "rb") as file:
        data = b"".join(os.pread(file.fileno(), length * BLOCK, start * BLOCK) for _, start, length in runs)
    return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


def test_the_uuid_is_in_fixed_metadata_alone(tmp_path: Path) -> None:
    runs = []
    for uuid in (bytes(16), b"\xff" * 16):
        sink = FileSink(tmp_path / "raw")
        writer = Ext4Writer(sink, THRESHOLD)
        for layer in LAYERS:
            writer.layer(members(layer))
        sink.finish(writer.finish(uuid).size_blocks)
        runs.append(set(sink.runs))
    assert {fixed(start) for start, _, _ in runs[0] ^ runs[1]} == {True}


PROGRAM = """
import sys
from pathlib import Path
from tests.filesystem.ext4.odd import LAYERS
from tests.filesystem.ext4.volumes import make
volume, sink = make(Path(sys.argv[1]), LAYERS)
print(volume, sink.runs)
"""


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    said = set()
    for seed in ("0", "1", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": f"UTC{seed[0]}"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "raw"], env=environment, capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        said.add(done.stdout)
    assert len(said) == 1


def test_the_bytes_are_those_of_this_layout(tmp_path: Path) -> None:
    """The layout is frozen: a change alters the digests of every import, and must raise WRITER."""
    _, sink = make(tmp_path / "raw", LAYERS)
    assert sha256(repr(sorted(sink.runs)).encode()).hexdigest() == GOLDEN


GOLDEN = "cdf52b58f2a414af494fbca7fdd3c6902d396bc87e8e473b1988f982c4b56372"
