"""The command `blockmap export`."""

import time

import click

from blockmap.export.destinations import parse_destination
from blockmap.export.exporter import ExportedImage, Exporter
from blockmap.format.refs import parse_reference
from blockmap.local.scratch import scratch
from blockmap.store.key_files import read_trusted
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Trust
from blockmap.terminal.machine import digest, tell_json
from blockmap.terminal.options import json_option, need_store, store_option, trust_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.units import size


@click.command()
@click.argument("name")
@click.argument("destination")
@store_option
@trust_option
@json_option
def export(name: str, destination: str, store: str | None, trust: tuple[str, ...], as_json: bool) -> None:
    """Write NAME as an OCI or docker image to DESTINATION.

    DESTINATION is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] or docker://REF.

    An image as it was imported has the same ID and the same layers. Its blobs, and so its manifest's digest and signatures, are the
    same as well where this host has what compressed them, or the import kept them; what differs is told. What was committed is the
    image below with one more layer.
    """
    trusted = Trust(read_trusted(trust))
    opened, _ = open_store(need_store(store))
    repository = Repository(opened, trusted)
    found = find_version(repository, parse_reference(name))
    target = parse_destination(destination, found.reference.repo, found.reference.tag)
    began = time.monotonic()
    with scratch("export") as work:
        done = Exporter(repository, work, warn).run(found.version, target)
    seconds = time.monotonic() - began
    if as_json:
        tell_json(_machine(done, seconds))
        return
    rate = size(done.archive_bytes / max(seconds, 1e-9))
    tell(f"{name} -> {destination}  ({size(done.archive_bytes)} of layers, {seconds:.1f} s, {rate}/s)")
    tell(f"  image ID  sha256:{done.config.hex()}{_same(done.config, done.was_config)}")
    if done.manifest is not None:
        tell(f"  manifest  sha256:{done.manifest.hex()}{_same(done.manifest, done.was_manifest)}")
    for number, blob in enumerate(done.layers, start=1):
        if blob.why_other:
            warn(f"layer {number} (sha256:{blob.diff_id.hex()[:12]}) has another blob than it had: {blob.why_other}")
    if done.why_other:
        warn(
            f"the image and its ID are the same, but its manifest is not, nor do signatures of the old one hold: {done.why_other}"
        )


def _same(digest: bytes, before: bytes | None) -> str:
    return "" if before is None else "  (as it was imported)" if digest == before else "  (another than was imported)"


def _machine(done: ExportedImage, seconds: float) -> dict[str, object]:
    return {
        "config": digest(done.config),
        "manifest": None if done.manifest is None else digest(done.manifest),
        "same_config": None if done.was_config is None else done.config == done.was_config,
        "same_manifest": None if None in (done.was_manifest, done.manifest) else done.manifest == done.was_manifest,
        "why_other": done.why_other,
        "layers": [
            {
                "diff_id": digest(blob.diff_id),
                "digest": digest(blob.digest),
                "size": blob.size,
                "why_other": blob.why_other,
            }
            for blob in done.layers
        ],
        "archive_bytes": done.archive_bytes,
        "seconds": seconds,
    }
