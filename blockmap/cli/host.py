"""Commands that do something on this host: attach, detach, run.

What they import is time that every start waits for: the store's engines only where a server has to be started.
"""

from pathlib import Path

import click

from blockmap.api.host import Host
from blockmap.cli.opened import opened
from blockmap.host.run.runner import is_terminal
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


@click.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--follow", is_flag=True, help="Mount the newest version in its place whenever NAME has moved.")
@label_option
@hydrate_option
@store_option
@trust_option
@cache_option
@socket_option
def attach(
    name: str,
    directory: Path,
    follow: bool,
    label: str | None,
    hydrate: bool | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Mount the image NAME read-only at DIR, or the clone NAME writable.

    With a label, a program is about to start from it: what that reads is learnt for all hosts. With --follow, files that are
    open stay what they were when the image is replaced; detach ends it.
    """
    host = opened(Host, store, cache, socket, trust)
    export = host.attach(labelled(name, label), directory, hydrate=hydrate, follow=follow)
    tell(f"{export} is at {directory}")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def detach(directory: Path) -> None:
    """Unmount what is attached at DIR."""
    opened(Host).detach(directory)


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.option("--clone", is_flag=True, help="NAME is a clone: the program runs on it, and what it writes stays there.")
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
    entrypoint: str | None,
    label: str | None,
    hydrate: bool | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Run the program of the image NAME on the host's network; what it writes goes with it, unless it runs on a --clone.

    As with docker run, CMD takes the place of the image's Cmd, after its Entrypoint. The exit status is the program's; 127
    where it is not in the image, and 126 where it cannot be executed.
    """
    host = opened(Host, store, cache, socket, trust)
    status = host.run(
        labelled(name, label),
        words(command),
        clone=clone,
        entrypoint=entrypoint,
        hydrate=hydrate,
        terminal=is_terminal(),
    )
    click.get_current_context().exit(status)


def words(command: tuple[str, ...]) -> list[str]:
    """Returns the program's arguments: what follows NAME, options and all; the first -- only says so once more."""
    return list(command[1:] if command[:1] == ("--",) else command)
