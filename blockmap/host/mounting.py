"""Brings a start from an export to a mounted image, with the kernel warmed for it: for `attach`, `run` and benchmarks."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from blockmap.control.client import Client
from blockmap.control.messages import Expect
from blockmap.errors import BlockmapError, HostError
from blockmap.host.devices import mounts
from blockmap.host.devices.device import Attacher, Device, set_read_ahead
from blockmap.host.devices.namespace import OWN, MountNamespace
from blockmap.host.remote import RemoteServer, Server
from blockmap.host.warm import warming

_MAGIC, _MAGIC_AT = b"\x53\xef", 1024 + 56
"""The magic number of ext4, and where it is in bytes."""


class NoFileSystem(HostError):
    """A device has no ext4, as many a disk image has none."""


def expect(client: Server, export: str, *, exact: bool, start: bool) -> None:
    """Tells the server that a device new to this host is about to open `export`, whether its read-ahead will be 0, and whether
    a program starts from it.

    Best effort: without it the start works, and teaches less.
    """
    if isinstance(client, RemoteServer):
        return
    with contextlib.suppress(BlockmapError):
        client.ask(Expect(export, new=True, exact=exact, start=start))


def mount(
    attacher: Attacher,
    client: Server,
    export: str,
    device: Device,
    folder: Path,
    where: str,
    *,
    exact: bool,
    writable: bool = False,
    namespace: MountNamespace = OWN,
) -> None:
    """Mounts the image on a new device, and meanwhile begins to warm the kernel with what its starts read.

    With `exact`, the kernel is not warmed, and never reads ahead. A remote server says nothing to warm it with. `folder` is the
    device's. HostError.
    """
    if exact or isinstance(client, RemoteServer):
        if exact:
            set_read_ahead(device.path, 0)
        mount_device(attacher, device, where, writable=writable, namespace=namespace)
        return
    begun = warming.begin(client, export, device.path, folder, namespace.descriptors)
    try:
        mount_device(attacher, device, where, writable=writable, namespace=namespace)
    except BaseException:
        begun.give_up()
        warming.end(folder, device.path)
        raise
    begun.go_on(namespace.path(where))


def mount_device(
    attacher: Attacher, device: Device, where: str, *, writable: bool = False, namespace: MountNamespace = OWN
) -> None:
    """Mounts the ext4 of a device, read-only unless `writable`; NoFileSystem, HostError."""
    try:
        _mount(namespace, device.path, where, writable)
    except HostError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
            raise
        if not _has_ext4(device.path):
            raise NoFileSystem(str(error)) from error
        # A disk image may have an ext4 with blocks of 1 KiB, as mke2fs makes small ones.
        if not attacher.use_small_sectors(device):
            raise
        _mount(namespace, device.path, where, writable)


@contextlib.contextmanager
def started(attacher: Attacher, client: Client, export: str, folder: Path, where: Path) -> Iterator[Device]:
    """Mounts an export on a device of its own at `where`, with its files in `folder`; takes both apart at the end.

    No record has such a device, so nobody else takes it apart. HostError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expect(client, export, exact=False, start=True)
    with contextlib.ExitStack() as stack:
        device = attacher.attach(client.address, export, folder)
        stack.callback(attacher.detach, device)
        mount(attacher, client, export, device, folder, str(where), exact=False)
        stack.callback(mounts.unmount, where)
        stack.callback(warming.end, folder, device.path)
        yield device


def _mount(namespace: MountNamespace, device: str, where: str, writable: bool) -> None:
    # noload: an import leaves the journal empty, and nothing can be written to the device anyway. errors=: the image's own
    # superblock may ask for a panic where it is damaged.
    if writable:
        namespace.mount(device, where, "ext4", mounts.UNTRUSTED, "errors=remount-ro")
    else:
        namespace.mount(device, where, "ext4", mounts.READ_ONLY | mounts.UNTRUSTED, "noload,errors=remount-ro")


def _has_ext4(device: str) -> bool:
    """Returns True if a device has an ext4 superblock, however damaged."""
    with open(device, "rb", buffering=0) as file:
        return os.pread(file.fileno(), len(_MAGIC), _MAGIC_AT) == _MAGIC
