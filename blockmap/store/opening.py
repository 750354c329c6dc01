"""Opens and creates stores by URL."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from blockmap import durable
from blockmap.errors import (
    AlreadyExists,
    Corrupt,
    FormatError,
    NotAStore,
    NotFound,
    StoreReadOnly,
    StoreTooNew,
    UsageError,
)
from blockmap.format import keys
from blockmap.format.chunker import Parameters
from blockmap.store import limits, probe
from blockmap.store.base import Pruner, Reader, Writer
from blockmap.store.directory import open_directory

VERSION = 1
_WEB = ("http", "https")
_BUCKETS = ("s3", "az", "gs")
_NOTHING = (probe.PREFIX, durable.TEMPORARY, "lost+found")
"""Names that an empty place may have, by their beginnings: interrupted attempts leave some, a new file system has one."""


class StoreLocation(Pruner, Protocol):
    """Where a store is or could be made."""

    def contents(self) -> Sequence[str]:
        """Returns names at the top: all, or some of very many; none where the place is absent or empty."""


@dataclass(frozen=True, slots=True)
class Format:
    """What the object `format` says about a store."""

    store: str
    """The store's UUID."""
    chunker: Parameters
    writable: bool
    """False where writing needs a feature that this release does not know."""


def open_store(url: str) -> tuple[Reader, Format]:
    """Returns the store at `url`, to read; UsageError, NotAStore, StoreTooNew, StoreUnavailable."""
    store = reach(url)
    return store, _format(store)


def open_writer(url: str) -> tuple[Pruner, Format]:
    """Returns the store at `url`, to write; UsageError, NotAStore, StoreTooNew, StoreReadOnly, StoreUnavailable."""
    store = _place(url)
    return store, _writable(store)


def create_store(url: str) -> tuple[Pruner, Format]:
    """Probes the engine at `url` and makes a store there; UsageError, NotAStore, StoreRefused, StoreReadOnly."""
    store = _place(url)
    found = _contents(store)
    if keys.FORMAT in found:
        raise UsageError(f"{store.url} is a blockmap store already: use it as it is")
    if found:
        seen = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise NotAStore(
            f"{store.url} is neither empty nor a store, it holds {seen}: name a directory, or a prefix of a bucket, "
            "that is absent or empty"
        )
    probe.check(store)
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
        raise UsageError(f"{store.url} was made a blockmap store by somebody else just now: use it as it is") from None
    return store, _format(store)


def check_unchanged(store: Reader, form: Format) -> None:
    """Checks that a store that is written to is still what `form` says; NotAStore, StoreTooNew, StoreReadOnly."""
    if _writable(store).store != form.store:
        raise NotAStore(f"another store was made at {store.url} meanwhile, which lacks what the old one had: try again")


def location(url: str) -> str:
    """Returns the one form of a store's URL, which means the same in any working directory and holds no secrets; UsageError."""
    return reach(url).url


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


def reach(url: str) -> Reader:
    """Returns the store at `url`, without any call yet; UsageError."""
    if _scheme(url) not in _WEB:
        return _place(url)
    opened: Reader = import_module("blockmap.store.http").open_http(url)
    return opened


def _place(url: str) -> StoreLocation:
    scheme = _scheme(url)
    if scheme in _WEB:
        raise StoreReadOnly(f"{url} is read through a web server: write to the store behind it instead")
    if scheme in _BUCKETS:
        # A store in a directory does without its library, which takes a tenth of the time of a command that reads little.
        opened: StoreLocation = import_module("blockmap.store.objects").open_objects(url)
        return opened
    if scheme in ("", "file"):
        return open_directory(url)
    raise UsageError(
        f"{scheme}:// is not a kind of store that is known: a directory is, file:///DIRECTORY, s3://BUCKET/PREFIX, "
        "az://CONTAINER/PREFIX, gs://BUCKET/PREFIX, and http(s)://HOST/PATH to read"
    )


def _scheme(url: str) -> str:
    """Returns a URL's scheme, "" for a path; UsageError where it may hold secrets, which the message leaves out."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        return ""
    if scheme != "file" and any(mark in rest for mark in "@?#"):
        raise UsageError(
            f"a store's {scheme}:// URL has no user, password, query or fragment, since it is logged and shown: leave out what "
            "goes with @, ? and #, and give credentials in the environment, as the README says"
        )
    return scheme


def _contents(place: StoreLocation) -> list[str]:
    return [name for name in place.contents() if not name.startswith(_NOTHING)]


def _format(store: Reader) -> Format:
    try:
        text = store.get(keys.FORMAT, limits.FORMAT)
    except Corrupt as error:
        raise NotAStore(f"{store.url} is no blockmap store, or its object `format` is damaged: {error}") from error
    except NotFound:
        made = "" if not isinstance(store, Writer) else f", or make one with `blockmap create {store.url}`"
        raise NotAStore(f"{store.url} is not a blockmap store: correct --store{made}") from None
    return parse_format(text, store.url)


def _writable(store: Reader) -> Format:
    form = _format(store)
    if not form.writable:
        raise StoreReadOnly(
            f"the store {store.url} has features that this release can read but not write: upgrade blockmap"
        )
    return form
