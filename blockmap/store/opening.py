"""Opens and creates stores by URL."""

import json
import os
import secrets
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap import disk
from blockmap.errors import (
    AlreadyExists,
    FormatError,
    NotAStore,
    NotFound,
    StoreReadOnly,
    StoreRefused,
    StoreTooNew,
    StoreUnavailable,
    UsageError,
)
from blockmap.format import keys
from blockmap.format.chunker import Parameters
from blockmap.store.base import Pruner
from blockmap.store.directory import DirectoryStore

VERSION = 1
_CREATORS = 8
_PROBE = "probe-"
_NOTHING = (_PROBE, disk.TEMPORARY, "lost+found")
"""A directory is empty where all names begin so: an attempt that was broken off leaves some, a new file system one."""


@dataclass(frozen=True, slots=True)
class Format:
    """What the object `format` says about a store."""

    store: str
    """UUID."""
    chunker: Parameters
    writable: bool
    """False where writing needs a feature that this release does not know."""


def reach(url: str) -> Pruner:
    """The store at `url`, which is not asked anything yet; UsageError."""
    return DirectoryStore(_directory(url))


def open_store(url: str) -> tuple[Pruner, Format]:
    """The store at `url`; UsageError, NotAStore, StoreTooNew, StoreUnavailable."""
    store = reach(url)
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
    found = _contents(path)
    if keys.FORMAT in found:
        raise UsageError(f"{url} is a blockmap store already: use it as it is")
    if found:
        seen = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise NotAStore(
            f"{url} is neither empty nor a store, it holds {seen}: name a directory that is absent or empty"
        )
    probe(store)
    parameters = Parameters()
    value = {
        "chunker": {"bits": parameters.bits, "hash": "xxh3-64", "max": parameters.max, "min": parameters.min},
        "may": [],
        "requires": [],
        "store": str(uuid.uuid4()),
        "version": VERSION,
    }
    try:
        store.create(keys.FORMAT, [json.dumps(value, indent=1).encode() + b"\n"])
    except AlreadyExists:
        raise UsageError(f"{url} was made a blockmap store by somebody else just now: use it as it is") from None
    return store, parse_format(store.get(keys.FORMAT), url)


def open_or_create(url: str) -> tuple[Pruner, Format]:
    """The store at `url` for a writer, made where the directory is absent or empty; as both, and StoreReadOnly."""
    if not _contents(_directory(url)):
        try:
            return create_store(url)
        except UsageError:
            pass  # another writer was faster: its store is as good
    store, form = open_store(url)
    if not form.writable:
        raise StoreReadOnly(f"the store {url} has features that this release can read but not write: upgrade blockmap")
    return store, form


def parse_format(text: bytes, url: str) -> Format:
    """Parses the object `format`; NotAStore, StoreTooNew."""
    try:
        value: Any = json.loads(text)
        version, requires, may, chunker = value["version"], value["requires"], value["may"], value["chunker"]
        if type(version) is not int or not isinstance(requires, list) or not isinstance(may, list):
            raise FormatError("one of `version`, `requires` and `may` has the wrong type")
        if version != VERSION or requires:
            needs = ", ".join(map(str, requires)) or f"version {version}"
            raise StoreTooNew(f"the store {url} needs {needs}, which this release does not know: upgrade blockmap")
        if chunker["hash"] != "xxh3-64":
            raise StoreTooNew(
                f"the store {url} cuts by {chunker['hash']}, which this release does not know: upgrade blockmap"
            )
        numbers = [chunker[key] for key in ("bits", "min", "max")]
        if any(type(number) is not int for number in numbers):
            raise FormatError("a parameter of the chunker is not an integer")
        parameters = Parameters(*numbers)
        return Format(str(value["store"]), parameters, not may)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise NotAStore(f"{url} is no blockmap store, or its object `format` is damaged: {error}") from error


def probe(store: Pruner) -> None:
    """Checks that an engine keeps the promises that blockmap depends on; StoreRefused names the one it breaks."""
    key = f"{_PROBE}{secrets.token_hex(8)}"
    start = threading.Barrier(_CREATORS)

    def create(number: int) -> bool:
        start.wait()
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


def _contents(path: Path) -> list[str]:
    """What a directory holds, as far as it counts; nothing where it is absent."""
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith(_NOTHING))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise NotAStore(f"{path} is a file: name a directory that is absent or empty") from None
    except OSError as error:
        raise StoreUnavailable(f"cannot list {path}: {error.strerror}; check its permissions") from error
