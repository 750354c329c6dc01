"""Commands about this host: serve, attach, detach, run, status."""

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from blockmap.cli.options import cache_option, need_store, socket_option, store_option
from blockmap.cli.units import size
from blockmap.errors import HostError
from blockmap.host import runner, tools
from blockmap.host.attachments import Attachments
from blockmap.host.control import Client
from blockmap.host.nbdfuse import NbdFuse
from blockmap.host.paths import default_cache, default_socket, default_state
from blockmap.host.supervisor import Supervisor, spawn
from blockmap.store.opening import location, open_store

_IDLE_SECONDS = 60.0
_WIDE = 1000


@click.command()
@store_option
@cache_option
@socket_option
@click.option("--listen", metavar="HOST:PORT", help="Also serve on TCP, without authentication.")
@click.option(
    "--cache-size",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="Of the cache; 20 GB or a quarter of the free disk by default.",
)
@click.option("--idle-exit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", hidden=True)
def serve(
    store: str | None,
    cache: Path | None,
    socket: Path | None,
    listen: str | None,
    cache_size: int | None,
    idle_exit: float | None,
) -> None:
    """Serve every image of the store over NBD."""
    url = location(need_store(store))
    open_store(url)
    where = (socket or default_socket()).absolute()
    Supervisor(url, (cache or default_cache()).absolute(), cache_size, where, listen, idle_exit, _log).run()


@click.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@store_option
@cache_option
@socket_option
def attach(name: str, directory: Path, store: str | None, cache: Path | None, socket: Path | None) -> None:
    """Mount the image NAME read-only at DIR."""
    tools.need_root("attach")
    client = _server(store, cache, socket)
    export = str(client.request("resolve", export=name)["export"])
    _attachments().attach(client.nbd_socket, export, name, directory)
    click.echo(f"{export} is at {directory}")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def detach(directory: Path) -> None:
    """Unmount what is attached at DIR."""
    _attachments().detach(directory)


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's; its arguments follow --.")
@store_option
@cache_option
@socket_option
def run(
    name: str,
    command: tuple[str, ...],
    entrypoint: str | None,
    store: str | None,
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Run the program of the image NAME on the host's network; what it writes goes with it.

    As with docker run, CMD takes the place of the image's Cmd, after its Entrypoint. The exit status is the program's.
    """
    tools.need_root("run")
    client = _server(store, cache, socket)
    # What follows NAME is the program's, options and all; the first -- only says so once more.
    words = list(command[1:] if command[:1] == ("--",) else command)
    sys.exit(runner.run(client, _attachments(), _state(), name, words, entrypoint, runner.is_terminal()))


@click.command()
@socket_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(socket: Path | None, as_json: bool) -> None:
    """Show what the server does, and what is attached."""
    answer = Client((socket or default_socket()).absolute()).request("status")
    if as_json:
        click.echo(json.dumps(answer))
        return
    _tell(answer)


def _tell(answer: dict[str, Any]) -> None:
    fetch, cache = answer["fetch"], answer["cache"]
    click.echo(f"server    process {answer['pid']}, up {answer['seconds']:.0f} s, store {answer['store']}")
    click.echo(
        f"cache     {size(cache['bytes'])} of {size(cache['cap_bytes'])}, {cache['slots']:,} chunks and nodes, "
        f"{cache['evicted']:,} evicted, {cache['bad']:,} found damaged"
    )
    click.echo(
        f"fetched   {size(fetch['bytes'])} in {fetch['requests']:,} requests, {fetch['chunks']:,} chunks, "
        f"{fetch['damaged']:,} damaged on arrival, {fetch['failed']:,} failed"
    )
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE  # what a program reads is not cut to fit a window
    table = Table("EXPORT", "SIZE", "CONNECTIONS", box=None, pad_edge=False)
    for export in answer["exports"]:
        repo, mark, digest = export["export"].partition("@sha256:")
        table.add_row(f"{repo}{mark}{digest[:12]}", size(export["size"]), str(export["connections"]))
    if answer["exports"]:
        console.print(table)
    mounts = Table("ATTACHED AT", "NAME", "DEVICE", box=None, pad_edge=False)
    try:
        attached = _attachments().list()
    except HostError:
        attached = []
    for each in attached:
        mounts.add_row(each.directory, each.name, each.device)
    if attached:
        console.print(mounts)


def _server(store: str | None, cache: Path | None, socket: Path | None) -> Client:
    """The server that answers, else one that is started for as long as it is needed."""
    where = (socket or default_socket()).absolute()
    client = Client(where)
    if client.answers():
        _check_store(client, store)
    else:
        url = location(need_store(store))
        open_store(url)
        spawn(url, (cache or default_cache()).absolute(), where, _IDLE_SECONDS)
    return client


def _check_store(client: Client, store: str | None) -> None:
    """HostError where the server that answers serves another store than the one that was asked for."""
    served = str(client.request("status")["store"])
    if store and (asked := location(store)) != served:
        raise HostError(
            f"the server at {client.nbd_socket} serves {served}, not {asked}: name another server with --socket, which is "
            "started if need be"
        )


def _attachments() -> Attachments:
    return Attachments(_state(), NbdFuse(), lambda text: click.echo(f"blockmap: {text}", err=True))


def _state() -> Path:
    return Path(os.environ.get("BLOCKMAP_STATE") or default_state())


def _log(text: str) -> None:
    click.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", err=True)


commands = [serve, attach, detach, run, status]
