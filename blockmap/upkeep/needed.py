"""Says of each object of a store whether something needs it, given what is marked."""

from collections.abc import Mapping
from dataclasses import dataclass

from blockmap.errors import Corrupt, FormatError, NotFound
from blockmap.format import keys, layer, oci
from blockmap.store import limits
from blockmap.store.base import Listed, Pruner
from blockmap.store.concurrent import each
from blockmap.store.pins import is_stale
from blockmap.upkeep.mark import Marked


@dataclass(frozen=True, slots=True)
class Garbage:
    """What of a store nothing needs."""

    old: Mapping[str, int]
    """Bytes by key, of what is older than the grace."""
    young: Mapping[str, int]
    """Bytes by key, of what may be in the making."""
    kept: int
    """Bytes of all other objects."""


def find_garbage(store: Pruner, listed: Mapping[str, Listed], marked: Marked, now: float, grace: float) -> Garbage:
    """Returns what of the listed objects nothing needs; the listing must be older than the mark, since what was written
    earlier and is named later is needed then."""
    old: dict[str, int] = {}
    young: dict[str, int] = {}
    needed = Needed(store, marked, now)
    wanted = each(needed.has, listed)
    for (key, about), is_needed in zip(listed.items(), wanted, strict=True):
        if not is_needed:
            (young if about.modified > now - grace else old)[key] = about.size
    kept = sum(about.size for about in listed.values()) - sum(old.values()) - sum(young.values())
    return Garbage(old, young, kept)


class Needed:
    """Says of keys whether they are needed, given what is marked."""

    def __init__(self, store: Pruner, marked: Marked, now: float) -> None:
        self._store = store
        self._now = now
        self._versions = {name.hex() for name in marked.versions}
        self._roots = {root.hex() for root in marked.roots}
        self._packs = {pack.hex() for pack in marked.packs}
        records = (record for records in marked.versions.values() for record in records.values())
        manifests = {record.manifest for record in records if record.manifest is not None}
        self._blobs = {blob.hex() for manifest in manifests for blob in oci.layer_digests(manifest)}
        self._keys = marked.keys()

    def has(self, key: str) -> bool:
        """Returns True for what is needed, and for what is of no kind that is known here."""
        kind, _, rest = key.partition("/")
        about = rest.partition("/")[0]
        if kind in ("packs", "versions"):
            return key in self._keys
        if kind in ("filemaps", "hooks"):
            return about in self._roots
        if kind in ("moved", "damaged"):
            return about in self._packs
        if kind == "bundles":
            return about in self._versions
        if kind in ("recipes", "blobs"):
            return about in self._blobs
        if kind in ("layers", "oci"):
            return self._leads(kind, about, key) in self._versions
        pin = keys.parse_pin(key)
        return pin is None or not is_stale(pin[1], self._now)

    def _leads(self, kind: str, about: str, key: str) -> str | None:
        """Returns the version that a layer or a document leads to; None if that cannot be read."""
        try:
            if kind == "layers":
                return layer.leads_to(self._store.get_range(key, 0, layer.HEAD_BYTES), bytes.fromhex(about)).hex()
            return oci.decode(self._store.get(key, limits.OCI)).version.hex()
        except (FormatError, Corrupt, NotFound, ValueError):
            return None
