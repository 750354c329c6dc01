"""Makes every form of an image that is compared: in a store, in a registry, as a raw and a qcow2 disk, on a local disk."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from blockmap.bench.coldstart.blockmap_server import BLOCKMAP, served
from blockmap.bench.coldstart.engine import Store, to_write
from blockmap.bench.coldstart.origin import Origin
from blockmap.errors import HostError
from blockmap.format.refs import parse_name
from blockmap.host import tools

_SLACK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image; paths below the far side's files are those in URLs."""

    name: str
    volume: str
    """Path of the disk without its ending; .raw and .qcow2 exist."""
    local: Path
    """A disk image on this host, for the floor."""


def prepare(image: str, layout: Path, origin: Origin, engine: str, work: Path) -> Prepared:
    """Imports, converts, pushes and unpacks an image; HostError, UsageError."""
    repo, tag = parse_name(image)
    folder = work / f"{repo}-{tag}"
    folder.mkdir()
    far = f"http://127.0.0.1:{origin.port}"
    store = to_write(engine, far, origin.files)
    _import(f"oci:{layout}:{tag}", image, store)
    volume = f"{repo}-{tag}"
    raw, qcow2 = (origin.files / f"{volume}{ending}" for ending in (".raw", ".qcow2"))
    with served(store, folder / "cache", folder) as socket:
        uri = f"nbd+unix:///{quote(image, safe='')}?socket={quote(str(socket))}"
        tools.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(raw))
    tools.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2))
    tools.run(
        "skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:{tag}",
        f"docker://127.0.0.1:{origin.port}/{repo}:{tag}",
    )  # fmt: skip
    return Prepared(image, volume, _local_disk(layout, tag, folder))


def _import(source: str, image: str, store: Store) -> None:
    command = [*BLOCKMAP, "import", source, image, "--store", store.url, "--quiet"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=store.environment
    )
    if done.returncode:
        raise HostError(f"{source} could not be imported: {done.stderr.strip()}")


def _local_disk(layout: Path, tag: str, folder: Path) -> Path:
    """Makes an ext4 file system with the unpacked image."""
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
    """Returns the bytes of all files, hard links counted once, and the number of files."""
    size, seen, files = 0, set(), 0
    for directory, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            files += 1
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                size += status.st_size
    return size, files
