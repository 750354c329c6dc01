"""Makes the forms of an image that are compared: in a store, as a registry has it, as a raw and a qcow2 disk, on a local disk."""

import json
import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import quote

from blockmap.bench.coldstart.blockmap_server import BLOCKMAP, served
from blockmap.bench.coldstart.engine import Store, to_write
from blockmap.bench.coldstart.origin import Origin
from blockmap.errors import HostError
from blockmap.format.refs import parse_name
from blockmap.host import tools

_SLACK_BYTES = 64 << 20
_REF_NAME = "org.opencontainers.image.ref.name"


class ImageForm(Enum):
    """A form of an image; its value is the programs that make it."""

    STORE = ("nbdkit",)
    PROFILE = ("nbdkit", "nbdfuse", "fusermount3", "losetup")
    """In the store, with a profile."""
    RAW = ("nbdkit", "qemu-img")
    QCOW2 = ("nbdkit", "qemu-img", "qemu-nbd")
    REGISTRY = ("skopeo",)
    LOCAL = ("umoci", "mkfs.ext4", "losetup")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, in the forms that were asked for; paths below the far side's files are those in URLs."""

    name: str
    volume: str
    """Path of the disk without its ending, .raw or .qcow2."""
    local: Path
    """A disk image on this host, for the floor."""


def prepare(
    image: str, layout: Path, origin: Origin, engine: str, work: Path, forms: Collection[ImageForm]
) -> Prepared:
    """Makes the forms of an image; HostError, UsageError."""
    repo, tag = parse_name(image)
    folder = work / f"{repo}-{tag}"
    folder.mkdir()
    prepared = Prepared(image, f"{repo}-{tag}", folder / "local.img")
    if not {ImageForm.STORE, ImageForm.PROFILE, ImageForm.RAW, ImageForm.QCOW2}.isdisjoint(forms):
        store = to_write(engine, f"http://127.0.0.1:{origin.port}", origin.files)
        _import(f"oci:{layout}:{tag}", image, store)
        for form in (ImageForm.RAW, ImageForm.QCOW2):
            if form in forms:
                _convert(image, store, folder, origin.files / f"{prepared.volume}.{form.name.lower()}")
    if ImageForm.REGISTRY in forms:
        _publish(layout, tag, origin.files / "v2" / repo)
    if ImageForm.LOCAL in forms:
        _make_local_disk(layout, tag, folder / "unpacked", prepared.local)
    return prepared


def _import(source: str, image: str, store: Store) -> None:
    command = [*BLOCKMAP, "import", source, image, "--store", store.url, "--quiet"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=store.environment
    )
    if done.returncode:
        raise HostError(f"{source} could not be imported: {done.stderr.strip()}")


def _convert(image: str, store: Store, folder: Path, disk: Path) -> None:
    """Writes the image's volume as a disk whose format is its ending."""
    with served(store, folder / "cache", folder) as socket:
        uri = f"nbd+unix:///{quote(image, safe='')}?socket={quote(str(socket))}"
        tools.run("qemu-img", "convert", "-f", "raw", "-O", disk.suffix[1:], uri, str(disk))


def _publish(layout: Path, tag: str, folder: Path) -> None:
    """Puts manifest and blobs where clients of a registry ask for them."""
    listed = json.loads((layout / "index.json").read_bytes())["manifests"]
    digest = next(each["digest"] for each in listed if each.get("annotations", {}).get(_REF_NAME) == tag)
    manifest = json.loads(_blob(layout, digest).read_bytes())
    for name in ("manifests", "blobs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in (tag, digest):
        shutil.copyfile(_blob(layout, digest), folder / "manifests" / name)
    for part in (manifest["config"], *manifest["layers"]):
        shutil.copyfile(_blob(layout, part["digest"]), folder / "blobs" / part["digest"])


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _make_local_disk(layout: Path, tag: str, root: Path, disk: Path) -> None:
    """Makes an ext4 file system with the unpacked image."""
    tools.run("umoci", "raw", "unpack", "--image", f"{layout}:{tag}", str(root))
    size, files = _usage(root)
    disk.touch()
    # Room for inodes and tails, in whole MiB.
    os.truncate(disk, (size * 13 // 10 + files * 4096 + _SLACK_BYTES) >> 20 << 20)
    tools.run("mkfs.ext4", "-q", "-d", str(root), str(disk))
    tools.run("rm", "-rf", str(root))


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
