"""What a registry gave, by digest: whoever has a manifest asks for what it lists, also after a restart."""

import sqlite3
import threading
from pathlib import Path
from typing import NamedTuple

from blockmap.errors import HostError
from blockmap.format.digest import Digest
from blockmap.local.database import Schema, open_or_forget, transaction

_SCHEMA = Schema(
    version=1,
    tables="""
        CREATE TABLE documents (
            digest BLOB PRIMARY KEY,
            media TEXT NOT NULL,
            content BLOB NOT NULL,
            is_manifest INTEGER NOT NULL,
            version BLOB NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE layers (
            digest BLOB PRIMARY KEY,
            version BLOB NOT NULL,
            place INTEGER NOT NULL,  -- from 0, in the order of the layers
            size INTEGER NOT NULL,
            is_plain INTEGER NOT NULL  -- 1 where the blob is the layer's archive
        ) WITHOUT ROWID;
        CREATE TABLE others (digest BLOB PRIMARY KEY) WITHOUT ROWID;  -- blobs that were made again here, and became others
    """,
    wal=True,
)


class Document(NamedTuple):
    """A manifest or a configuration."""

    digest: bytes
    media: str
    content: bytes


class LayerBlob(NamedTuple):
    """A layer's blob."""

    digest: bytes
    version: Digest
    place: int
    """Which of the version's layers it is, from 0."""
    size: int
    is_plain: bool
    """True if it is the layer's archive, not compressed."""


class ServedDigests:
    """Remembers, in a file of this host that can be done without; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it. HostError."""
        self._lock = threading.Lock()  # guards the connection
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection, _ = open_or_forget(path, _SCHEMA, lambda connection: None, lambda error: None)
        except (OSError, sqlite3.Error) as error:
            raise HostError(f"cannot make {path}: {error}") from error

    def note(self, version: Digest, manifest: Document, config: Document, layers: list[LayerBlob]) -> None:
        """Remembers a manifest with what it lists."""
        with self._lock, transaction(self._connection):
            self._connection.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)",
                [(*manifest, 1, version), (*config, 0, version)],
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?, ?)",
                [(each.digest, each.version, each.place, each.size, each.is_plain) for each in layers],
            )

    def document(self, digest: bytes, is_manifest: bool) -> Document | None:
        row = self._one(
            "SELECT digest, media, content FROM documents WHERE digest = ? AND is_manifest = ?", digest, is_manifest
        )
        return None if row is None else Document(*row)

    def manifest_of(self, version: Digest) -> Document | None:
        """Returns the manifest that was given of a version."""
        row = self._one("SELECT digest, media, content FROM documents WHERE version = ? AND is_manifest = 1", version)
        return None if row is None else Document(*row)

    def layer(self, digest: bytes) -> LayerBlob | None:
        row = self._one("SELECT digest, version, place, size, is_plain FROM layers WHERE digest = ?", digest)
        return None if row is None else LayerBlob(row[0], Digest(row[1]), row[2], row[3], bool(row[4]))

    def note_other(self, layer: LayerBlob) -> None:
        """Notes that a blob cannot be made as it was, and forgets what was given of its version."""
        with self._lock, transaction(self._connection):
            self._connection.execute("INSERT OR REPLACE INTO others VALUES (?)", (layer.digest,))
            for table in ("documents", "layers"):
                self._connection.execute(f"DELETE FROM {table} WHERE version = ?", (layer.version,))

    def is_other(self, blob: bytes) -> bool:
        """Returns True if a blob was made again here, and became another."""
        return self._one("SELECT 1 FROM others WHERE digest = ?", blob) is not None

    def close(self) -> None:
        self._connection.close()

    def _one(self, statement: str, *values: object) -> sqlite3.Row | None:
        with self._lock:
            row: sqlite3.Row | None = self._connection.execute(statement, values).fetchone()
            return row
