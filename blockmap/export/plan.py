"""Plans an export: which layers an image consists of, and what is known of them already. Reads headers and file systems."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockmap.errors import Corrupt, NotFound
from blockmap.export.archives import LayerArchive, stored_archives
from blockmap.export.blobs import PlannedLayer
from blockmap.export.changes import changed_layer, read_file_system, whole_layer
from blockmap.export.contents import ContentReader
from blockmap.export.documents import committed_config, listed_layers, plain_config
from blockmap.format.version import Version
from blockmap.image.oci import config_diff_ids
from blockmap.store.concurrent import spawn
from blockmap.store.repository import Repository
from blockmap.upkeep.differences import compare_trees

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """An image to be written."""

    layers: list[PlannedLayer]
    manifest: bytes | None
    """The manifest that it had, or its base; None if it had none."""
    is_unchanged: bool
    """Whether it is the image that was imported, so that it may have the same manifest."""
    config: Callable[[Sequence[bytes]], bytes]
    """Returns the configuration, given the digests of the layers' archives."""


def plan_image(repository: Repository, version: Version, warn: Warn) -> ImagePlan:
    """Plans the export of a version. Raises Corrupt, NotFound, ImageError, StoreUnavailable."""
    if not version.parents:
        if version.config is None:
            return _whole(repository, version, warn)
        config = version.config
        return ImagePlan(_stored(repository, version), version.manifest, True, lambda diff_ids: config)
    try:
        base = _imported(repository, version)
        layers = _stored(repository, base) if base.config is not None else None
    except (NotFound, Corrupt) as error:
        warn(f"the image below is gone or damaged, and all is written as one layer: {error}")
        return _whole(repository, version, warn)
    if layers is None:
        return _whole(repository, version, warn)
    contents = ContentReader(repository, [version.root])
    below = spawn(lambda: read_file_system(ContentReader(repository, [base.root]), _ignore))
    new, old = read_file_system(contents, warn), below.result()
    change = changed_layer(old, new, compare_trees(repository, base.root, version.root), contents)
    if change is not None:
        layers.append(PlannedLayer("the layer of what was changed", change))
    return ImagePlan(
        layers,
        base.manifest,
        False,
        lambda diff_ids: committed_config(version, new.written, diff_ids, change is not None),
    )


def _imported(repository: Repository, version: Version) -> Version:
    """Returns the version that was imported, and that commits led on from to this one."""
    while version.parents:
        version = repository.version(version.parents[0])
    return version


def _stored(repository: Repository, version: Version) -> list[PlannedLayer]:
    archives: list[LayerArchive] = stored_archives(repository, version)
    diff_ids = config_diff_ids(version.config or b"{}")
    blobs: Sequence[tuple[bytes | None, str]] = listed_layers(version.manifest) or [(None, "")] * len(archives)
    return [
        PlannedLayer(f"layer {number} (sha256:{diff_id.hex()[:12]})", archive, diff_id, blob, media)
        for number, (archive, diff_id, (blob, media)) in enumerate(zip(archives, diff_ids, blobs, strict=True), start=1)
    ]


def _whole(repository: Repository, version: Version, warn: Warn) -> ImagePlan:
    """Plans an image of one layer, which has all of the file system."""
    contents = ContentReader(repository, [version.root])
    found = read_file_system(contents, warn)
    layer = PlannedLayer("the layer", whole_layer(found, contents))
    return ImagePlan([layer], None, False, lambda diff_ids: plain_config(version, found.written, diff_ids[0]))


def _ignore(text: str) -> None:
    """Says nothing: what is odd about the base was said when it was imported."""
