"""What is done with a store: its images listed and compared, their names moved, and what names stood for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from blockmap.api.clones import CloneHost
from blockmap.api.history import GraphVersion, LogEntry, log_entries, version_graph
from blockmap.api.images import NamedImage, VersionDifference, compare_versions, list_images
from blockmap.format.refs import parse_name, parse_reference
from blockmap.local.paths import default_cache, need_store
from blockmap.publish.reliance import tag_version
from blockmap.store.base import Reader
from blockmap.store.key_files import read_signer, read_trusted
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import Format, open_store, open_writer
from blockmap.store.signing import Signer, Trust


@dataclass(frozen=True, slots=True)
class Tagged:
    """What a name was made to stand for."""

    name: str
    digest: str
    """The version as sha256:HEX."""
    entry: int | None
    """The number of the name's new entry; None where it stood for it already."""


@dataclass(frozen=True, slots=True)
class Untagged:
    """A name that was removed."""

    name: str
    entry: int
    """The number of the entry that removed it."""


class ImageStore(CloneHost):
    """A store, with this host's clones and attachments of its images. Methods raise UsageError, StoreError and Corrupt, and
    what else they say."""

    def images(self, wanted: str | None = None, *, data: bool = False) -> list[NamedImage]:
        """Returns what names stand for, by name; `wanted` is a repository, or one name in it. Images that are not opened for lack
        of a trusted signature are among them.

        With `data`, how much data each has, and what it takes in the store, alone and with others: reads their trees, once on
        this host."""
        trust = self._trusted  # what is wrong with the keys is said before the store is asked
        store, form = self._opened
        return list_images(store, trust, wanted, data, (self._cache or default_cache()) / f"trees-{form.store}.db")

    def log(self, name: str) -> Iterator[LogEntry]:
        """Yields what a name stood for, the newest first; NotFound."""
        return log_entries(self._reader, name)

    def graph(self, names: Sequence[str] = (), *, count: int = 100) -> list[GraphVersion]:
        """Returns the versions that names stand or stood for, those of all names where none is given, and what they were made
        of: each before its parents, at most `count`. NotFound."""
        return version_graph(self._reader, names, count)

    def diff(self, old: str, new: str, *, files: bool = True) -> VersionDifference:
        """Compares two versions: regular files by content, renamed ones too, unless `files` is False, and the bytes of the
        volume. NotFound, Untrusted."""
        trust = self._trusted
        return compare_versions(self._reader, trust, (old, new), files)

    def tag(self, source: str, name: str, *, message: str = "") -> Tagged:
        """Makes a name stand for what `source` stands for; moves no data. NotFound, Untrusted, Collected."""
        target = NameTarget(*parse_name(name))
        trust, signer = self._trusted, self._signer
        store, _ = open_writer(need_store(self._url))
        draft, entry = tag_version(store, parse_reference(source), target, message, trust, signer)
        assert draft.version is not None
        return Tagged(str(target), f"sha256:{draft.version.hex()}", None if entry is None else entry.n)

    def untag(self, name: str, *, message: str = "") -> Untagged:
        """Makes a name stand for nothing; its history stays, and the image under other names. NotFound, NameMoved."""
        target = NameTarget(*parse_name(name))
        signer = self._signer
        store, _ = open_writer(need_store(self._url))
        return Untagged(str(target), NameLog(store, signer=signer).remove(target, message).n)

    @cached_property
    def _opened(self) -> tuple[Reader, Format]:
        return open_store(need_store(self._url))

    @property
    def _reader(self) -> Reader:
        return self._opened[0]

    @cached_property
    def _trusted(self) -> Trust:
        return Trust(read_trusted(self._trust))

    @property
    def _signer(self) -> Signer | None:
        return None if self._sign is None else read_signer(self._sign)
