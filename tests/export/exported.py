"""Images exported from a store in a folder, and what the layers of those have."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockmap.export.destinations import parse_destination
from blockmap.export.exporter import ExportedImage, Exporter
from blockmap.export.plan import plan_image
from blockmap.format.refs import parse_reference
from blockmap.format.version import Version
from blockmap.image.compression import decompressor
from blockmap.local.scratch import scratch
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version


def version_named(store: Path, name: str) -> tuple[Repository, Version]:
    repository = Repository(open_store(str(store))[0])
    return repository, find_version(repository, parse_reference(name)).version


def export_image(store: Path, name: str, destination: str, warnings: list[str] | None = None) -> ExportedImage:
    """Exports as the command line does."""
    repository, version = version_named(store, name)
    with scratch("export") as work:
        exporter = Exporter(repository, work, (warnings if warnings is not None else []).append)
        return exporter.run(version, parse_destination(destination, *name.split(":")))


def archives_of(store: Path, name: str) -> list[bytes]:
    """Returns the archives of an image's layers, made again."""
    repository, version = version_named(store, name)
    plan = plan_image(repository, version, lambda text: None)
    found = [b"".join(layer.archive.pieces()) for layer in plan.layers]
    assert [len(data) for data in found] == [layer.archive.size for layer in plan.layers]
    return found


def manifest_of(layout: Path) -> tuple[str, bytes]:
    """Returns the digest of the only manifest in a layout, and the manifest."""
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    digest = str(top["digest"])
    return digest, blob(layout, digest)


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def config_of(layout: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(blob(layout, json.loads(manifest_of(layout)[1])["config"]["digest"]))
    return found


def layer_members(layout: Path, number: int) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a layer, as tarfile reads them."""
    digest = json.loads(manifest_of(layout)[1])["layers"][number]["digest"]
    data = decompressor(io.BufferedReader(io.BytesIO(blob(layout, digest)))).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        yield from archive
