"""Writes objects that are functions of their keys, and takes back those that no name stands for yet."""

from collections.abc import Collection, Sequence
from contextlib import suppress

from blockmap.errors import AlreadyExists, Corrupt, StoreReadOnly, StoreUnavailable
from blockmap.format import keys, version
from blockmap.format.digest import Digest
from blockmap.format.pack import Pack
from blockmap.format.version import Version
from blockmap.publish.local import Numbered
from blockmap.store import limits
from blockmap.store.base import Buffer, Pruner, Writer
from blockmap.store.packs import pack_key
from blockmap.store.repository import VERSION_ATTEMPTS
from blockmap.store.signing import Signer

_CREATE_ATTEMPTS = 3
"""Attempts of a create: engines do not repeat one whose answer was lost, since it may have happened."""


def put(store: Writer, key: str, parts: Sequence[Buffer]) -> bool:
    """Stores an object that is a function of its key; returns False where it is there already."""
    for _ in range(_CREATE_ATTEMPTS - 1):
        with suppress(StoreUnavailable):
            return _create(store, key, parts)
    return _create(store, key, parts)


class ObjectWriter:
    """Writes the packs and the record of one version, and can take them back."""

    def __init__(self, store: Pruner) -> None:
        self._store = store
        self._packs: list[str] = []
        self._version_key: str | None = None

    def put_pack(self, made: Pack) -> None:
        key = pack_key(made.name)
        self._packs.append(key)
        try:
            put(self._store, key, made.parts)  # its name has random salt: an existing object is this one
        except StoreReadOnly:
            self._packs.remove(key)  # it was refused, and there is nothing to take back
            raise

    def put_version(self, record: Version, named: Collection[Numbered], retired: int = 0) -> int:
        """Stores a version's record under a number above `retired`; returns its number.

        A record that is there already is taken only where a name stands for it (`named`): another's, whose import may
        yet fail and take its packs back, is left alone, and the next number used.
        """
        name = record.name
        for number in range(VERSION_ATTEMPTS, 0, -1):  # the newest says best where the nodes are
            if (name, number) in named:
                return number
        for number in range(retired + 1, VERSION_ATTEMPTS + 1):
            key = keys.version(name, number)
            if put(self._store, key, [version.encode(record)]):
                self._version_key = key
                return number
        raise _no_number(name)

    def put_first_version(self, record: Version, retired: int) -> int | None:
        """Stores a version's record under the first number above `retired`, and returns that; None where one is there."""
        number = retired + 1
        key = keys.version(record.name, number)
        if number > VERSION_ATTEMPTS or not put(self._store, key, [version.encode(record)]):
            return None
        self._version_key = key
        return number

    def keep_packs(self) -> None:
        """Takes none of the packs back that were written until now, whatever becomes of the version."""
        self._packs.clear()

    def withdraw(self) -> None:
        """Deletes the version and the packs that were written and not kept; no name may stand for it."""
        for key in ([self._version_key] if self._version_key else []) + self._packs:
            self._store.delete(key)
        self._version_key = None
        self._packs.clear()


def put_signed(store: Writer, record: Version, number: int, signer: Signer, retired: int) -> int:
    """Returns the number of a record of a version that `signer` signed, given one that names stand for, under `number`.

    It is the same but for the signature, and is stored under a number above `retired` if there is none. Corrupt where no number
    is left.
    """
    if signer.has_signed_version(record):
        return number
    data = version.encode(signer.version(record))
    for other in range(retired + 1, VERSION_ATTEMPTS + 1):
        key = keys.version(record.name, other)
        if put(store, key, [data]) or store.get(key, limits.VERSION) == data:
            return other
    raise _no_number(record.name)


def _no_number(name: Digest) -> Corrupt:
    return Corrupt(
        f"version {name.hex()} has {VERSION_ATTEMPTS} records, which no name stands for or others signed: delete those below "
        f"versions/{name.hex()} that nobody needs"
    )


def _create(store: Writer, key: str, parts: Sequence[Buffer]) -> bool:
    try:
        store.create(key, parts)
    except AlreadyExists:
        return False
    return True
