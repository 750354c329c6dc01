"""OCI image layouts made with Python's tarfile, independently of the product's reader."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard


@dataclass
class Member:
    path: bytes
    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: str = "1000000000"
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)


def file(path: str | bytes, data: bytes = b"", **fields: Any) -> Member:
    return Member(_bytes(path), data=data, **fields)


def directory(path: str | bytes, **fields: Any) -> Member:
    return Member(_bytes(path), tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(path: str | bytes, target: str | bytes, **fields: Any) -> Member:
    return Member(_bytes(path), tarfile.SYMTYPE, target=_bytes(target), mode=0o777, **fields)


def hardlink(path: str | bytes, target: str | bytes) -> Member:
    return Member(_bytes(path), tarfile.LNKTYPE, target=_bytes(target))


def archive(members: Iterable[Member]) -> bytes:
    """Returns a pax archive."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for member in members:
            info = tarfile.TarInfo(member.path.decode("utf-8", "surrogateescape"))
            info.type, info.mode, info.uid, info.gid = member.kind, member.mode, member.uid, member.gid
            info.linkname = member.target.decode("utf-8", "surrogateescape")
            info.devmajor, info.devminor = member.device
            info.size = len(member.data)
            info.pax_headers = {"mtime": member.mtime}
            for name, value in member.xattrs.items():
                info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
            tar.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def compress_gzip(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def compress_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


_TYPES: dict[Callable[[bytes], bytes] | None, str] = {None: "", compress_gzip: "+gzip", compress_zstd: "+zstd"}


def layout(
    where: Path,
    layers: list[bytes],
    compress: Callable[[bytes], bytes] | None = compress_gzip,
    tag: str = "1",
    config: dict[str, Any] | None = None,
    spoil: Callable[[bytes], bytes] | None = None,
) -> Path:
    """Writes an OCI layout of one image; a `compress` of the caller's own makes gzip.

    `spoil` changes the last layer's blob after its digest was taken.
    """
    blobs = where / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media: str, content: bytes | None = None) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data if content is None else content)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    descriptors = []
    for number, layer in enumerate(layers):
        packed = compress(layer) if compress else layer
        content = spoil(packed) if spoil is not None and number == len(layers) - 1 else None
        descriptors.append(
            put(packed, f"application/vnd.oci.image.layer.v1.tar{_TYPES.get(compress, '+gzip')}", content)
        )
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
        **(config or {}),
    }
    described = put(json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described,
        "layers": descriptors,
    }
    top = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    top["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (where / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (where / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return where


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
