"""The command `blockmap images`."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

import click
from rich.table import Table

from blockmap.errors import BlockmapError, Untrusted
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.version import Version
from blockmap.publish.parallel import gather
from blockmap.store.base import Reader
from blockmap.store.key_files import read_trusted
from blockmap.store.names import StoredEntry
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.signing import Trust
from blockmap.store.trusted_names import TrustedNames
from blockmap.terminal.options import json_option, need_store, store_option, trust_option
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
    refusal: str | None
    """Why it is not opened with the keys that are trusted."""

    @property
    def signer(self) -> str | None:
        """Returns the id of the key that the entry says it is signed with."""
        signature = self.entry.signature
        return None if signature is None else signature.key


@click.command()
@store_option
@trust_option
@click.option("--data", is_flag=True, help="Show how much data each has, too; reads its tree, which may take a while.")
@json_option
def images(store: str | None, trust: tuple[str, ...], data: bool, as_json: bool) -> None:
    """List the images in the store, and which keys signed them.

    With --trust, signatures are checked, and images that are not opened for lack of one are listed as refused.
    """
    trusted = Trust(read_trusted(trust))
    opened, _ = open_store(need_store(store))
    found = _listed(opened, trusted, data)
    if as_json:
        tell(json.dumps([_row(image) for image in found]))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("NAME", overflow="fold")
    for title in ("DIGEST", "MOVED", *(["DATA"] if data else []), "VOLUME"):
        table.add_column(title, justify="right" if title in ("DATA", "VOLUME") else "left", no_wrap=True)
    signed = bool(trusted) or any(image.signer for image in found)
    if signed:
        table.add_column("SIGNED WITH", no_wrap=True)
    for image in found:
        moved = datetime.fromtimestamp(image.entry.time, UTC).strftime("%Y-%m-%d %H:%M")
        took = [] if image.data_bytes is None else [size(image.data_bytes)]
        volume = size(image.version.root.size * BLOCK)
        key = [f"{image.signer or '-'}{', refused' if image.refusal else ''}"] if signed else []
        table.add_row(*cells(image.name, image.version.name.hex()[:12], moved, *took, volume, *key))
    tell_table(table)


def _listed(store: Reader, trust: Trust, want_data: bool) -> list[_Image]:
    """Returns what names stand for, 16 asked for at once; what cannot be read is left out, and said."""
    reader, repository, trusted = TrustedNames(store, trust), Repository(store), Repository(store, trust)
    names = sorted(reader.catalogue().items())

    def find(name: tuple[tuple[str, str], int]) -> tuple[Entry | None, str | None]:
        (repo, tag), n = name
        newest = StoredEntry(*reader.entry(repo, tag, n))
        try:
            valid = reader.judge(repo, tag, newest)
            return (None if valid is None else valid.entry), None
        except Untrusted as error:
            return newest.entry, str(error)

    entries = gather(find, names)
    versions = {
        (each[0].version, each[0].number)
        for each in entries
        if not isinstance(each, BlockmapError) and each[0] is not None and each[0].version is not None
    }

    def read(at: tuple[Digest, int]) -> tuple[Version, int | None, str | None]:
        refusal = None
        try:
            version = trusted.version(*at)
        except Untrusted as error:
            version, refusal = repository.version(*at), str(error)
        return version, usage(repository, version.root).data_bytes if want_data else None, refusal

    about = dict(zip(versions, gather(read, versions), strict=True))
    images = []
    for ((repo, tag), _), each in zip(names, entries, strict=True):
        if isinstance(each, BlockmapError):
            warn(f"{repo}:{tag}: {each}")
            continue
        entry, refusal = each
        if entry is None or entry.version is None:
            continue
        found = about[entry.version, entry.number]
        if isinstance(found, BlockmapError):
            warn(f"{repo}:{tag}: {found}")
        else:
            images.append(_Image(f"{repo}:{tag}", entry, *found[:2], refusal or found[2]))
    return images


def _row(image: _Image) -> dict[str, object]:
    return {
        "name": image.name,
        "digest": image.version.name.hex(),
        "entry": image.entry.n,
        "time": image.entry.time,
        "volume_bytes": image.version.root.size * BLOCK,
        "data_bytes": image.data_bytes,
        "signed_with": image.signer,
        "refused": image.refusal,
    }
