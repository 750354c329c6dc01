"""Layers in blobs: archives, compressed or not, with their expected digests."""

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import BinaryIO

from blockmap.filesystem.member import Member, Members
from blockmap.image import compression, tar
from blockmap.image.tarfile_reader import tarfile_members
from blockmap.image.tolerance import Oddities, UnpackPolicy, fit, tolerated


class BlobLayer:
    """A layer in a file, which is read once."""

    def __init__(
        self,
        name: str,
        open_blob: Callable[[], BinaryIO],
        size: int,
        digest: bytes | None,
        diff_id: bytes,
        chain: bytes,
        policy: UnpackPolicy,
    ) -> None:
        self.chain = chain
        self.size = size
        self.progress: Callable[[int], None] = lambda count: None
        """Called with the stored bytes read since the last call, from a thread of its own."""
        self.cpu_seconds = 0.0
        self.digest = digest
        """SHA-256 of the blob; None in a docker archive, which does not say it."""
        self.diff_id = diff_id
        self.open_blob = open_blob
        self._name = name
        self._policy = policy

    def members(self, headers: Callable[[bytes], None]) -> Members:
        odd = Oddities(self._name, self._policy.warn)
        return tolerated(tar.members(self._archive(), headers, odd.add), odd, self._policy)

    def replay(self, headers: bytes) -> Iterator[Member]:
        """Yields the members again, given what `members` passed on, without a word on what is odd. Raises ImageError."""
        odd = Oddities(self._name, lambda text: None)
        self._policy.check(len(headers))
        for part in tar.skeleton(headers):
            self._policy.hold(part.member.size)
            yield fit(part.member, odd)

    def second_reading(self) -> Members:
        odd = Oddities(self._name, self._policy.warn)
        return tolerated(tarfile_members(self._archive()), odd, self._policy)

    def _archive(self) -> Iterator[bytes]:
        pieces = compression.archive(self.open_blob, self._name, self.digest, self.diff_id, self.progress, self._took)
        return self._policy.counted(pieces)

    def stored(self) -> bytes:
        """Reads the blob without decompressing it."""
        with self.open_blob() as blob:
            return blob.read()

    def _took(self, seconds: float) -> None:
        self.cpu_seconds = seconds


def chain_ids(diff_ids: Sequence[bytes]) -> list[bytes]:
    """Returns the OCI chain ID of each stack of layers, from the bottom up (image-spec, config.md)."""
    chains: list[bytes] = []
    for diff_id in diff_ids:
        if not chains:
            chains.append(diff_id)
        else:
            chains.append(sha256(f"sha256:{chains[-1].hex()} sha256:{diff_id.hex()}".encode()).digest())
    return chains


def config_chains(config: bytes | None) -> list[bytes]:
    """Returns the chain IDs of an image's layers, as far as its configuration has them."""
    try:
        diff_ids = json.loads(config or b"{}")["rootfs"]["diff_ids"]
        return chain_ids([bytes.fromhex(each.removeprefix("sha256:")) for each in diff_ids])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
