"""Images that strain an importer: what is long or many is refused by name, or left out, in little memory."""

import os
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.errors import ImageError
from blockmap.filesystem import kept
from blockmap.filesystem.member import Member, MemberKind
from blockmap.filesystem.merge import Tree
from tests.image.layouts import archive, compress_zstd, file, layout

MORE_BYTES = 150_000_000
"""What an import may take beyond the same input without its hostile part."""

IMPORT = """
import resource, sys
from pathlib import Path
from blockmap.errors import BlockmapError
from tests.image.builder import import_image
source, work, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = []
try:
    import_image(work / "store", source, "a:1", work, said)
    print("imported")
except BlockmapError as error:
    print("refused:", error)
print(*said, sep="\\n")
lines = open("/proc/self/status").read().splitlines()
print(*(line.split()[1] for name in ("VmPeak", "VmHWM") for line in lines if line.startswith(name)))
"""


def run(source: str, work: Path, limit: int = 0) -> tuple[str, int, int]:
    """Imports a source in `limit` bytes of address space; returns what was said, and the most address space and memory taken."""
    work.mkdir()
    # One arena: each thread's own would take 64 MiB of address space, whatever it holds.
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, source, str(work), str(limit)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, _, peaks = done.stdout.strip().rpartition("\n")
    space, memory = peaks.split()
    return said, int(space) << 10, int(memory) << 10


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The address space that the image takes without anything hostile, and what it may take with it."""
    where = tmp_path_factory.mktemp("ordinary")
    image = layout(where / "image", [archive([file("a", b"1" * 5000)])], compress=compress_zstd)
    said, peak, _ = run(f"oci:{image}", where / "work")
    assert said.splitlines()[0] == "imported"
    return peak + MORE_BYTES


def header(name: bytes, kind: bytes, size: int = 0, target: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name.decode())
    info.type, info.size, info.linkname = kind, size, target.decode()
    return info.tobuf(tarfile.USTAR_FORMAT)


def extension(kind: bytes, data: bytes) -> bytes:
    return header(b"x", kind, len(data)) + data + bytes(-len(data) % 512)


def pax(key: bytes, value: bytes) -> bytes:
    """A pax header of one record, whose length needs four to seven digits."""
    rest = len(key) + len(value) + 3
    length = next(rest + digits for digits in range(4, 8) if len(str(rest + digits)) == digits)
    return extension(b"x", b"%d %s=%s\n" % (length, key, value))


def attributes() -> Iterator[bytes]:
    for n in range(20_000):
        yield pax(b"SCHILY.xattr.user.a", b"%08d" % n + b"v" * 4000) + header(b"f%d" % n, b"0")


def targets() -> Iterator[bytes]:
    for n in range(20_000):
        yield extension(b"K", b"%08d" % n + b"t" * 4000) + header(b"f%d" % n, b"2")


def pseudo_links() -> Iterator[bytes]:
    for n in range(20_000):
        yield extension(b"L", b".wh..wh.plnk/" + b"n" * 4000 + b"/%08d" % n) + header(b"f", b"0")


def comments() -> Iterator[bytes]:
    noise = random.Random(1)
    for n in range(100):
        yield pax(b"comment", noise.randbytes(1_000_000)) + header(b"f%d" % n, b"0")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (attributes, "refused: 'f1[0-9]{4}': with it, names, targets and attributes of more than 128 bytes"),
        (targets, "refused: 'f1[0-9]{4}': with it, names, targets and attributes of more than 128 bytes"),
        (pseudo_links, "refused: .*with it, names, targets and attributes of more than 128 bytes"),
        (comments, "imported\nlayer [0-9a-f]*: its headers are not kept"),
    ],
)
def test_what_is_long_in_a_layer_takes_little_memory(
    members: Callable[[], Iterator[bytes]], words: str, ordinary: int, tmp_path: Path
) -> None:
    layer = b"".join(members()) + bytes(1024)
    image = layout(tmp_path / "image", [layer], compress=compress_zstd)
    said, *_ = run(f"oci:{image}", tmp_path / "work", ordinary)
    assert re.match(words, said), said


def test_documents_of_nothing_but_brackets(ordinary: int, tmp_path: Path) -> None:
    """JSON takes 24 times its size in memory."""
    cases = ((4 << 20) - 100, "where a descriptor is expected"), (32 << 20, "is too long for a document of an image")
    for size, words in cases:
        image = layout(tmp_path / f"image{size}", [archive([])])
        (image / "index.json").write_text('{"manifests":' + "[" + "[]," * (size // 3 - 10) + "[]]}")
        said, *_ = run(f"oci:{image}", tmp_path / f"work{size}", ordinary)
        assert said.startswith("refused"), said
        assert words in said


@pytest.mark.parametrize("kind", ["names", "one name", "global headers"])
def test_headers_of_a_docker_archive(kind: str, ordinary: int, tmp_path: Path) -> None:
    pieces = {
        "names": (extension(b"L", b"%08d" % n + b"n" * 60_000) + header(b"f", b"0") for n in range(4000)),
        "one name": [extension(b"L", b"n" * (300 << 20)) + header(b"f", b"0")],
        "global headers": (
            extension(b"g", b"65000 %08d" % n + b"k" * 64_000 + b"=" + b"v" * 984 + b"\n") + header(b"f%d" % n, b"0")
            for n in range(4000)
        ),
    }[kind]
    with open(tmp_path / "saved.tar", "wb") as out:
        out.writelines(pieces)
        out.write(bytes(1024))
    said, *_ = run(f"docker-archive:{tmp_path / 'saved.tar'}", tmp_path / "work", ordinary)
    assert said.startswith("refused"), said
    assert "is not a docker archive" in said


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """A million take 430 bytes each; of few, more is what the allocator keeps."""

    def files(count: int) -> Iterator[bytes]:
        for n in range(count):
            yield header(b"folder-%d/file-%d" % (n // 1000, n), b"0", 6) + b"%06d" % n + bytes(506)

    memory = []
    for count in (10_000, 50_000):
        image = layout(tmp_path / f"image{count}", [b"".join(files(count)) + bytes(1024)], compress=compress_zstd)
        said, _, most = run(f"oci:{image}", tmp_path / f"work{count}")
        assert said.strip() == "imported"
        memory.append(most)
    assert memory[1] - memory[0] < 40_000 * 1000, f"{(memory[1] - memory[0]) / 40_000} bytes each"


def test_more_names_than_an_import_takes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, links, and directories that no member describes all count; what is declared again counts with new attributes."""
    monkeypatch.setattr(kept, "MAX_NAMES", 10)
    tree = Tree()
    tree.begin_layer()
    for _ in range(20):
        tree.add(Member(b"a/b/c", MemberKind.DIR, 0o755))
    for n in range(2):
        tree.add(Member(b"a/b/c", MemberKind.DIR, 0o755, xattrs={b"user.n": b"%d" % n}))
    for n in range(2):
        tree.add(Member(b"f%d" % n, MemberKind.FILE, 0o644))
    for n in range(3):
        tree.add(Member(b"l%d" % n, MemberKind.HARDLINK, 0o644, target=b"f1"))
    with pytest.raises(ImageError, match="more than 10 files, directories and links"):
        tree.add(Member(b"one-more", MemberKind.FIFO, 0o644))


def test_equal_attributes_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_LONG_BYTES", 1000)
    tree = Tree()
    tree.begin_layer()
    for n in range(100):
        tree.add(Member(b"f%d" % n, MemberKind.FILE, 0o644, xattrs={b"user.label": bytes(1000)}))
    with pytest.raises(ImageError, match="'g': with it, names, targets and attributes"):
        tree.add(Member(b"g", MemberKind.FILE, 0o644, xattrs={b"user.label": b"1" * 500}))
