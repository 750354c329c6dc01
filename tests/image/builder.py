"""Helpers for tests of imports: `docker save` archives, stores in folders, and a tar put together again."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from blockmap.errors import StoreUnavailable
from blockmap.format import keys
from blockmap.image.importer import Importer, Summary
from blockmap.image.sources import open_source
from blockmap.store.base import Buffer, Pruner
from tests.store.made import open_or_create


def bulk(seed: int, size: int) -> bytes:
    """Returns incompressible bytes, the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(4, "little")).digest(size)


def docker_archive(where: Path, layers: Sequence[bytes], tags: Sequence[str] = ("image:1",)) -> Path:
    """Writes an archive as `docker save` does."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
            },
        }
    ).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "RepoTags": list(tags), "Layers": names}]).encode()
    with tarfile.open(where, "w") as out:
        for name, data in (("config.json", config), *zip(names, layers, strict=True), ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return where


def import_image(
    store: Path | Pruner,
    source: str,
    name: str,
    work: Path,
    warnings: list[str] | None = None,
    keeps_blobs: bool = False,
) -> Summary:
    """Imports as the command line does; a store that is given as a folder is made if it is absent."""
    repo, tag = name.split(":")
    found = open_source(source, platform="linux/amd64", work=work)
    try:
        if isinstance(store, Path):
            opened, form = open_or_create(str(store))
        else:
            opened, form = store, open_or_create(store.url)[1]
        importer = Importer(opened, form, (warnings if warnings is not None else []).append)
        return importer.run(found, repo, tag, keeps_blobs=keeps_blobs)
    finally:
        found.close()


def listing(folder: Path) -> dict[str, int]:
    """Returns every file below a folder with its size, but what a store is written to for its clock; empty if it is absent."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return {name: size for name, size in files.items() if name != keys.CLOCK}


def reassemble(headers: bytes, contents: Callable[[bytes], bytes]) -> bytes:
    """Returns a tar made of its headers and of the contents of its files by path (ustar and pax members only)."""
    out = bytearray()
    at = 0
    path: bytes | None = None
    while at < len(headers):
        block = headers[at : at + 512]
        out += block
        at += 512
        if not block.strip(b"\0"):
            continue
        size = int(block[124:136].rstrip(b"\0 ") or b"0", 8)
        if block[156:157] in b"xg":
            data = headers[at : at + size]
            out += headers[at : at + size + -size % 512]
            at += size + -size % 512
            for record in data.split(b"\n"):
                key, _, value = record.partition(b" ")[2].partition(b"=")
                path = value if key == b"path" else path
        else:
            name = path or block[:100].rstrip(b"\0")
            path = None
            if block[156:157] == b"0":
                data = contents(name.removeprefix(b"./"))
                assert len(data) == size
                out += data + headers[at : at + -size % 512]
                at += -size % 512
    return bytes(out)


class Full:
    """A store with room for a number of creates."""

    def __init__(self, inner: Pruner, room: int, error: type[BaseException] = StoreUnavailable) -> None:
        self.inner, self.url, self.room, self.error = inner, inner.url, room, error
        self.keys: list[str] = []

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        if self.room == 0:
            raise self.error(f"no room left for {key}")
        self.room -= 1
        self.keys.append(key)
        self.inner.create(key, parts)

    def get(self, key: str, *most: int) -> bytes:
        return self.inner.get(key, *most)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self.inner.get_range(key, start, end)

    def list(self, prefix: str) -> list[str]:
        return self.inner.list(prefix)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def replace(self, key: str, data: bytes) -> None:
        self.inner.replace(key, data)

    def delete(self, key: str) -> None:
        self.inner.delete(key)
