"""The commands `blockmap attach` and `blockmap detach`.

What they import is time that every start waits for.
"""

from pathlib import Path

import click

from blockmap.errors import BlockmapError, HostError, UsageError
from blockmap.local.paths import default_state
from blockmap.terminal.options import (
    cache_option,
    hydrate_option,
    json_option,
    label_option,
    labelled,
    socket_option,
    store_option,
    trust_option,
)
from blockmap.terminal.output import tell, warn

_BY_NBDFUSE = ", by nbdfuse: the kernel has no nbd"


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
@json_option
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
    as_json: bool,
) -> None:
    """Mount the image NAME at DIR, or the clone NAME writable.

    The device is the kernel's nbd, which survives the server, or nbdfuse's where the kernel has none; with --device, nothing is
    mounted. With --socket HOST:PORT it shows an image or a clone of a server on another host.

    With a label, a program is about to start from it: what that reads is learnt for all hosts. With --follow, files that are
    open stay what they were when the image is replaced; detach ends it.
    """
    if device and (directory is not None or follow or hydrate is not None):
        raise UsageError("--device goes without DIR, --follow and --hydrate: nothing is mounted")
    if directory is None and not device:
        raise UsageError("name the directory to mount at, or add --device for a device alone")
    # Imported here: help, and what is wrong with the options, need not wait for it.
    from blockmap.api.devices import attach as attached

    answer = attached(
        default_state(), labelled(name, label), directory,
        store=store, cache=cache, socket=socket, trust=trust, hydrate=hydrate, follow=follow,
    )  # fmt: skip
    for note in answer.notes:
        warn(note)
    if as_json:
        from blockmap.terminal.machine import tell_json  # as above

        where = None if directory is None else str(directory.resolve())
        about = {"export": answer.export, "device": answer.device, "kind": answer.kind, "writable": answer.writable}
        tell_json({"name": name, "directory": where, **about})
        return
    if directory is None:
        tell(answer.device)
        return
    how = "writable" if answer.writable else "read-only"
    by = _BY_NBDFUSE if answer.kind == "nbdfuse" else ""
    tell(f"{name} is mounted {how} at {directory} (device {answer.device}{by})")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="[DIR]", required=False)
@click.option("--all", "everything", is_flag=True, help="Instead of DIR: all that is attached on this host.")
def detach(directory: Path | None, everything: bool) -> None:
    """Unmount what is attached at DIR, or detach a device."""
    from blockmap.host.manager.client import Devices

    devices = Devices(default_state())
    if (directory is None) != everything:
        raise UsageError("say what is to be unmounted: DIR, or --all")
    failed = ""
    for each in [directory] if directory is not None else map(Path, devices.directories()):
        try:
            for note in devices.detach(each):
                warn(note)
        except BlockmapError as error:
            if not everything:
                raise
            warn(str(error))
            failed = f"{each} is still attached"
        else:
            if everything:
                tell(f"{each} is unmounted")
    if failed:
        raise HostError(failed)
