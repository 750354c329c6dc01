"""Layers of an OCI layout read by Python's tarfile."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from blockmap.filesystem.member import Member, MemberKind, Members

_KINDS = {
    tarfile.REGTYPE: MemberKind.FILE, tarfile.AREGTYPE: MemberKind.FILE, tarfile.LNKTYPE: MemberKind.HARDLINK,
    tarfile.SYMTYPE: MemberKind.SYMLINK, tarfile.CHRTYPE: MemberKind.CHAR, tarfile.BLKTYPE: MemberKind.BLOCK,
    tarfile.DIRTYPE: MemberKind.DIR, tarfile.FIFOTYPE: MemberKind.FIFO,
}  # fmt: skip


def layers(layout: Path) -> Iterator[Members]:
    """Yields the layers of a layout's first image, from the bottom up."""

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_bytes())
    for descriptor in manifest["layers"]:
        yield _members(blob(descriptor["digest"]))


def _members(path: Path) -> Members:
    with tarfile.open(path, "r|*", encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            kind = _KINDS[info.type]
            seconds, _, fraction = str(info.pax_headers.get("mtime", int(info.mtime))).partition(".")
            assert not fraction or not seconds.startswith("-")
            prefix = "SCHILY.xattr."
            xattrs = {
                name.removeprefix(prefix).encode(): value.encode("utf-8", "surrogateescape")
                for name, value in info.pax_headers.items()
                if name.startswith(prefix)
            }
            member = Member(
                _normal(info.name), kind, info.mode & 0o7777, info.uid, info.gid, int(seconds),
                int(fraction[:9].ljust(9, "0")), info.size if kind is MemberKind.FILE else 0,
                _normal(info.linkname) if kind is MemberKind.HARDLINK else info.linkname.encode("utf-8", "surrogateescape"),
                info.devmajor, info.devminor, xattrs,
            )  # fmt: skip
            yield member, _contents(tar, info) if kind is MemberKind.FILE else iter(())


def _normal(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape").removeprefix(b"./").strip(b"/").removeprefix(b".")


def _contents(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(info)
    assert file is not None
    while piece := file.read(1 << 20):
        yield piece
