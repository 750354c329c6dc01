"""The command `blockmap import`."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from blockmap.cli.progress import Watched
from blockmap.errors import BlockmapError, ImageError, StoreError, UsageError
from blockmap.format import BLOCK
from blockmap.format.refs import is_name, parse_name
from blockmap.image.importer import Importer, Summary
from blockmap.image.skopeo import REGISTRY, list_tags
from blockmap.image.sources import name_of, open_source
from blockmap.image.standing import stored_document
from blockmap.local.paths import default_cache, own
from blockmap.local.scratch import scratch
from blockmap.publish.local import LocalCatalogue
from blockmap.store.base import Pruner
from blockmap.store.key_files import read_signer
from blockmap.store.opening import open_writer
from blockmap.store.probe import check_writable
from blockmap.store.repository import Repository
from blockmap.terminal.machine import digest, tell_json
from blockmap.terminal.options import cache_option, max_size_option, need_store, sign_option, store_option
from blockmap.terminal.output import OutputFailed, tell, warn
from blockmap.terminal.units import size


@click.command("import")
@click.argument("source")
@click.argument("name", required=False)
@store_option
@sign_option
@cache_option
@click.option(
    "--all-tags",
    is_flag=True,
    help="Import all tags of the repository SOURCE, docker://HOST/REPO, under the repository NAME.",
)
@click.option("--platform", metavar="OS/ARCH", help="Which image of an index; this host's by default.")
@max_size_option
@click.option(
    "--keep-blobs",
    "keeps_blobs",
    is_flag=True,
    help="Also store the layers' blobs as they are: `export` gives them back whatever compressed them.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, one line for each image.")
def import_(
    source: str,
    name: str | None,
    store: str | None,
    sign: Path | None,
    cache: Path | None,
    all_tags: bool,
    platform: str | None,
    max_size: float,
    keeps_blobs: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Import the image SOURCE under NAME (REPO[:TAG]).

    SOURCE is docker://REF in a registry, docker-daemon:REF of the local docker, oci:DIR[:TAG], oci-archive:FILE[:TAG],
    docker-archive:FILE[:REF], a directory, a disk image (raw or qcow2), or - for what `docker save` writes. FILE may be
    compressed, and - for standard input. Without NAME, the image is called as docker calls it.

    A registry is asked for the manifest first, and for nothing more if the store has the image, or for the layers that it lacks.
    """
    if name is not None and not all_tags:
        parse_name(name)
    where = need_store(store)
    signer = None if sign is None else read_signer(sign)
    with scratch("import") as work:
        opened, form = open_writer(where)
        check_writable(opened)
        local = LocalCatalogue(own(cache or default_cache()) / f"hooks-{form.store}.db")
        importer = Importer(opened, form, warn, local, signer)
        run = _Run(opened, importer, work, platform, int(max_size * (1 << 30)), keeps_blobs, quiet or as_json, as_json)
        if all_tags:
            run.all_tags(source, name)
        else:
            run.one(source, name)


@dataclass(frozen=True, slots=True)
class _Run:
    """What is common to the images that a command imports."""

    store: Pruner
    importer: Importer
    work: Path
    platform: str | None
    most: int
    keeps_blobs: bool
    quiet: bool
    as_json: bool

    def one(self, source: str, name: str | None) -> Summary:
        """Imports an image, and tells what was done. Raises UsageError, ImageError, HostError, StoreError."""
        stored = partial(stored_document, Repository(self.store))
        found = open_source(source, platform=self.platform, work=self.work, warn=warn, most=self.most, stored=stored)
        try:
            called = name or name_of(source, found)
            if called is None:
                raise UsageError(
                    f"{source} has no name of its own: say `blockmap import {source} NAME`, with REPO[:TAG] as NAME"
                )
            repo, tag = parse_name(called)
            with Watched(found, f"{repo}:{tag}", self.quiet):
                summary = self.importer.run(found, repo, tag, keeps_blobs=self.keeps_blobs)
        finally:
            found.close()
        try:
            if self.as_json:
                tell_json(_machine(summary))
            else:
                _tell(summary)
        except OutputFailed as error:
            raise OutputFailed(f"{summary.name} is imported, sha256:{summary.version.hex()}, but {error}") from error
        return summary

    def all_tags(self, source: str, name: str | None) -> None:
        """Imports all tags of a repository; one that fails stops none of the others. Raises ImageError where any failed."""
        place = source.removeprefix(REGISTRY)
        if place == source or "@" in place or ":" in place.rpartition("/")[2]:
            raise UsageError(
                f"--all-tags takes a repository in a registry, docker://HOST/REPO without a tag, not {source!r}"
            )
        repo = name or name_of(source, None) or ""
        if ":" in repo.rpartition("/")[2] or not is_name(repo, "latest"):
            raise UsageError(f"{repo!r} is not the name of a repository: with --all-tags, NAME is one without a tag")
        done: Counter[str] = Counter()
        failed = []
        for tag in list_tags(source, self.work):
            try:
                summary = self.one(f"{source}:{tag}", f"{repo}:{tag}")
                done["imported" if summary.number else "up to date"] += 1
            except (StoreError, OutputFailed):
                raise
            except BlockmapError as error:
                warn(f"{repo}:{tag}: {error}")
                failed.append(tag)
        counted = ", ".join(f"{done[what]} {what}" for what in ("imported", "up to date"))
        if failed:
            raise ImageError(
                f"{source}: {counted}, {len(failed)} not imported, for the reasons above: {', '.join(failed)}"
            )
        if not self.as_json:
            tell(f"{source}: {counted}")


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
    version = digest(summary.version)
    if not summary.number:
        tell(f"{summary.name} is up to date  {version}")
        return
    counts = summary.counts
    data, stored = counts.blocks * BLOCK, counts.stored_bytes + summary.node_bytes
    tell(
        f"{summary.name}  {version}  (entry {summary.number} of its name)",
        f"  {size(data)} of data in a volume of {size(summary.volume_bytes)} (sparse), {counts.chunks:,} chunks",
    )
    if not stored:
        tell(f"  nothing new: the store had all of it, {summary.seconds:.1f} s")
        return
    ratio = f", dedup ratio {data / counts.new_bytes:.2f}" if counts.new_bytes else ""
    tell(
        f"  {size(stored)} stored ({counts.new_chunks:,} chunks are new{ratio}), {summary.seconds:.1f} s, "
        f"{size(data / summary.seconds)}/s"
    )
