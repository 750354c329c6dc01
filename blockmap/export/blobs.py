"""Makes layers' blobs: as they were where that is possible, else anew, and says which and why.

Every blob is checked while it is written: against its own digest, or its archive against the layer's diff_id.
"""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from blockmap.errors import Corrupt, NotFound
from blockmap.export.archives import LayerArchive
from blockmap.format.recipe import BlobRecipe
from blockmap.image.gzip_tools import NONE, ZLIB, GzipTool, compress, is_present
from blockmap.image.media_types import OCI_LAYER
from blockmap.store.base import Reader
from blockmap.store.blobs import find_recipe, kept_blob

_ANEW = GzipTool(ZLIB, 6)
"""What compresses blobs that are new: equal archives give equal blobs, as far as hosts have the same zlib."""
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""A gzip header without time and name."""
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer to be written."""

    name: str
    """What a person calls it."""
    archive: LayerArchive
    diff_id: bytes | None = None
    """SHA-256 that the archive must have; None for a layer that is new."""
    blob: bytes | None = None
    """SHA-256 that the blob had; None if nobody knows."""
    media: str = OCI_LAYER + "+gzip"
    """Media type of the blob that was."""


@dataclass(frozen=True, slots=True)
class WrittenBlob:
    diff_id: bytes
    digest: bytes
    size: int
    media: str
    why_other: str = ""
    """Why the blob is another than it was; empty if it is not, or nobody knows what it was."""


class Checked:
    """Passes an archive on, and checks at its end that it is the layer's. Raises Corrupt."""

    def __init__(self, layer: PlannedLayer) -> None:
        self._layer = layer
        self.diff_id = b""
        """SHA-256 of the archive, known at its end."""

    def pieces(self) -> Iterator[bytes]:
        state = sha256()
        for piece in self._layer.archive.pieces():
            state.update(piece)
            yield piece
        self.diff_id = state.digest()
        if self._layer.diff_id not in (None, self.diff_id):
            raise Corrupt(
                f"{self._layer.name} is refused: its archive has the digest sha256:{self.diff_id.hex()}, and "
                f"sha256:{self._layer.diff_id.hex()} is expected; see `blockmap verify`, or import the image again"
            )


class BlobMaker:
    """Writes blobs into a folder, each under the digits of its SHA-256."""

    def __init__(self, store: Reader, folder: Path, work: Path) -> None:
        self._store, self._folder, self._work = store, folder, work

    def make(self, layer: PlannedLayer) -> WrittenBlob:
        """Writes a layer's blob, the one that was where that is possible. Corrupt, NotFound, StoreUnavailable, HostError."""
        why = ""
        recipe: BlobRecipe | None = None
        if layer.blob is not None and layer.diff_id is not None:
            size = self._is_there(layer.blob)
            if size is None:
                size, why = self._copy_kept(layer.blob)
            if size is not None:
                return WrittenBlob(layer.diff_id, layer.blob, size, layer.media)
            recipe = find_recipe(self._store, layer.blob)
        tool, header, why = (_ANEW, _HEADER, why) if layer.blob is None else _chosen(recipe, why)
        checked = Checked(layer)
        digest, size = self._write(compress(tool, header, checked.pieces(), self._work))
        is_as_it_was = digest == layer.blob
        if layer.blob is not None and not is_as_it_was:
            why = why or f"{tool} on this host makes another blob than what compressed it then"
        media = layer.media if is_as_it_was else OCI_LAYER + ("" if tool.name == NONE else "+gzip")
        return WrittenBlob(checked.diff_id, digest, size, media, "" if is_as_it_was else why)

    def put(self, data: bytes) -> bytes:
        """Writes a document, and returns its SHA-256."""
        return self._write(iter([data]))[0]

    def _is_there(self, digest: bytes) -> int | None:
        """Returns the size of a blob that the folder has already."""
        path, state = self._folder / digest.hex(), sha256()
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            while data := file.read(_PIECE_BYTES):
                state.update(data)
            return file.tell() if state.digest() == digest else None

    def _copy_kept(self, digest: bytes) -> tuple[int | None, str]:
        """Writes a blob that the store keeps, and returns its size; else None, and why not if it is there."""
        try:
            parts = kept_blob(self._store, digest)
            if parts is None:
                return None, ""
            _, size = self._write(parts, digest)
            return size, ""
        except (Corrupt, NotFound) as error:
            return None, f"it was kept, but {error}"

    def _write(self, pieces: Iterator[bytes], expected: bytes | None = None) -> tuple[bytes, int]:
        """Writes a blob under its digest. Raises Corrupt for another than `expected`."""
        temporary = self._folder / f".tmp-{secrets.token_hex(8)}"
        state, size = sha256(), 0
        try:
            with open(temporary, "xb") as file:
                for piece in pieces:
                    state.update(piece)
                    size += len(piece)
                    file.write(piece)
            if expected not in (None, state.digest()):
                raise Corrupt("what the store has of it is damaged: import the image again with --keep-blobs")
            os.replace(temporary, self._folder / state.hexdigest())
        finally:
            temporary.unlink(missing_ok=True)
        return state.digest(), size


def _chosen(recipe: BlobRecipe | None, why: str) -> tuple[GzipTool, bytes, str]:
    """Returns the tool to make a blob with, the header, and why it will be another blob, if that is known."""
    if recipe is None:
        return _ANEW, _HEADER, why or "nothing is noted of what compressed it: import the image again, which finds out"
    if recipe.tool is None:
        return _ANEW, _HEADER, why or "what compressed it is not known: only `import --keep-blobs` can give it back"
    tool = GzipTool(recipe.tool, recipe.level)
    if not is_present(tool):
        return _ANEW, _HEADER, why or f"it was compressed by {tool}, which this host does not have: install {tool.name}"
    return tool, recipe.header, why
