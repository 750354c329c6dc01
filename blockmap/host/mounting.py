"""Brings a start from an export to a mounted image, with the kernel warmed for it: for `attach`, `run` and benchmarks."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from blockmap.control.client import Client
from blockmap.control.messages import Expect
from blockmap.errors import BlockmapError, HostError
from blockmap.host.devices import mounts
from blockmap.host.devices.device import Attacher, Device, set_read_ahead
from blockmap.host.remote import RemoteServer, Server
from blockmap.host.warm import warming


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
    where: Path | str,
    *,
    exact: bool,
    writable: bool = False,
) -> None:
    """Mounts the image on a new device, and meanwhile begins to warm the kernel with what its starts read.

    With `exact`, the kernel is not warmed, and never reads ahead. A remote server says nothing to warm it with. `folder` is the
    device's. HostError.
    """
    if exact or isinstance(client, RemoteServer):
        if exact:
            set_read_ahead(device.path, 0)
        mount_device(attacher, device, where, writable=writable)
        return
    begun = warming.begin(client, export, device.path, folder)
    try:
        mount_device(attacher, device, where, writable=writable)
    except BaseException:
        begun.give_up()
        warming.end(folder, device.path)
        raise
    begun.go_on(where)


def mount_device(attacher: Attacher, device: Device, where: Path | str, *, writable: bool = False) -> None:
    """Mounts the ext4 of a device, read-only unless `writable`; HostError."""
    try:
        _mount(device.path, where, writable)
    except HostError as error:
        # A disk image may have an ext4 with blocks of 1 KiB, as mke2fs makes small ones.
        small = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL
        if not small or not attacher.use_small_sectors(device):
            raise
        _mount(device.path, where, writable)


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
        mount(attacher, client, export, device, folder, where, exact=False)
        stack.callback(mounts.unmount, where)
        stack.callback(warming.end, folder, device.path)
        yield device


def _mount(device: str, where: Path | str, writable: bool) -> None:
    # noload: an import leaves the journal empty, and nothing can be written to the device anyway. errors=: the image's own
    # superblock may ask for a panic where it is damaged.
    if writable:
        mounts.mount(device, where, "ext4", mounts.UNTRUSTED, "errors=remount-ro")
    else:
        mounts.mount(device, where, "ext4", mounts.READ_ONLY | mounts.UNTRUSTED, "noload,errors=remount-ro")
