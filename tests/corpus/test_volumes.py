"""Volumes of real images through the server, by witnesses that know nothing of blockmap."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.refs import parse_reference
from blockmap.store.resolver import find_version
from blockmap.store.walk import leaves
from tests.corpus.conftest import Served
from tests.filesystem.ext4.volumes import fsck
from tests.image.mounted import compare_with_unpacked, mounted, write_and_grow

pytestmark = pytest.mark.long


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges, ascending, with neighbours made one."""
    out: list[tuple[int, int]] = []
    for start, end in ranges:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def in_tree(served: Served) -> list[tuple[int, int]]:
    """The ranges, in bytes, for which the stored tree names content."""
    repository, _ = served.server.volume(served.name)
    root = find_version(repository, parse_reference(served.name)).version.root
    found = []
    for span, leaf in leaves(root, repository.packs.nodes):
        for start, length in zip(leaf.starts.tolist(), leaf.lengths.tolist(), strict=True):
            found.append(((span * SPAN + start) * BLOCK, (span * SPAN + start + length) * BLOCK))
    return joined(found)


def in_map(uri: str) -> list[tuple[int, int]]:
    """The ranges, in bytes, of which the server says that they hold data."""
    done = subprocess.run(["nbdinfo", "--json", "--map", uri], capture_output=True, text=True, check=True)
    parts = json.loads(done.stdout)
    assert {part["type"] for part in parts} == {0, 3}  # data; hole and zero
    assert sum(part["length"] for part in parts) == 16 << 30
    return joined([(part["offset"], part["offset"] + part["length"]) for part in parts if part["type"] == 0])


def test_the_map_is_that_of_the_tree(served: Served, need: Callable[..., None]) -> None:
    need("nbdinfo")
    ranges = in_tree(served)
    assert in_map(served.uri) == ranges
    with open(served.copy, "rb") as copy:
        for start, end in ranges:
            for at in range(start, end, 1 << 20):
                data = os.pread(copy.fileno(), min(1 << 20, end - at), at)
                blocks = [data[first : first + BLOCK] for first in range(0, len(data), BLOCK)]
                assert all(block.strip(b"\0") for block in blocks), f"near byte {at} a block of zeros is called data"


def test_a_copy_is_sparse_and_equals_the_export(served: Served, need: Callable[..., None]) -> None:
    need("qemu-img")
    data = sum(end - start for start, end in in_tree(served))
    taken = served.copy.stat().st_blocks * 512
    assert 0.9 * data < taken < data + (16 << 20)
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(served.copy), served.uri]
    assert "identical" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_reads_at_once_from_an_empty_cache_are_right(served: Served, tmp_path: Path, need: Callable[..., None]) -> None:
    """fio reads all over the data, many at once, while a second client compares every byte with the first copy."""
    need("fio", "qemu-img")
    server = served.server
    server.stop()
    shutil.rmtree(server.cache)
    server.start()
    start, end = in_tree(served)[0][0], in_tree(served)[-1][1]
    load = [
        "fio", "--name=load", "--ioengine=nbd", f"--uri={served.uri}", "--rw=randread", "--bsrange=4k-128k",
        "--blockalign=4k", f"--offset={start}", f"--size={end - start}", "--io_size=512m", "--iodepth=16",
        "--output-format=json",
    ]  # fmt: skip
    with open(tmp_path / "fio.json", "w") as out:
        reader = subprocess.Popen(load, stdout=out, cwd=tmp_path)
        command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(served.copy), served.uri]
        compared = subprocess.run(command, capture_output=True, text=True)
        assert reader.wait(300) == 0
    assert compared.returncode == 0, compared.stdout + compared.stderr
    report = (tmp_path / "fio.json").read_text()
    (job,) = json.loads(report[report.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["io_bytes"] >= 512 << 20


def test_e2fsck_finds_nothing(served: Served, need: Callable[..., None]) -> None:
    need("e2fsck")
    fsck(served.copy)


def test_verify_finds_the_source_file_by_file(served: Served) -> None:
    done = served.server.run("verify", served.name, "--against", f"oci:{served.layout}")
    assert "file by file" in done.stdout


@pytest.mark.root
def test_the_kernel_reads_what_umoci_unpacks(
    served: Served, where: Path, need: Callable[..., None], need_root: None
) -> None:
    need("umoci")
    unpacked = where / "unpacked"
    subprocess.run(["umoci", "raw", "unpack", "--image", served.layout, unpacked], check=True, capture_output=True)
    with mounted(served.copy, where / "mounted") as volume:
        assert compare_with_unpacked(volume, unpacked) > 3000


@pytest.mark.root
def test_a_copy_takes_writes_and_grows(served: Served, where: Path, need: Callable[..., None], need_root: None) -> None:
    need("e2fsck")
    write_and_grow(served.copy, where / "copy.raw", where / "mounted")
