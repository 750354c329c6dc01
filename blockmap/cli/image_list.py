"""The command `blockmap images`."""

import json
from dataclasses import asdict

import click
from rich.table import Table

from blockmap.api.store import ImageStore
from blockmap.cli.opened import opened
from blockmap.terminal.options import json_option, need_store, store_option, trust_option
from blockmap.terminal.output import tell
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.times import moment
from blockmap.terminal.units import size


@click.command()
@store_option
@trust_option
@click.option("--data", is_flag=True, help="Show how much data each has, too; reads its tree, which may take a while.")
@json_option
def images(store: str | None, trust: tuple[str, ...], data: bool, as_json: bool) -> None:
    """List the images in the store, and which keys signed them.

    With --trust, signatures are checked, and images that are not opened for lack of one are listed as refused.
    """
    found = opened(ImageStore, need_store(store), trust=trust).images(data=data)
    if as_json:
        tell(json.dumps([{**asdict(image), "digest": image.digest.removeprefix("sha256:")} for image in found]))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("NAME", overflow="fold")
    for title in ("DIGEST", "MOVED", *(["DATA"] if data else []), "VOLUME"):
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
