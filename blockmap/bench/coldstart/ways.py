"""Gets an image's files, in each way that is compared; the ways are the rows of the table.

All that serve NBD are attached in the same way: nbdfuse, a loop device with direct I/O, ext4 mounted read-only. A way needs the
programs that it warms, and those that make its forms of the image; where one is missing, its row is left out.
"""

import contextlib
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blockmap.bench.coldstart.blockmap_server import BLOCKMAP, served
from blockmap.bench.coldstart.by_command import ByCommand
from blockmap.bench.coldstart.engine import Store
from blockmap.bench.coldstart.images import ImageForm, Prepared
from blockmap.bench.coldstart.processes import listens, mounted, running, wait_ready
from blockmap.control.client import Client
from blockmap.control.messages import Resolve
from blockmap.control.store_log import read_calls
from blockmap.host import tools
from blockmap.host.devices.nbdfuse import NbdFuse
from blockmap.host.mounting import started
from blockmap.store.call import Call

_UNLEARNT = "+unlearnt"
"""A workload of which nothing is known."""
_ATTACHING = (("nbdfuse", "--version"), ("fusermount3", "--version"), ("losetup", "--version"))


@dataclass(frozen=True, slots=True)
class BenchSite:
    """The folder, store and link that one start has to itself."""

    image: Prepared
    folder: Path
    """Empty, on disk."""
    url: str
    """URL of the far side, through the link."""
    store: Store
    """blockmap's, through the link."""
    stack: contextlib.ExitStack
    """Takes apart what the way makes."""


class Way(Protocol):
    name: str
    """The name in the table."""
    remote: bool
    """True if its bytes come over the link."""
    forms: Collection[ImageForm]
    """The forms of the image that it reads."""
    programs: Sequence[Sequence[str]]
    """Run once before the clock starts: this host has its programs in memory, and nothing of the image."""

    def before(self, place: BenchSite) -> None:
        """Starts what a host has running before anybody asks for the image."""

    def root(self, place: BenchSite) -> Path:
        """Returns the directory of the image's files, read-only; the clock runs."""

    def calls(self, place: BenchSite) -> list[Call] | None:
        """Returns what its server asked of the store; None where it keeps no such log."""


class _Peer:
    """The defaults of the ways that blockmap is compared with."""

    def before(self, place: BenchSite) -> None:
        pass

    def calls(self, place: BenchSite) -> list[Call] | None:
        return None


class Blockmap:
    """`blockmap serve` with an empty cache; started after the request, or before it (resident); with a profile or without."""

    remote = True
    programs: Sequence[Sequence[str]] = (
        (*BLOCKMAP, "serve", "--help"),
        (sys.executable, "-c", "import obstore, numpy, xxhash, zstandard, isal"),
        ("nbdkit", "python", "--dump-plugin"),
        *_ATTACHING,
    )

    def __init__(self, resident: bool, profile: bool = False) -> None:
        self.name = "blockmap" + ", resident" * resident + ", profile" * profile
        self.profile = profile
        self.forms: Collection[ImageForm] = (ImageForm.PROFILE if profile else ImageForm.STORE,)
        self._resident = resident

    def before(self, place: BenchSite) -> None:
        if self._resident:
            self._serve(place, warm=True)  # one that has been up for a while has its connections

    def root(self, place: BenchSite) -> Path:
        socket = socket_of(place) if self._resident else self._serve(place)
        client = Client(socket)
        export = client.ask(Resolve(place.image.name + ("" if self.profile else _UNLEARNT))).export
        # As `attach` does it.
        where = place.folder / "image"
        where.mkdir()
        place.stack.enter_context(started(NbdFuse(), client, export, place.folder / "device", where))
        return where

    def calls(self, place: BenchSite) -> list[Call] | None:
        return calls_of(place)

    def _serve(self, place: BenchSite, warm: bool = False) -> Path:
        return place.stack.enter_context(served(place.store, place.folder / "cache", place.folder, warm))


def socket_of(place: BenchSite) -> Path:
    """Returns the NBD socket of blockmap's server."""
    return place.folder / "blockmap.sock"


def calls_of(place: BenchSite) -> list[Call]:
    """Returns all that blockmap's server has asked of the store."""
    return read_calls(Client(socket_of(place)), 0)[0]


class Curl(_Peer):
    """nbdkit's curl plugin on the raw disk, as it comes."""

    name, remote = "nbdkit curl", True
    forms: Collection[ImageForm] = (ImageForm.RAW,)
    programs: Sequence[Sequence[str]] = (("nbdkit", "curl", "--dump-plugin"), *_ATTACHING)

    def root(self, place: BenchSite) -> Path:
        socket = place.folder / "nbd.sock"
        url = f"{place.url}/{place.image.volume}.raw"
        return _serve_and_attach(place, ["nbdkit", "-f", "-r", "-U", str(socket), "curl", url], socket)


class QemuNbd(_Peer):
    """qemu-nbd on the qcow2 disk, which its curl driver reads with 256 KiB of read-ahead, as it comes."""

    name, remote = "qemu-nbd qcow2", True
    forms: Collection[ImageForm] = (ImageForm.QCOW2,)
    programs: Sequence[Sequence[str]] = (("qemu-nbd", "--version"), *_ATTACHING)

    def root(self, place: BenchSite) -> Path:
        socket = place.folder / "nbd.sock"
        options = f"driver=qcow2,file.driver=http,file.url={place.url}/{place.image.volume}.qcow2"
        command = ["qemu-nbd", "-r", "-t", "-e", "16", "-k", str(socket), "--image-opts", options]
        return _serve_and_attach(place, command, socket)


class Pull(_Peer):
    """All layers from a registry, then unpacked."""

    name, remote = "pull + unpack", True
    forms: Collection[ImageForm] = (ImageForm.REGISTRY,)
    programs: Sequence[Sequence[str]] = (("skopeo", "--version"), ("umoci", "--version"))

    def root(self, place: BenchSite) -> Path:
        repo, _, tag = place.image.name.partition(":")
        registry = place.url.removeprefix("http://")
        layout = place.folder / "pulled"
        tools.run(
            "skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{registry}/{repo}:{tag}", f"oci:{layout}:{tag}"
        )  # fmt: skip
        root = place.folder / "unpacked"
        tools.run("umoci", "raw", "unpack", "--image", f"{layout}:{tag}", str(root))
        return root


class LocalDisk(_Peer):
    """The unpacked image on this host's disk: nothing can be faster that reads the same bytes."""

    name, remote = "local disk", False
    forms: Collection[ImageForm] = (ImageForm.LOCAL,)
    programs: Sequence[Sequence[str]] = (("losetup", "--version"),)

    def root(self, place: BenchSite) -> Path:
        device = tools.run("losetup", "--find", "--show", "--read-only", str(place.image.local)).strip()
        place.stack.callback(tools.run, "losetup", "--detach", device)
        return _mount(place, device)


def all_ways() -> dict[str, Way]:
    """Returns all ways by the word that asks for each."""
    return {
        "blockmap": Blockmap(resident=False),
        "resident": Blockmap(resident=True),
        "profile": Blockmap(resident=True, profile=True),
        "attach": ByCommand(Blockmap.programs),
        "local": LocalDisk(),
        "pull": Pull(),
        "curl": Curl(),
        "qemu": QemuNbd(),
    }


def _serve_and_attach(place: BenchSite, command: list[str], socket: Path) -> Path:
    log = place.folder / "server.log"
    process = place.stack.enter_context(running([tools.find(command[0]), *command[1:]], log))
    wait_ready(process, log, lambda: listens(socket))
    return _attach(place, socket, "")


def _attach(place: BenchSite, socket: Path, export: str) -> Path:
    attacher = NbdFuse()
    device = attacher.attach(str(socket.absolute()), export, place.folder / "device")
    place.stack.callback(attacher.detach, device)
    return _mount(place, device.path)


def _mount(place: BenchSite, device: str) -> Path:
    return place.stack.enter_context(
        mounted(place.folder / "image", "-t", "ext4", "-o", "ro,noload,nodev,nosuid,errors=remount-ro", device)
    )
