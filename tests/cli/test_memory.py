"""The most memory that an import takes, whatever it imports: measured by the kernel, of the program itself."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from hashlib import sha256, shake_128
from pathlib import Path

import numpy as np
import pytest
import zstandard

from tests.store.made import open_or_create

pytestmark = pytest.mark.long

LIMIT_BYTES = 400_000_000
# A process inherits the peak of the one that started it, so a small one stands between; it prints what wait4 tells it.
PEAK = """
import os, sys
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss * 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak(*arguments: object) -> tuple[dict[str, int], int]:
    """What `blockmap ARGUMENTS --json` prints, the last of which is the store, and its peak of resident bytes."""
    open_or_create(str(arguments[-1]))
    command = [sys.executable, "-c", PEAK, "-m", "blockmap.cli.main", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), int(done.stderr.split()[-1])


class Hashing(io.RawIOBase):
    """Compresses what is written into a file, and hashes both sides."""

    def __init__(self, path: Path) -> None:
        self.stored, self.archive, self.size = sha256(), sha256(), 0
        self._file = open(path, "wb")  # noqa: SIM115
        self._compress = zstandard.ZstdCompressor(level=1).compressobj()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self.archive.update(view)
        self._put(self._compress.compress(view))
        return len(view)

    def _put(self, packed: bytes) -> None:
        self.stored.update(packed)
        self.size += self._file.write(packed)

    def end(self) -> None:
        self._put(self._compress.flush())
        self._file.close()


def image(where: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    """An OCI layout of one zstd layer that is never in memory as a whole."""
    blobs = where / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    out = Hashing(where / "layer")
    with tarfile.open(fileobj=out, mode="w|") as tar:
        fill(tar)
    out.end()
    (where / "layer").rename(blobs / out.stored.hexdigest())

    def put(document: object, kind: str) -> dict[str, object]:
        data = json.dumps(document).encode()
        digest = sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}.v1+json",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    config = {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{out.archive.hexdigest()}"]}}
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
        "digest": f"sha256:{out.stored.hexdigest()}",
        "size": out.size,
    }
    manifest = put({"schemaVersion": 2, "config": put(config, "config"), "layers": [layer]}, "manifest")
    (where / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (where / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return where


def add(tar: tarfile.TarFile, path: str, size: int, content: io.RawIOBase | io.BytesIO) -> None:
    info = tarfile.TarInfo(path)
    info.size, info.mtime = size, 1_000_000_000
    tar.addfile(info, content)


def test_100_000_files(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for n in range(100_000):
            data = shake_128(n.to_bytes(4, "little")).digest(100 + n * 7919 % 6000)
            add(
                tar,
                f"usr/share/folder-{n % 1000:04}/a-file-with-a-name-as-they-are-{n:06}",
                len(data),
                io.BytesIO(data),
            )

    summary, most = peak("import", f"oci:{image(tmp_path / 'image', fill)}", "many:1", "--store", tmp_path / "store")
    assert summary["data_bytes"] > 400_000_000
    print(f"peak memory {most / 1e6:.0f} MB")
    assert most < LIMIT_BYTES


class Blocks(io.RawIOBase):
    """Blocks that differ from each other, and compress well."""

    def __init__(self) -> None:
        self._at = 0
        self._next = self._blocks()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size % 4096 == 0
        return b"".join(next(self._next) for _ in range(size // 4096))

    @staticmethod
    def _blocks() -> Iterator[bytes]:
        random = np.random.default_rng(1)
        tail = bytes(4096 - 32)
        while True:
            heads = random.bytes(32 * 4096)
            for at in range(0, len(heads), 32):
                yield heads[at : at + 32] + tail


def test_a_file_of_3_gib(tmp_path: Path) -> None:
    size = 3 << 30

    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "large", size, Blocks())

    summary, most = peak("import", f"oci:{image(tmp_path / 'image', fill)}", "large:1", "--store", tmp_path / "store")
    assert summary["data_bytes"] >= size
    assert summary["new_bytes"] >= size
    print(f"peak memory {most / 1e6:.0f} MB")
    assert most < LIMIT_BYTES


def test_a_million_small_files(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for n in range(1_000_000):
            add(tar, f"folder-{n // 1000:03}/file-{n:06}", 6, io.BytesIO(b"%06d" % n))

    summary, most = peak("import", f"oci:{image(tmp_path / 'image', fill)}", "small:1", "--store", tmp_path / "store")
    assert summary["data_bytes"] > 4_000_000_000
    print(f"peak memory {most / 1e6:.0f} MB")
    assert most < 700_000_000
