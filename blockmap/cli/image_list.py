"""The command `blockmap images`."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from blockmap.api.images import NamedImage
from blockmap.api.store import ImageStore
from blockmap.cli.opened import opened
from blockmap.control.client import Client
from blockmap.control.messages import Images
from blockmap.errors import HostError, NoServer, StoreError
from blockmap.local.paths import server_socket
from blockmap.store.opening import location
from blockmap.terminal.machine import tell_json, timestamp
from blockmap.terminal.options import cache_option, json_option, need_store, socket_option, store_option, trust_option
from blockmap.terminal.output import tell
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.times import ago
from blockmap.terminal.units import size

_SHORT_DIGITS = 12


@click.command()
@click.argument("repo", required=False)
@store_option
@trust_option
@cache_option
@socket_option
@click.option(
    "--data",
    is_flag=True,
    help="Show how much data each has, too, what it takes in the store, and what of that no other image shares. Reads the trees "
    "that this host has not seen yet, which may take a while.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print names alone, one a line.")
@click.option("--no-trunc", is_flag=True, help="Show digests whole.")
@json_option
def images(
    repo: str | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
    data: bool,
    quiet: bool,
    no_trunc: bool,
    as_json: bool,
) -> None:
    """List the images in the store, or those of REPO.

    It says which keys signed them.

    With --trust, signatures are checked, and images that are not opened for lack of one are listed as refused. Where no store is
    named, or this user may not read it, the server lists it.
    """
    found = _listed(repo, store, trust, cache, socket or server_socket(), data)
    if as_json:
        tell_json([{**asdict(image), "time": timestamp(image.time)} for image in found])
    elif quiet:
        for image in found:
            tell(image.name)
    else:
        tell_table(_table(found, data, bool(trust), no_trunc))


def _table(found: Sequence[NamedImage], data: bool, trusts: bool, no_trunc: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("NAME", overflow="fold")
    for title in ("DIGEST", "UPDATED"):
        table.add_column(title, no_wrap=True)
    for title in (*(["DATA", "STORED", "UNIQUE"] if data else []), "VOLUME"):
        table.add_column(title, justify="right", no_wrap=True)
    signed = trusts or any(image.signed_with for image in found)
    if signed:
        table.add_column("SIGNED WITH", no_wrap=True)
    now = time.time()
    for image in found:
        digest = image.digest if no_trunc else image.digest.removeprefix("sha256:")[:_SHORT_DIGITS]
        took = (image.data_bytes, image.stored_bytes, image.unique_bytes) if data else ()
        sizes = ["-" if count is None else size(count) for count in took]
        key = [f"{image.signed_with or '-'}{', refused' if image.refused else ''}"] if signed else []
        table.add_row(*cells(image.name, digest, ago(image.time, now), *sizes, size(image.volume_bytes), *key))
    return table


def _listed(
    repo: str | None, store: str | None, trust: tuple[str, ...], cache: Path | None, socket: Path, data: bool
) -> Sequence[NamedImage]:
    """Lists the store, or has the server do so on behalf of a user who names none, or may not read it."""
    server = Client(socket.absolute())
    if not store and not trust:
        with suppress(NoServer):  # then a store must be named
            return _told(server, repo, data)
    try:
        return opened(ImageStore, need_store(store), cache, trust=trust).images(repo, data=data)
    except StoreError:
        if store and not trust:
            with suppress(HostError):
                if server.status()["store"] == location(store):
                    return _told(server, repo, data)
        raise


def _told(server: Client, repo: str | None, data: bool) -> Sequence[NamedImage]:
    listed = [NamedImage(**each) for each in server.ask(Images(data)).images]
    return [each for each in listed if repo in (None, each.name, each.name.rpartition(":")[0])]
