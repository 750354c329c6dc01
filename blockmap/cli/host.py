"""Commands that do something on this host: attach, detach, run.

What they import is time that every start waits for: the store's engines only where a server has to be started.
"""

from pathlib import Path

import click

from blockmap.api.host import Host
from blockmap.cli.opened import opened
from blockmap.errors import UsageError
from blockmap.host.run.runner import is_terminal
from blockmap.terminal.durations import Duration
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


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.option("--clone", is_flag=True, help="NAME is a clone: the program runs on it, and what it writes stays there.")
@click.option(
    "--every",
    type=Duration(),
    help="Make a version of the --clone so often while the program runs, and one at its end.",
)
@click.option("--to", metavar="NAME", help="What the versions of --every are called.")
@click.option("-m", "--message", default="", metavar="TEXT", help="Why, for the versions of --every.")
@click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's; its arguments follow --.")
@label_option
@hydrate_option
@store_option
@trust_option
@cache_option
@socket_option
def run(
    name: str,
    command: tuple[str, ...],
    clone: bool,
    every: float | None,
    to: str | None,
    message: str,
    entrypoint: str | None,
    label: str | None,
    hydrate: bool | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Run the program of the image NAME on the host's network; what it writes goes with it, unless it runs on a --clone.

    With --every 10s --to NAME, NAME is made to stand for what the clone is, every so often, unless nothing was written.

    As with docker run, CMD takes the place of the image's Cmd, after its Entrypoint. The exit status is the program's; 127
    where it is not in the image, and 126 where it cannot be executed.
    """
    program, arguments = labelled(name, label), words(command)
    if every is None and to is None:
        host = opened(Host, store, cache, socket, trust)
        status = host.run(
            program, arguments, clone=clone, entrypoint=entrypoint, hydrate=hydrate, terminal=is_terminal()
        )
    elif every is None or to is None or not clone:
        raise UsageError("--every and --to go together, and with --clone: versions are made of a clone")
    else:
        from blockmap.api.clones import CloneHost  # imported here: other runs do without

        clones = opened(CloneHost, store, cache, socket, trust)
        status = clones.run_versions(
            program,
            arguments,
            to=to,
            every_seconds=every,
            message=message,
            entrypoint=entrypoint,
            terminal=is_terminal(),
        )
    click.get_current_context().exit(status)


def words(command: tuple[str, ...]) -> list[str]:
    """Returns the program's arguments: what follows NAME, options and all; the first -- only says so once more."""
    return list(command[1:] if command[:1] == ("--",) else command)
