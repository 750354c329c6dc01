"""Commands about one image in the store, or a new store: create, import, show, verify."""

import json
from pathlib import Path

import click

from blockmap.cli.progress import Watched
from blockmap.errors import Corrupt, ImageError, NotFound, StoreError, StoreReadOnly, UsageError
from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.format import BLOCK
from blockmap.format.refs import parse_name, parse_reference
from blockmap.format.version import Version
from blockmap.image.compare import compare
from blockmap.image.disk_image import DiskSource
from blockmap.image.importer import Importer, Summary
from blockmap.image.layer import config_chains
from blockmap.image.sources import open_source
from blockmap.local.paths import default_cache, own
from blockmap.local.scratch import scratch
from blockmap.publish.local import LocalCatalogue
from blockmap.store.base import Reader, Writer
from blockmap.store.key_files import read_signer, read_trusted
from blockmap.store.opening import create_store, open_or_create, open_store, open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import Resolved, find_version
from blockmap.store.signing import Trust
from blockmap.store.volume_reader import stored_reader
from blockmap.terminal.machine import digest, tell_json
from blockmap.terminal.options import cache_option, json_option, need_store, sign_option, store_option, trust_option
from blockmap.terminal.output import OutputFailed, tell, warn
from blockmap.terminal.units import size
from blockmap.upkeep.derived import check_derived
from blockmap.upkeep.reach import Fault
from blockmap.upkeep.verify import Usage, check_version, record_faults, usage

_MAX_SIZE_GIB = 64
"""Twice the largest images of machine learning; a blob of 64 MB can unpack to as much."""


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


max_size_option = click.option(
    "--max-size",
    metavar="GIB",
    type=click.FloatRange(min=0, min_open=True),
    default=_MAX_SIZE_GIB,
    show_default=True,
    help="What the image may unpack to, in GiB.",
)


@click.command("import")
@click.argument("source")
@click.argument("name")
@store_option
@sign_option
@cache_option
@click.option("--platform", metavar="OS/ARCH", help="Which image of an index; this host's by default.")
@max_size_option
@click.option(
    "--keep-blobs",
    "keeps_blobs",
    is_flag=True,
    help="Also store the layers' blobs as they are: `export` gives them back whatever compressed them.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def import_(
    source: str,
    name: str,
    store: str | None,
    sign: Path | None,
    cache: Path | None,
    platform: str | None,
    max_size: float,
    keeps_blobs: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Import the image SOURCE under NAME (REPO[:TAG]).

    SOURCE is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker-daemon:REF, docker://REF, a directory,
    or a disk image (raw or qcow2). FILE may be - for standard input, and compressed.
    """
    repo, tag = parse_name(name)
    where = need_store(store)
    signer = None if sign is None else read_signer(sign)
    with scratch("import") as work:
        found = open_source(source, platform=platform, work=work, warn=warn, most=int(max_size * (1 << 30)))
        try:
            opened, form = open_or_create(where)
            local = LocalCatalogue(own(cache or default_cache()) / f"hooks-{form.store}.db")
            importer = Importer(opened, form, warn, local, signer)
            with Watched(found, f"{repo}:{tag}", quiet or as_json):
                summary = importer.run(found, repo, tag, keeps_blobs=keeps_blobs)
        finally:
            found.close()
    try:
        if as_json:
            tell_json(_machine(summary))
        else:
            _tell(summary)
    except OutputFailed as error:
        raise OutputFailed(f"{summary.name} is imported, sha256:{summary.version.hex()}, but {error}") from error


def _machine(summary: Summary) -> dict[str, object]:
    counts = summary.counts
    return {
        "name": summary.name,
        "digest": digest(summary.version),
        "root": digest(summary.root),
        "entry": summary.number,
        "volume_bytes": summary.volume_bytes,
        "data_bytes": counts.blocks * BLOCK,
        "chunks": counts.chunks,
        "new_chunks": counts.new_chunks,
        "new_bytes": counts.new_bytes,
        "stored_bytes": counts.stored_bytes + summary.node_bytes,
        "packs": counts.packs,
        "kept_blob_bytes": summary.kept_bytes,
        "seconds": summary.seconds,
        "cpu": summary.cpu,
    }


def _tell(summary: Summary) -> None:
    counts = summary.counts
    data = counts.blocks * BLOCK
    moved = f"entry {summary.number} of its name" if summary.number else "the name stood for it already"
    tell(f"{summary.name}  sha256:{summary.version.hex()}  ({moved})")
    tell(
        f"  {size(data)} of data in a volume of {size(summary.volume_bytes)}, {counts.chunks:,} chunks, "
        f"{counts.new_chunks:,} of them new"
    )
    ratio = f"{data / counts.new_bytes:.2f}" if counts.new_bytes else "all known"
    tell(
        f"  {size(counts.stored_bytes + summary.node_bytes)} stored (dedup ratio {ratio}), "
        f"{summary.seconds:.1f} s, {size(data / summary.seconds)}/s"
    )


@click.command()
@click.argument("name")
@store_option
@trust_option
@click.option("--files", is_flag=True, help="List the files, with their sizes and the blocks that they take.")
@json_option
def show(name: str, store: str | None, trust: tuple[str, ...], files: bool, as_json: bool) -> None:
    """Show what NAME is: configuration, size, digests, deduplication; or its files."""
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
    """Read everything that NAME consists of, and check it against its digests.

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
            opened, form = open_or_create(store)
            Importer(opened, form, warn).heal(found)
        finally:
            found.close()


commands = [create, import_, show, verify]
