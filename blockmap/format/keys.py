"""The keys of objects in a store."""

from blockmap.format.digest import Digest
from blockmap.format.refs import from_component, to_component

FORMAT = "format"
NAMES = "names/"


def _number(n: int) -> str:
    return f"{n:016d}"


def pack(name: Digest) -> str:
    text = name.hex()
    return f"packs/{text[:2]}/{text}"


def version(name: Digest, number: int) -> str:
    return f"versions/{name.hex()}/{_number(number)}"


def entry(repo: str, tag: str, number: int) -> str:
    return f"names/{to_component(repo)}/{tag}/{_number(number)}"


def parse_entry(key: str) -> tuple[str, str, int] | None:
    """Repository, tag and number of the entry at `key`; None where it is no entry's key."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != "names" or len(parts[3]) != 16 or not parts[3].isdecimal():
        return None
    return from_component(parts[1]), parts[2], int(parts[3])


def name_hint(repo: str, tag: str) -> str:
    return f"hints/names/{to_component(repo)}/{tag}"


def filemap(root: Digest) -> str:
    return f"filemaps/{root.hex()}"


def layer(chain: bytes, number: int) -> str:
    return f"layers/{chain.hex()}/{_number(number)}"


def oci(digest: bytes) -> str:
    return f"oci/{digest.hex()}"
