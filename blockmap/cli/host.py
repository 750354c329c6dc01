"""Commands that do something on this host: serve, attach, detach, run."""

import sys
from datetime import datetime
from pathlib import Path

import click

from blockmap.cli.attached import attachments, state
from blockmap.cli.options import cache_option, need_store, socket_option, store_option
from blockmap.errors import HostError
from blockmap.fetch.known import open_served
from blockmap.fetch.patience import parse_option
from blockmap.host import runner, tools
from blockmap.host.control import Client
from blockmap.host.paths import default_cache, default_socket
from blockmap.host.supervisor import Supervisor, spawn
from blockmap.store.opening import location
from blockmap.volume.opener import ANSWER_SECONDS

_IDLE_SECONDS = 60.0


@click.command()
@store_option
@cache_option
@socket_option
@click.option("--listen", metavar="HOST:PORT", help="Also serve on TCP, without authentication.")
@click.option("--metrics", metavar="PATH|HOST:PORT", help="Also answer Prometheus, on a Unix socket or TCP.")
@click.option(
    "--cache-size",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="Of the cache; 20 GB or a quarter of the free disk by default.",
)
@click.option(
    "--outage",
    "outages",
    multiple=True,
    metavar="[EXPORT=]wait=SECONDS|fail",
    help="While the store is away, reads that need it wait, then fail, or fail at once; wait=60 by default. Once for all "
    "exports, and once for each that differs.",
)
@click.option("--idle-exit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", hidden=True)
def serve(
    store: str | None,
    cache: Path | None,
    socket: Path | None,
    listen: str | None,
    metrics: str | None,
    cache_size: int | None,
    outages: tuple[str, ...],
    idle_exit: float | None,
) -> None:
    """Serve every image of the store over NBD."""
    for each in outages:
        parse_option(each)
    url = location(need_store(store))
    directory = (cache or default_cache()).absolute()
    open_served(url, directory, ANSWER_SECONDS)
    where = (socket or default_socket()).absolute()
    Supervisor(url, directory, cache_size, outages, where, listen, idle_exit, _log, metrics).run()


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
    attachments().attach(client, export, name, directory)
    click.echo(f"{export} is at {directory}")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def detach(directory: Path) -> None:
    """Unmount what is attached at DIR."""
    attachments().detach(directory)


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
    sys.exit(runner.run(client, attachments(), state(), name, words, entrypoint, runner.is_terminal()))


def _server(store: str | None, cache: Path | None, socket: Path | None) -> Client:
    """The server that answers, else one that is started for as long as it is needed."""
    where = (socket or default_socket()).absolute()
    client = Client(where)
    if client.answers():
        _check_store(client, store)
    else:
        url = location(need_store(store))
        directory = (cache or default_cache()).absolute()
        open_served(url, directory, ANSWER_SECONDS)
        spawn(url, directory, where, _IDLE_SECONDS)
    return client


def _check_store(client: Client, store: str | None) -> None:
    """HostError where the server that answers serves another store than the one that was asked for."""
    served = str(client.request("status")["store"])
    if store and (asked := location(store)) != served:
        raise HostError(
            f"the server at {client.nbd_socket} serves {served}, not {asked}: name another server with --socket, which is "
            "started if need be"
        )


def _log(text: str) -> None:
    click.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", err=True)


commands = [serve, attach, detach, run]
