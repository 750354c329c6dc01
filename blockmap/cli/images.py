"""Commands about one image in the store, or a new store: create, show, verify."""

import json

import click

from blockmap.errors import Corrupt, ImageError, NotFound, StoreError, StoreReadOnly, UsageError
from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.format import BLOCK
from blockmap.format.refs import parse_reference
from blockmap.format.version import Version
from blockmap.image.compare import compare
from blockmap.image.disk_image import DiskSource
from blockmap.image.importer import Importer
from blockmap.image.layer import config_chains
from blockmap.image.sources import open_source
from blockmap.local.scratch import scratch
from blockmap.store.base import Reader, Writer
from blockmap.store.key_files import read_trusted
from blockmap.store.opening import create_store, open_store, open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import Resolved, find_version
from blockmap.store.signing import Trust
from blockmap.store.volume_reader import stored_reader
from blockmap.terminal.machine import digest, tell_json
from blockmap.terminal.options import json_option, max_size_option, need_store, store_option, trust_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.units import size
from blockmap.upkeep.derived import check_derived
from blockmap.upkeep.reach import Fault
from blockmap.upkeep.verify import Usage, check_version, record_faults, usage


@click.command()
@click.argument("url", required=False)
@store_option
@click.option("--if-absent", is_flag=True, help="Do nothing where there is a store already.")
@json_option
def create(url: str | None, store: str | None, if_absent: bool, as_json: bool) -> None:
    """Make a store in URL, else in --store.

    That is a directory, or a prefix in a bucket that exists, where nothing is yet. With --if-absent, the exit status is 0 as well
    where this release can use the store that is there.
    """
    where, is_new = need_store(url or store), True
    try:
        made, form = create_store(where)
    except UsageError:
        if not if_absent:
            raise
        (made, form), is_new = open_writer(where), False
    if as_json:
        tell_json({"store": form.store, "url": made.url, "created": is_new})
    else:
        tell(f"made store {form.store} in {made.url}" if is_new else f"{made.url} has store {form.store} already")


@click.command()
@click.argument("name")
@store_option
@trust_option
@click.option("--files", is_flag=True, help="List the files, with their sizes and the blocks that they take.")
@json_option
def show(name: str, store: str | None, trust: tuple[str, ...], files: bool, as_json: bool) -> None:
    """Show what NAME is, or its files.

    That is its configuration, size, digests, and how much of it other images share.
    """
    trusted = Trust(read_trusted(trust))
    opened, _ = open_store(need_store(store))
    repository = Repository(opened, trusted)
    found = find_version(repository, parse_reference(name))
    version = found.version
    if files:
        listed = repository.file_map(version.root.digest)
        if as_json:
            tell_json([{"path": f"/{_path(file.path)}", "bytes": file.size, "blocks": file.blocks} for file in listed])
            return
        for file in listed:
            blocks = file.blocks
            tell(f"{file.size:>12,} {blocks:>8,}  /{_path(file.path)}")
        return
    took, hidden = usage(repository, version.root), usage(repository, version.extra)
    if as_json:
        tell_json(_about(found, took, hidden))
        return
    tell(f"export      {found.pinned}")
    tell(f"root        {digest(version.root.digest)}")
    tell(f"data        {size(took.data_bytes)}, in a volume of {size(version.root.size * BLOCK)} (sparse)")
    tell(
        f"chunks      {took.chunks:,} in {took.packs:,} packs, {size(took.chunk_bytes)} before compression, "
        f"{size(took.stored_bytes)} stored"
    )
    tell(f"dedup       {took.data_bytes / max(took.chunk_bytes, 1):.2f} within the image")
    tell(f"hidden      {size(hidden.data_bytes)} that upper layers replace or remove")
    tell(f"created     {version.created or '-'}")
    if version.signature is not None:
        tell(f"signed      with key {version.signature.key}{'' if trusted else ', not checked without --trust'}")
    if version.config is not None:
        tell("config", *_own_config(version.config))


def _about(found: Resolved, took: Usage, hidden: Usage) -> dict[str, object]:
    version = found.version
    try:
        config = None if version.config is None else json.loads(version.config)
    except (ValueError, RecursionError):
        config = None
    return {
        "export": found.pinned,
        "digest": digest(found.name),
        "root": digest(version.root.digest),
        "volume_bytes": version.root.size * BLOCK,
        "data_bytes": took.data_bytes,
        "chunks": took.chunks,
        "packs": took.packs,
        "chunk_bytes": took.chunk_bytes,
        "stored_bytes": took.stored_bytes,
        "hidden_bytes": hidden.data_bytes,
        "created": version.created or None,
        "signed_with": None if version.signature is None else version.signature.key,
        "config": config,
    }


def _path(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _own_config(document: bytes) -> list[str]:
    """Returns the lines that show what an image's configuration says of its program."""
    try:
        return json.dumps(json.loads(document).get("config", {}), indent=2).split("\n")
    except (ValueError, AttributeError, RecursionError) as error:
        return [f"  is damaged: {error}"]


@click.command()
@click.argument("name")
@store_option
@trust_option
@click.option("--against", metavar="SOURCE", help="Also compare file by file with this image.")
@click.option(
    "--heal", metavar="SOURCE", help="Store again what is damaged or lost, from the image that NAME was made of."
)
@click.option("--platform", metavar="OS/ARCH", help="Which image of SOURCE's index.")
@max_size_option
@json_option
def verify(
    name: str,
    store: str | None,
    trust: tuple[str, ...],
    against: str | None,
    heal: str | None,
    platform: str | None,
    max_size: float,
    as_json: bool,
) -> None:
    """Read all that NAME consists of, and check its digests.

    Damage is recorded in the store, so that no import relies on what is damaged.
    """
    trusted = Trust(read_trusted(trust))
    opened, _ = open_store(need_store(store))
    repository = Repository(opened, trusted)
    found = find_version(repository, parse_reference(name))
    faults = _faults(repository, found.version)
    if faults:
        _record(opened, faults)
    if faults and heal is not None:
        heal_from(opened.url, heal, platform, max_size)
        faults = _faults(repository, found.version)
        if faults:
            _tell_damage(found, faults, as_json)
            raise Corrupt(
                f"{name} is still damaged in {len(faults)} places: {heal} is not the image that it was made of"
            )
    if faults:
        _tell_damage(found, faults, as_json)
        raise Corrupt(
            f"{name} is damaged in {len(faults)} places: import the image again, or `blockmap verify {name} --heal SOURCE`, "
            "which store again what the source has of it"
        )
    for wrong in check_derived(opened, found.name, found.version, config_chains(found.version.config)):
        warn(wrong.message)
    took = usage(repository, found.version.root)
    about = {"export": found.pinned, "chunks": took.chunks, "data_bytes": took.data_bytes, "faults": []}
    if not as_json:
        tell(f"{found.pinned}: {took.chunks:,} chunks, {size(took.data_bytes)} of data, all as their digests say")
    if against is None:
        if as_json:
            tell_json({**about, "differences": None})
        return
    with scratch("verify") as work:
        source = open_source(against, platform=platform, work=work, most=int(max_size * (1 << 30)))
        try:
            if isinstance(source, DiskSource):
                raise UsageError(
                    f"{against} is a disk image: files can be compared with a container image or a directory"
                )
            source.need(0)
            differences = compare(Ext4Reader(stored_reader(repository, found.version.root)), source)
        finally:
            source.close()
    for difference in differences[:100]:
        warn(str(difference))
    if as_json:
        tell_json({**about, "differences": list(map(str, differences))})
    if differences:
        raise ImageError(f"{name} differs from {against} in {len(differences)} places")
    if as_json:
        return
    try:
        count = len(repository.file_map(found.version.root.digest))
    except (NotFound, Corrupt):
        count = 0
    tell(f"the same as {against}, file by file ({count:,} regular files)")


def _tell_damage(found: Resolved, faults: list[Fault], as_json: bool) -> None:
    if as_json:
        tell_json({"export": found.pinned, "faults": [fault.message for fault in faults]})


def _faults(repository: Repository, version: Version) -> list[Fault]:
    faults = []
    for fault in check_version(repository, version):
        faults.append(fault)
        warn(fault.message)
    return faults


def _record(store: Reader, faults: list[Fault]) -> None:
    try:
        if not isinstance(store, Writer):
            raise StoreReadOnly("it is read through a web server")
        record_faults(store, faults)
    except StoreError as error:
        warn(f"the store keeps no record of this damage: {error}")


def heal_from(store: str, source: str, platform: str | None, max_size: float) -> None:
    """Stores again what a store has lost of an image."""
    with scratch("heal") as work:
        found = open_source(source, platform=platform, work=work, warn=warn, most=int(max_size * (1 << 30)))
        try:
            opened, form = open_writer(store)
            Importer(opened, form, warn).heal(found)
        finally:
            found.close()
