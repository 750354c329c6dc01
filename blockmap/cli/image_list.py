"""The command `blockmap images`."""

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
from blockmap.terminal.options import json_option, need_store, socket_option, store_option, trust_option
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.times import moment
from blockmap.terminal.units import size


@click.command()
@store_option
@trust_option
@socket_option
@click.option("--data", is_flag=True, help="Show how much data each has, too; reads its tree, which may take a while.")
@json_option
def images(store: str | None, trust: tuple[str, ...], socket: Path | None, data: bool, as_json: bool) -> None:
    """List the images in the store, and which keys signed them.

    With --trust, signatures are checked, and images that are not opened for lack of one are listed as refused. Where no store is
    named, or this user may not read it, the server lists it.
    """
    found = _listed(store, trust, socket or server_socket(), data)
    if as_json:
        tell_json([{**asdict(image), "time": timestamp(image.time)} for image in found])
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("NAME", overflow="fold")
    for title in ("DIGEST", "UPDATED", *(["DATA"] if data else []), "VOLUME"):
        table.add_column(title, justify="right" if title in ("DATA", "VOLUME") else "left", no_wrap=True)
    signed = bool(trust) or any(image.signed_with for image in found)
    if signed:
        table.add_column("SIGNED WITH", no_wrap=True)
    for image in found:
        took = [] if image.data_bytes is None else [size(image.data_bytes)]
        key = [f"{image.signed_with or '-'}{', refused' if image.refused else ''}"] if signed else []
        digest = image.digest.removeprefix("sha256:")[:12]
        table.add_row(*cells(image.name, digest, moment(image.time), *took, size(image.volume_bytes), *key))
    tell_table(table)


def _listed(store: str | None, trust: tuple[str, ...], socket: Path, data: bool) -> Sequence[NamedImage]:
    """Lists the store, or has the server do so on behalf of a user who names none, or may not read it."""
    server = Client(socket.absolute())
    if not store and not trust:
        try:
            return _told(server, data)
        except NoServer:
            pass  # then a store must be named
    try:
        return opened(ImageStore, need_store(store), trust=trust).images(data=data)
    except StoreError:
        if store and not trust:
            with suppress(HostError):
                if server.status()["store"] == location(store):
                    return _told(server, data)
        raise


def _told(server: Client, data: bool) -> Sequence[NamedImage]:
    return [NamedImage(**each) for each in server.ask(Images(data)).images]
