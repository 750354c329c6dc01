"""The same image in every form that a row needs: in a store, in a registry, as a raw and a qcow2 disk, on a local disk."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from blockmap.cli.bench.coldstart.origin import Origin
from blockmap.cli.bench.coldstart.serve import served
from blockmap.format.refs import parse_name
from blockmap.host import tools
from blockmap.image.disk import DiskSource
from blockmap.image.importer import Importer
from blockmap.image.sources import open_source
from blockmap.store.opening import open_or_create

STORE = "store"
_SLACK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image; paths below the far side's files are those in URLs."""

    name: str
    volume: str
    """Without its ending: .raw and .qcow2 are there."""
    local: Path
    """A disk image on this host, for the floor."""


def prepare(image: str, layout: Path, origin: Origin, work: Path) -> Prepared:
    """Imports, converts, pushes and unpacks an image; HostError, ImageError, UsageError."""
    repo, tag = parse_name(image)
    folder = work / f"{repo}-{tag}"
    folder.mkdir(parents=True)
    store = origin.files / STORE
    source = open_source(f"oci:{layout}:{tag}", platform=None, work=folder)
    assert not isinstance(source, DiskSource)
    try:
        opened, form = open_or_create(str(store))
        Importer(opened, form, lambda _: None).run(source, repo, tag)
    finally:
        source.close()
    volume = f"{repo}-{tag}"
    raw, qcow2 = (origin.files / f"{volume}{ending}" for ending in (".raw", ".qcow2"))
    with served(str(store), folder / "cache", folder) as socket:
        uri = f"nbd+unix:///{quote(image, safe='')}?socket={quote(str(socket))}"
        tools.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(raw))
    tools.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2))
    tools.run(
        "skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:{tag}",
        f"docker://127.0.0.1:{origin.port}/{repo}:{tag}",
    )  # fmt: skip
    return Prepared(image, volume, _local_disk(layout, tag, folder))


def _local_disk(layout: Path, tag: str, folder: Path) -> Path:
    """An ext4 file system with the unpacked image."""
    root, disk = folder / "unpacked", folder / "local.img"
    tools.run("umoci", "raw", "unpack", "--image", f"{layout}:{tag}", str(root))
    size, files = _usage(root)
    disk.touch()
    # Room for inodes and tails, in whole MiB.
    os.truncate(disk, (size * 13 // 10 + files * 4096 + _SLACK_BYTES) >> 20 << 20)
    tools.run("mkfs.ext4", "-q", "-d", str(root), str(disk))
    tools.run("rm", "-rf", str(root))
    return disk


def _usage(root: Path) -> tuple[int, int]:
    """Bytes of files, hard links counted once, and how many files there are."""
    size, seen, files = 0, set(), 0
    for directory, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            files += 1
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                size += status.st_size
    return size, files
