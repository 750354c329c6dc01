"""The keys of objects in a store."""

import re

from blockmap.errors import UsageError
from blockmap.format.digest import Digest
from blockmap.format.refs import from_component, to_component

FORMAT = "format"
NAMES = "names/"
PROFILES = "profiles/"
PACKS = "packs/"
MOVED = "moved/"
DAMAGED = "damaged/"
CATALOGUE = "hints/catalogue"
CLOCK = "hints/clock"
"""Is overwritten to ask what time it is by the store's clock."""
PINS = "pins/"

_DAMAGED = re.compile("damaged/([0-9a-f]{64})/([0-9]{16})")
_MOVED = re.compile("moved/([0-9a-f]{64})/([0-9]{16})")
_COLLECTION = re.compile("gc/([0-9]{16})")
_PACK = re.compile("packs/([0-9a-f]{2})/(\\1[0-9a-f]{62})")
_VERSION = re.compile("versions/([0-9a-f]{64})/([0-9]{16})")
_PIN = re.compile("pins/([0-9a-f]{64})/([^/]+)")
_NUMBER = re.compile("[0-9]{16}")


def check(key: str) -> None:
    """Raises UsageError for a key that leads out of the store, or that looks like a temporary file."""
    if any(part in ("", ".", "..") or part.startswith(".tmp-") or "\0" in part for part in key.split("/")):
        raise UsageError(f"{key!r} is not a key: components that are empty, dots or temporary names are not allowed")


def _number(n: int) -> str:
    return f"{n:016d}"


def pack(name: Digest) -> str:
    text = name.hex()
    return f"packs/{text[:2]}/{text}"


def parse_pack(key: str) -> Digest | None:
    """Returns the pack at `key`; None if `key` is not that of a pack."""
    found = _PACK.fullmatch(key)
    return Digest(bytes.fromhex(found[2])) if found else None


def version(name: Digest, number: int) -> str:
    return f"versions/{name.hex()}/{_number(number)}"


def versions(name: Digest) -> str:
    """Returns the prefix of the keys of a version's records."""
    return f"versions/{name.hex()}/"


def entry(repo: str, tag: str, number: int) -> str:
    return f"names/{to_component(repo)}/{tag}/{_number(number)}"


def names(repo: str) -> str:
    """Returns the prefix of the keys of a repository's entries."""
    return f"{NAMES}{to_component(repo)}/"


def parse_entry(key: str) -> tuple[tuple[str, str], int] | None:
    """Returns the name (repository, tag) and number of the entry at `key`; None if `key` is not that of an entry."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != "names" or not _NUMBER.fullmatch(parts[3]) or int(parts[3]) == 0:
        return None
    return (from_component(parts[1]), parts[2]), int(parts[3])


def name_hint(repo: str, tag: str) -> str:
    return f"hints/names/{to_component(repo)}/{tag}"


def filemap(root: Digest, number: int) -> str:
    """Returns the key of a file map; number 0 is the one of older stores, whose key has no number."""
    return _numbered(f"filemaps/{root.hex()}", number)


def hooks(root: Digest, number: int) -> str:
    """Returns the key of a tree's hooks; number 0 is the one of older stores, whose key has no number."""
    return _numbered(f"hooks/{root.hex()}", number)


def profile(repo: str, label: str, number: int) -> str:
    return f"profiles/{to_component(repo)}/{to_component(label)}/{_number(number)}"


def profiles(repo: str) -> str:
    """Returns the prefix of the keys of a repository's profiles."""
    return f"{PROFILES}{to_component(repo)}/"


def parse_profile(key: str) -> tuple[tuple[str, str], int] | None:
    """Returns repository with label, and number, of the profile at `key`; None if `key` is not that of a profile."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != "profiles" or not _NUMBER.fullmatch(parts[3]) or int(parts[3]) == 0:
        return None
    return (from_component(parts[1]), from_component(parts[2])), int(parts[3])


def bundles(version: Digest) -> str:
    """Returns the prefix of the keys of a version's bundles."""
    return f"bundles/{version.hex()}/"


def parse_bundle(key: str) -> tuple[str, int, int] | None:
    """Returns the label, the profile's number and the number of the bundle at `key`; None if `key` is not that of a bundle."""
    parts = key.split("/")
    if len(parts) not in (4, 5) or parts[0] != "bundles" or not all(map(_NUMBER.fullmatch, parts[3:])):
        return None
    profile, *number = map(int, parts[3:])
    if profile == 0 or number == [0]:
        return None
    return from_component(parts[2]), profile, number[0] if number else 0


def bundle(version: Digest, label: str, profile: int, number: int) -> str:
    """Returns the key of a bundle of a profile on a version; number 0 is the one of older stores, whose key has no number."""
    return _numbered(f"{bundles(version)}{to_component(label)}/{_number(profile)}", number)


def moved(pack: Digest, number: int) -> str:
    return f"moved/{pack.hex()}/{_number(number)}"


def damaged(pack: Digest, number: int) -> str:
    return f"{DAMAGED}{pack.hex()}/{_number(number)}"


def parse_damaged(key: str) -> tuple[Digest, int] | None:
    """Returns the pack and the number of the damage record at `key`; None if `key` is not that of one."""
    return _about_digest(_DAMAGED, key)


def parse_moved(key: str) -> tuple[Digest, int] | None:
    """Returns the pack and the number of the entry at `key` that says where things moved; None if `key` is not that of one."""
    return _about_digest(_MOVED, key)


def collection(number: int) -> str:
    """Returns the key of an entry of the log of garbage collections."""
    return f"gc/{_number(number)}"


def parse_collection(key: str) -> int | None:
    """Returns the number of the entry of the log of collections at `key`; None if `key` is not that of one."""
    found = _COLLECTION.fullmatch(key)
    return int(found[1]) if found else None


def pin(version: Digest, holder: str) -> str:
    """Returns the key of what keeps a version from being collected; `holder` says who needs it."""
    return f"{PINS}{version.hex()}/{holder}"


def parse_pin(key: str) -> tuple[Digest, str] | None:
    """Returns the version and the holder of the pin at `key`; None if `key` is not that of a pin."""
    found = _PIN.fullmatch(key)
    return (Digest(bytes.fromhex(found[1])), found[2]) if found else None


def parse_version(key: str) -> tuple[Digest, int] | None:
    """Returns the version and the number of the record at `key`; None if `key` is not that of one."""
    return _about_digest(_VERSION, key)


def layer(chain: bytes, number: int) -> str:
    return f"layers/{chain.hex()}/{_number(number)}"


def recipe(blob: bytes, number: int) -> str:
    """Returns the key of what says how the blob with this SHA-256 is made from its archive."""
    return f"recipes/{blob.hex()}/{_number(number)}"


def blob_part(blob: bytes, number: int) -> str:
    """Returns the key of a part, counted from 1, of the blob with this SHA-256."""
    return f"{blob_parts(blob)}{_number(number)}"


def blob_parts(blob: bytes) -> str:
    """Returns the prefix of the keys of the parts of a blob."""
    return f"blobs/{blob.hex()}/"


def oci(digest: bytes, number: int) -> str:
    """Returns the key of a record of an OCI document; number 0 is the one of older stores, whose key has no number."""
    return _numbered(f"oci/{digest.hex()}", number)


def _about_digest(pattern: re.Pattern[str], key: str) -> tuple[Digest, int] | None:
    found = pattern.fullmatch(key)
    return (Digest(bytes.fromhex(found[1])), int(found[2])) if found and int(found[2]) else None


def _numbered(key: str, number: int) -> str:
    return f"{key}/{_number(number)}" if number else key
