"""The command `blockmap images`."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

import click
from rich.table import Table

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.version import Version
from blockmap.publish.parallel import gather
from blockmap.store.base import Reader
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.terminal.options import need_store, store_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.units import size
from blockmap.upkeep.verify import usage


@dataclass(frozen=True, slots=True)
class _Image:
    """What a name stands for."""

    name: str
    entry: Entry
    version: Version
    data_bytes: int | None
    """None where it was not asked for."""


@click.command()
@store_option
@click.option("--data", is_flag=True, help="Show how much data each has, too; reads its tree, which may take a while.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def images(store: str | None, data: bool, as_json: bool) -> None:
    """List the images in the store."""
    opened, _ = open_store(need_store(store))
    found = _listed(opened, data)
    if as_json:
        tell(json.dumps([_row(image) for image in found]))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("NAME", overflow="fold")
    for title in ("DIGEST", "MOVED", *(["DATA"] if data else []), "VOLUME"):
        table.add_column(title, justify="right" if title in ("DATA", "VOLUME") else "left", no_wrap=True)
    for image in found:
        moved = datetime.fromtimestamp(image.entry.time, UTC).strftime("%Y-%m-%d %H:%M")
        took = [] if image.data_bytes is None else [size(image.data_bytes)]
        volume = size(image.version.root.size * BLOCK)
        table.add_row(*cells(image.name, image.version.name.hex()[:12], moved, *took, volume))
    tell_table(table)


def _listed(store: Reader, want_data: bool) -> list[_Image]:
    """Returns what names stand for, 16 asked for at once; what cannot be read is left out, and said."""
    reader, repository = NameReader(store), Repository(store)
    names = sorted(reader.catalogue().items())
    entries = gather(lambda name: reader.entry(*name[0], name[1])[0], names)
    versions = {
        entry.version: entry.number for entry in entries if isinstance(entry, Entry) and entry.version is not None
    }

    def read(at: tuple[Digest, int]) -> tuple[Version, int | None]:
        version = repository.version(*at)
        return version, usage(repository, version.root).data_bytes if want_data else None

    about = dict(zip(versions, gather(read, versions.items()), strict=True))
    images = []
    for ((repo, tag), _), entry in zip(names, entries, strict=True):
        found = entry if isinstance(entry, BlockmapError) else entry.version and about[entry.version]
        if isinstance(found, BlockmapError):
            warn(f"{repo}:{tag}: {found}")
        elif isinstance(entry, Entry) and found:
            images.append(_Image(f"{repo}:{tag}", entry, *found))
    return images


def _row(image: _Image) -> dict[str, object]:
    return {
        "name": image.name,
        "digest": image.version.name.hex(),
        "entry": image.entry.n,
        "time": image.entry.time,
        "volume_bytes": image.version.root.size * BLOCK,
        "data_bytes": image.data_bytes,
    }
