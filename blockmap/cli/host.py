"""Commands that attach on this host: attach, detach.

What they import is time that every start waits for: the store's engines only where a server has to be started.
"""

from pathlib import Path

import click

from blockmap.api.host import Host
from blockmap.cli.opened import opened
from blockmap.errors import UsageError
from blockmap.terminal.options import (
    cache_option,
    hydrate_option,
    label_option,
    labelled,
    socket_option,
    store_option,
    trust_option,
)
from blockmap.terminal.output import tell

_WAYS = {"nbd": "by the kernel's nbd", "nbdfuse": "by nbdfuse: the kernel has no nbd"}


@click.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path), metavar="[DIR]", required=False)
@click.option("--device", is_flag=True, help="Make a block device alone, and print its path; it is not mounted.")
@click.option("--follow", is_flag=True, help="Mount the newest version in its place whenever NAME has moved.")
@label_option
@hydrate_option
@store_option
@trust_option
@cache_option
@socket_option
def attach(
    name: str,
    directory: Path | None,
    device: bool,
    follow: bool,
    label: str | None,
    hydrate: bool | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Mount the image NAME read-only at DIR, or the clone NAME writable; or make a --device of it.

    The device is the kernel's nbd, which survives the server, or nbdfuse's where the kernel has none. With --socket HOST:PORT it
    shows an image or a clone of a server on another host.

    With a label, a program is about to start from it: what that reads is learnt for all hosts. With --follow, files that are
    open stay what they were when the image is replaced; detach ends it.
    """
    host = opened(Host, store, cache, socket, trust)
    if device:
        if directory is not None or follow or hydrate is not None:
            raise UsageError("--device goes without DIR, --follow and --hydrate: nothing is mounted")
        tell(host.attach_device(labelled(name, label))[1])
        return
    if directory is None:
        raise UsageError("name the directory to mount at, or add --device for a device alone")
    export = host.attach(labelled(name, label), directory, hydrate=hydrate, follow=follow)
    tell(f"{export} is at {directory} ({_WAYS[host.attachments.kind]})")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def detach(directory: Path) -> None:
    """Unmount what is attached at DIR, which may be the path of an attached device."""
    opened(Host).detach(directory)
