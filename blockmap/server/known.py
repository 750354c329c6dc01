"""What a host has noted of images: names, versions, documents, bundles. None of it is believed that is not found right."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from blockmap.errors import FormatError, Untrusted
from blockmap.format import entry as entries
from blockmap.format import keys, oci
from blockmap.format import version as versions
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.hint import BundleRef, Hint, decode_bundles, encode_bundles
from blockmap.format.version import Version
from blockmap.origin.records import RecordCache
from blockmap.store.names import StoredEntry
from blockmap.store.repository import VERSION_ATTEMPTS
from blockmap.store.signing import Trust

_log = logging.getLogger(__name__)


class KnownImages:
    """Reads and writes the records of one store; safe to share between threads.

    A record without the signature of a trusted key, where there are any, is as good as none: it was kept when this host
    trusted others.
    """

    def __init__(self, records: RecordCache, trust: Trust | None = None) -> None:
        self._records = records
        self._trust = trust or Trust()

    # --- names

    def entry(self, repo: str, tag: str) -> StoredEntry | None:
        """Returns what a name stood for when this host last asked."""
        found = self._records.name(repo, tag)
        if found is None:
            return None
        n, stored = found
        try:
            entry = entries.decode(stored, keys.entry(repo, tag, n))
            self._trust.check_entry(f"entry {n} of {repo}:{tag}", stored, entry.signature)
            return StoredEntry(entry, stored)
        except Untrusted:
            return None
        except FormatError as error:
            _log.warning("what this host knew of %s:%s is damaged, and forgotten: %s", repo, tag, error)
            self._records.forget_name(repo, tag)
            return None

    def confirm(self, repo: str, tag: str, seen: StoredEntry) -> None:
        """Notes what a name stands for, as its log has confirmed."""
        self._records.confirm(repo, tag, seen.entry.n, seen.stored)

    def forget_name(self, repo: str, tag: str) -> None:
        self._records.forget_name(repo, tag)

    # --- versions

    def version(self, name: Digest, number: int) -> Version | None:
        """Returns the version whose record has a number."""
        data = self._records.record(keys.version(name, number))
        if data is not None:
            with suppress(FormatError, Untrusted):
                return self._trusted(name, data)
        return None

    def keep_version(self, name: Digest, number: int, version: Version) -> None:
        self._records.keep(keys.version(name, number), versions.encode(version))

    def keep_hinted(self, hint: Hint) -> None:
        """Keeps the version that came with a hint whose entry the log has confirmed."""
        name, number, version = hint.entry.version, hint.entry.number, self.hinted_version(hint)
        if name is not None and version is not None and self.version(name, number) is None:
            self.keep_version(name, number, version)

    def hinted_version(self, hint: Hint) -> Version | None:
        """Returns the version of a hint's entry, placed where the entry says: what the hint says of that is advice."""
        entry = hint.entry
        if hint.version is None or entry.version is None:
            return None
        try:
            version = self._trusted(entry.version, hint.version)
        except (FormatError, Untrusted) as error:
            _log.warning("the hint's record of version %s is not used: %s", entry.version.hex(), error)
            return None
        if entry.root is None and version.root.digest != ABSENT:
            return None
        root, extra = replace(version.root, placement=entry.root), replace(version.extra, placement=None)
        return replace(version, root=root, extra=extra, run=entry.run)

    def _trusted(self, name: Digest, stored: bytes) -> Version:
        version = versions.decode(stored, name)
        self._trust.check_version(f"version {name.hex()}", stored, version.signature)
        return version

    def forget_version(self, name: Digest) -> None:
        """Forgets a version whose record did not work."""
        for number in range(1, VERSION_ATTEMPTS + 1):
            self._records.forget(keys.version(name, number))

    def by_digest(self, digest: Digest) -> tuple[Digest, Version] | None:
        """Returns name and record of the version that has a digest, or a document of which has it."""
        told = self._records.record(keys.oci(digest, 0))
        document = None
        if told is not None:
            with suppress(FormatError):
                document = oci.decode(told)
        for name in (digest, *([] if document is None else [document.version])):
            for number in range(1, VERSION_ATTEMPTS + 1):
                version = self.version(name, number)
                if version is None:
                    continue
                if name == digest or (document is not None and document.fits(digest, version)):
                    return name, version
        return None

    def keep_document(self, digest: Digest, stored: bytes) -> None:
        """Keeps the record that leads from a document's digest to its version."""
        self._records.keep(keys.oci(digest, 0), stored)

    # --- bundles

    def bundles(self, name: Digest) -> tuple[BundleRef, ...]:
        """Returns the bundles of a version whose heads were verified on this host."""
        data = self._records.record(keys.bundles(name))
        with suppress(FormatError):
            return () if data is None else decode_bundles(data)
        return ()

    def judge_bundle(self, name: Digest, about: BundleRef, good: bool) -> None:
        """Keeps the reference to a bundle whose head was verified; forgets one that turned out wrong."""
        kept: Sequence[BundleRef] = self.bundles(name)
        if good != (about in kept):
            others = [each for each in kept if each.label != about.label]
            self._records.keep(keys.bundles(name), encode_bundles([*others, about] if good else others))
