"""Opens and creates stores by URL."""

import json
import secrets
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap.errors import AlreadyExists, FormatError, NotAStore, NotFound, StoreRefused, StoreTooNew, UsageError
from blockmap.format import keys
from blockmap.format.chunker import Parameters
from blockmap.store.base import Pruner
from blockmap.store.directory import DirectoryStore

VERSION = 1
_CREATORS = 8


@dataclass(frozen=True, slots=True)
class Format:
    """What the object `format` says about a store."""

    store: str
    """UUID."""
    chunker: Parameters
    writable: bool
    """False where writing needs a feature that this release does not know."""


def open_store(url: str) -> tuple[Pruner, Format]:
    """The store at `url`; UsageError, NotAStore, StoreTooNew, StoreUnavailable."""
    store = DirectoryStore(_directory(url))
    try:
        text = store.get(keys.FORMAT)
    except NotFound:
        raise NotAStore(
            f"{url} is not a blockmap store: make one with `blockmap create {url}`, or correct --store"
        ) from None
    return store, parse_format(text, url)


def create_store(url: str) -> tuple[Pruner, Format]:
    """Probes the engine at `url` and makes a store there; UsageError, NotAStore, StoreRefused, StoreReadOnly."""
    path = _directory(url)
    store = DirectoryStore(path)
    if store.exists(keys.FORMAT):
        raise UsageError(f"{url} is a blockmap store already: use it as it is")
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if found:
        seen = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise NotAStore(
            f"{url} is neither empty nor a store, it holds {seen}: name a directory that is absent or empty"
        )
    if path.exists() and not path.is_dir():
        raise NotAStore(f"{url} is a file: name a directory that is absent or empty")
    probe(store)
    parameters = Parameters()
    value = {
        "chunker": {"bits": parameters.bits, "hash": "xxh3-64", "max": parameters.max, "min": parameters.min},
        "may": [],
        "requires": [],
        "store": str(uuid.uuid4()),
        "version": VERSION,
    }
    store.create(keys.FORMAT, [json.dumps(value, indent=1).encode() + b"\n"])
    return store, parse_format(store.get(keys.FORMAT), url)


def open_or_create(url: str) -> tuple[Pruner, Format]:
    """The store at `url`, made where the directory is absent or empty."""
    path = _directory(url)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return create_store(url)
    return open_store(url)


def parse_format(text: bytes, url: str) -> Format:
    """Parses the object `format`; NotAStore, StoreTooNew."""
    try:
        value: Any = json.loads(text)
        version, requires, may, chunker = value["version"], value["requires"], value["may"], value["chunker"]
        if version != VERSION or requires:
            needs = ", ".join(map(str, requires)) or f"version {version}"
            raise StoreTooNew(f"the store {url} needs {needs}, which this release does not know: upgrade blockmap")
        if chunker["hash"] != "xxh3-64":
            raise StoreTooNew(
                f"the store {url} cuts by {chunker['hash']}, which this release does not know: upgrade blockmap"
            )
        parameters = Parameters(int(chunker["bits"]), int(chunker["min"]), int(chunker["max"]))
        return Format(str(value["store"]), parameters, not may)
    except (ValueError, KeyError, TypeError, AttributeError, FormatError) as error:
        raise NotAStore(f"{url} is no blockmap store, or its object `format` is damaged: {error}") from error


def probe(store: Pruner) -> None:
    """Checks that an engine keeps the promises that blockmap depends on; StoreRefused names the one it breaks."""
    key = f"probe/{secrets.token_hex(8)}"

    def create(number: int) -> bool:
        try:
            store.create(key, [bytes([number]) * 4096])
        except AlreadyExists:
            return False
        return True

    try:
        with ThreadPoolExecutor(_CREATORS) as pool:
            winners = [number for number, won in enumerate(pool.map(create, range(_CREATORS))) if won]
        if len(winners) != 1:
            raise StoreRefused(
                f"{store.url} let {len(winners)} of {_CREATORS} parallel writers create one object where exactly one may: "
                "blockmap would lose updates on it; use another engine"
            )
        if store.get_range(key, 100, 300) != bytes([winners[0]]) * 200:
            raise StoreRefused(f"{store.url} does not answer a range with its bytes: use another engine")
    finally:
        store.delete(key)


def _directory(url: str) -> Path:
    scheme, colon, rest = url.partition("://")
    if not colon:
        return Path(url).absolute()
    if scheme == "file" and rest.startswith("/"):
        return Path(rest)
    raise UsageError(f"{scheme}:// is not a kind of store that is known: a directory is, or file:///DIRECTORY")
