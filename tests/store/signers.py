"""Keys that are the same in every run, and stores in which somebody else's hand was."""

from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blockmap.format import record
from blockmap.store.base import Pruner
from blockmap.store.signing import Signer, Trust


def signer(seed: int) -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def trusting(*signers: Signer) -> Trust:
    return Trust(tuple(each.public for each in signers))


def overwrite(store: Pruner, key: str, data: bytes) -> None:
    """Does what whoever owns the storage can do: an object has other bytes from then on."""
    store.delete(key)
    store.create(key, [data])


def forge(store: Pruner, key: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Changes the lines of a sealed object, and seals it again."""
    overwrite(store, key, record.seal(change(record.unseal(store.get(key)))))


def changed(line: bytes, **changes: Any) -> bytes:
    return record.encode({**record.decode(line), **changes})
