"""Commands that attach on this host: attach, detach.

What they import is time that every start waits for: the store's engines only where a server has to be started.
"""

from pathlib import Path

import click

from blockmap.api.host import Host
from blockmap.cli.opened import opened
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
