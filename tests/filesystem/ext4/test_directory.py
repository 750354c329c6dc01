"""Hashed directories: hashes as debugfs computes them, indexes that e2fsck accepts, and names that the kernel finds."""

import os
import re
import subprocess
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import ImageError
from blockmap.filesystem.ext4 import directory
from blockmap.filesystem.ext4.directory import BLOCK, HashTree, SortedNames, entries_bytes
from blockmap.filesystem.ext4.name_hash import SEED, hashes
from tests.filesystem.ext4.volumes import fsck, make, reader
from tests.image.model import Layer, entry, file
from tests.image.mounted import mounted

LONG = 255 - 8
EQUAL = [b"10037216" + b"n" * LONG, b"10085815" + b"n" * LONG]
"""Two names of one hash."""


def long_names(count: int) -> list[bytes]:
    return [b"%08d" % n + b"n" * LONG for n in range(count)]


@pytest.fixture(autouse=True)
def _tools(need: Callable[..., None]) -> None:
    need("e2fsck", "debugfs")


def dump(raw: Path, path: str) -> str:
    """Returns the index of a directory as debugfs shows it."""
    done = subprocess.run(["debugfs", "-R", f"htree_dump {path}", raw], capture_output=True, text=True, check=True)
    return done.stdout


def test_hashes_are_those_of_debugfs(tmp_path: Path) -> None:
    names = ["a", "ab", "abc", "abcd", *("x" * n for n in (31, 32, 33, 63, 64, 65, 254, 255)), "é", "日本語" * 20]
    commands = tmp_path / "commands"
    commands.write_text("".join(f"dx_hash -h half_md4 -s {uuid.UUID(bytes=SEED)} {name}\n" for name in names))
    done = subprocess.run(["debugfs", "-f", commands], capture_output=True, text=True, check=True)
    found = [int(value, 16) for value in re.findall(r"Hash of .* is (0x[0-9a-f]+)", done.stdout)]
    assert found == hashes([name.encode() for name in names]).tolist()
    assert hashes([]).tolist() == []


def test_a_directory_of_one_block_is_a_list_and_a_larger_one_is_hashed(tmp_path: Path) -> None:
    fits = long_names((BLOCK - 24) // 264)
    for names, hashed in ((fits, False), ([*fits, b"one more" * 20], True)):
        make(tmp_path / "raw", [[file(b"d/" + name) for name in names]])
        fsck(tmp_path / "raw")
        assert ("Root node dump" in dump(tmp_path / "raw", "/d")) is hashed


def test_an_index_of_two_levels(tmp_path: Path) -> None:
    """6,400 names of 255 bytes take more leaves than the root has room for."""
    stack = [[file(b"d/" + name) for name in long_names(6400)]]
    make(tmp_path / "raw", stack)
    fsck(tmp_path / "raw")
    assert {each.path for each in reader(tmp_path / "raw").walk()} > {member.path for member, _ in stack[0]}
    shown = dump(tmp_path / "raw", "/d")
    assert "Indirect levels: 1" in shown
    assert shown.count("Number of entries (count)") == 3, "a root and two nodes"


def test_layers_that_add_to_a_directory_and_remove_from_it(tmp_path: Path) -> None:
    """It outgrows its block in the second layer, the root of the index in the third."""
    names = long_names(7000)
    stack: list[Layer] = [
        [file(b"d/" + name) for name in names[:5]],
        [file(b"d/" + name) for name in names[3:100]],
        [file(b"d/.wh." + name) for name in names[10:20]] + [file(b"d/" + name) for name in names[100:]],
        [file(b"d/.wh." + name) for name in names[50:6000]],
        [file(b"d/" + name, b"again") for name in names[15:200]],
        [file(b"d/.wh..wh..opq"), entry(b"d/e")],
    ]
    there: list[set[bytes]] = [
        set(names[:100]),
        set(names) - set(names[10:20]),
        set(names[:50] + names[6000:]) - set(names[10:20]),
        set(names[:200] + names[6000:]) - set(names[10:15]),
        {b"e"},
    ]
    for upto, wanted in enumerate(there, 2):
        make(tmp_path / "raw", stack[:upto])
        fsck(tmp_path / "raw")
        found = {each.path for each in reader(tmp_path / "raw").walk()}
        assert found == {b"", b"d", b"lost+found"} | {b"d/" + name for name in wanted}


@pytest.mark.root
def test_names_of_one_hash_in_two_leaves(tmp_path: Path, need_root: None) -> None:
    """The second of them is marked as a continuation, so that a lookup that ends in the first goes on to it."""
    value = hashes(EQUAL)[0]
    for count in range(30, 200):
        names = [*EQUAL, *long_names(count)]
        tree = HashTree()
        tree.grow(names, 0, "d")
        if (value, EQUAL[1]) in tree._starts:
            break
    assert (value, EQUAL[1]) in tree._starts, "a leaf begins between the two"
    make(tmp_path / "raw", [[file(b"d/" + name) for name in names]])
    fsck(tmp_path / "raw")
    assert f"0x{value | 1:08x}" in dump(tmp_path / "raw", "/d")
    with mounted(tmp_path / "raw", tmp_path / "at") as top:
        assert all((top / "d" / os.fsdecode(name)).exists() for name in names)


def test_lost_and_found_that_outgrows_its_block_leaves_none_unused(tmp_path: Path) -> None:
    for count in (16, 17, 60):
        stack = [[file(b"lost+found/" + name) for name in long_names(count)]]
        make(tmp_path / "raw", [*stack, [file(b"lost+found/one-more")]])
        fsck(tmp_path / "raw")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sets(st.binary(min_size=1, max_size=255), max_size=120), min_size=1, max_size=4), st.data())
def test_every_leaf_has_the_names_of_its_hashes(steps: list[set[bytes]], data: st.DataObject) -> None:
    """Whatever comes and goes: leaves fit into blocks, and each name is where its hash leads."""
    tree, names = HashTree(), set[bytes]()
    for step in steps:
        names = {name for name in names if data.draw(st.booleans())} | step
        before = tree.blocks
        tree.grow(names, 0, "d")
        assert tree.blocks >= before
        found = SortedNames(names)
        assert found.names == sorted(names, key=lambda name: (hashes([name])[0], name))
        edges = directory._edges(tree._starts, found)
        assert (edges[0], edges[-1]) == (0, len(names))
        assert all(entries_bytes(found.names[start:end]) <= BLOCK for start, end in pairwise(edges))
        assert sorted([0, *tree._leaves, *tree._nodes]) == list(range(tree.blocks))


def test_more_entries_than_an_index_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_LEAVES", 10)
    with pytest.raises(ImageError, match="'d': has 200 entries"):
        make(tmp_path / "raw", [[file(b"d/" + name) for name in long_names(200)]])


@pytest.mark.root
def test_the_kernel_finds_every_name_and_no_other(tmp_path: Path, need_root: None) -> None:
    """Also bytes above 127, which the hash takes as signed."""
    long, short = long_names(6400), [b"f%d\xe9\xff" % n for n in range(20_000)]
    make(tmp_path / "raw", [[file(b"long/" + name) for name in long], [file(b"short/" + name) for name in short]])
    with mounted(tmp_path / "raw", tmp_path / "at") as top:
        for folder, names in ((b"long", long), (b"short", short)):
            place = os.path.join(os.fsencode(top), folder)
            assert set(os.listdir(place)) == set(names)
            for name in names:
                os.lstat(os.path.join(place, name))
                with pytest.raises(FileNotFoundError):
                    os.lstat(os.path.join(place, name[:-1] + b"m"))


@pytest.mark.root
def test_the_kernel_reads_one_leaf_for_a_name(tmp_path: Path, need_root: None) -> None:
    """All leaves but the last are spoiled: without the index, a search from the first block would not get there."""
    raw = tmp_path / "raw"
    make(raw, [[file(b"d/" + name) for name in long_names(1000)]])
    runs = {each.path: each.runs for each in reader(raw).walk()}[b"d"]
    ((_, start, length),) = runs
    with open(raw, "r+b") as volume:
        for block in range(start + 1, start + length - 1):
            volume.seek(block * BLOCK)
            volume.write(bytes(BLOCK))
        volume.seek((start + length - 1) * BLOCK)
        kept = set(re.findall(rb"[0-9]{8}n{247}", volume.read(BLOCK)))
    assert kept
    with mounted(raw, tmp_path / "at") as top:
        for name in kept:
            os.lstat(os.path.join(os.fsencode(top), b"d", name))
