"""Notes which pins clones have in the store, so that one whose clone was never recorded, or is gone, is deleted after a crash.

A note is an empty file, `pins/STORE/VERSION.HOLDER` below the state of the clones: written before the pin, removed after it. It is
not made durable: what a power cut takes with it costs a version that is kept for nothing.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blockmap.format.digest import DIGEST_BYTES, Digest

_YOUNG_S = 3600.0
"""Seconds for which a note may be of a clone that is just being made by another server of this host."""


class PinNotes:
    """The notes of one host's clones of one store."""

    def __init__(self, state: Path, store: str) -> None:
        """`store` is the store's UUID."""
        self._folder = state / "pins" / store

    def add(self, version: Digest, holder: str) -> None:
        with suppress(OSError):  # the clone says what is wrong with the disk
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path(version, holder).touch(mode=0o600)

    def remove(self, version: Digest, holder: str) -> None:
        with suppress(OSError):
            self._path(version, holder).unlink(missing_ok=True)

    def old(self) -> Iterator[tuple[Digest, str]]:
        """Yields the version and holder of each note, but for young ones."""
        before = time.time() - _YOUNG_S
        for path in self._folder.glob("*.*"):
            version, _, holder = path.name.partition(".")
            with suppress(OSError, ValueError):
                if path.stat().st_mtime < before and len(version) == 2 * DIGEST_BYTES:
                    yield Digest(bytes.fromhex(version)), holder

    def _path(self, version: Digest, holder: str) -> Path:
        return self._folder / f"{version.hex()}.{holder}"
