"""Learns a profile from traces and stores it with its bundles; if the store is read-only, the host keeps the profile."""

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockmap.errors import BlockmapError, Corrupt, NotFound, StoreReadOnly, Untrusted
from blockmap.format.digest import Digest
from blockmap.format.entry import root_of
from blockmap.format.profile import Profile, ProfileItem
from blockmap.format.refs import DEFAULT_LABEL, Reference
from blockmap.format.trace import End, Trace, TraceHead
from blockmap.format.tree import Root
from blockmap.learn.block_index import BlockIndex, Numbers
from blockmap.learn.bundler import BuiltBundle, left_out_of, listed_items, lookup_in, port_to, put_bundle
from blockmap.learn.first_touches import first_touches
from blockmap.learn.local_files import LocalProfiles
from blockmap.learn.merge import Merged, Sample, merge, outside, shows_unread
from blockmap.learn.scan import is_scan
from blockmap.learn.stored_index import index_of
from blockmap.store.base import Reader, Writer
from blockmap.store.names import NameReader
from blockmap.store.profiles import ProfileLog, ProfileReader
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Trust

_OTHER_VERSIONS = 4
"""Number of other versions, the last ones named in the repository, that get bundles at once; the rest get theirs at import."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The version and the workload for which a profile is made."""

    repo: str
    label: str
    version: Digest
    root: Root


def find_subject(store: Reader, reference: Reference, trust: Trust | None = None) -> Subject:
    """Returns the version that a reference stands for now, and its workload; NotFound, Untrusted, StoreError, Corrupt."""
    found = find_version(Repository(store, trust), reference)
    return Subject(reference.repo, reference.label or DEFAULT_LABEL, found.name, found.root)


@dataclass(frozen=True, slots=True)
class Learnt:
    profile: Profile
    merged: Merged
    bundles: list[BuiltBundle]
    kept: Path | None
    """Path of the profile on this host if it could not be published."""


class ProfileLearner:
    """Learns for one version and workload; `warn` gets messages about traces and profiles that are not used.

    Of the repository's versions, those are read that a key of `trust` signed, if it has any.
    """

    def __init__(
        self,
        store: Reader,
        subject: Subject,
        local: LocalProfiles,
        warn: Callable[[str], None],
        trust: Trust | None = None,
    ) -> None:
        self._store = store
        self._repository = Repository(store, trust)
        self._log = ProfileReader(store)
        self._subject = subject
        self._local = local
        self._warn = warn
        self._layouts: dict[Digest, BlockIndex] = {}

    def learn(self, traces: Sequence[Trace]) -> Learnt:
        """Merges traces with the known profile, and stores the result. Raises NotFound, Corrupt or StoreUnavailable."""
        subject, layout = self._subject, self._layout(self._subject.root)
        old = self.known()
        items = self._ported(old) if old is not None else []
        starts = [start for start in map(self._start, traces) if start is not None]
        if not starts:
            raise NotFound(f"none of {len(traces)} traces can be used: nothing was learnt about {subject.repo}")
        merged = merge(layout, items, old.starts if old is not None else 0, starts)
        made = Profile(
            subject.repo, subject.label, 0, subject.version, subject.root.digest, merged.starts, merged.items,
            socket.gethostname(), int(time.time()),
        )  # fmt: skip
        try:
            published, bundles = self.publish(made)
        except StoreReadOnly:
            return Learnt(made, merged, [], self._local.put(made))
        return Learnt(published, merged, bundles, None)

    def publish(self, made: Profile) -> tuple[Profile, list[BuiltBundle]]:
        """Stores a profile of the subject as the newest; returns it with its bundles. Raises StoreReadOnly, StoreUnavailable."""
        if not isinstance(self._store, Writer):
            raise StoreReadOnly(f"{self._store.url} can only be read")
        published = ProfileLog(self._store).append(made)
        return published, self._put_bundles(self._store, published)

    def judge(self, trace: Trace) -> tuple[float, bool]:
        """Returns the share of the blocks read by a start that the newest profile lacks, and whether the start shows what
        is too much in it; 0 and False if the trace is no evidence."""
        start = self._start(trace) if trace.head.is_evidence else None
        if start is None:
            return 0.0, False
        old = self.known()
        known = self._ported(old) if old is not None else []
        new = outside(start.items, [*known, *(start.prefilled or ())])
        # Replayed blocks count as read, since the start may have read them from the kernel's cache.
        total = sum(item.blocks for item in start.items if start.prefilled is None) or new + _blocks(known)
        shows = old is not None and shows_unread(start, known, old.starts)
        return new / total if total else 0.0, shows

    def known(self) -> Profile | None:
        """Returns the newest profile of the store or of this host; a damaged one is ignored, so that the next replaces it."""
        repo, label = self._subject.repo, self._subject.label
        try:
            shared = self._log.newest(repo, label)
        except Corrupt as error:
            self._warn(f"what was learnt before is not used: {error}")
            shared = None
        own = self._local.get(repo, label)
        return own if own is not None and (shared is None or own.time > shared.time) else shared

    def _start(self, trace: Trace) -> Sample | None:
        head = trace.head
        try:
            if head.end == End.FAILED:
                raise NotFound("its program failed, or was not ready in time")
            if head.root == self._subject.root.digest:
                root = self._subject.root
            else:
                root = self._repository.version(head.version).root
            touches = first_touches(trace, self._layout(root))
            replayed, left = self._replayed(head, root)
            if is_scan(touches, self._layout(root), replayed):
                raise NotFound("it reads most of the image in the order of its files, as a copy does")
            items, prefilled = self._items(touches, root.digest), self._items(replayed, root.digest)
        except BlockmapError as error:
            self._warn(f"the trace of {head.repo} begun at {head.started_us} is not used: {error}")
            return None
        if root.digest != self._subject.root.digest or head.end == End.FULL:
            left = left[:0]  # of a trace that is full, later reads are not known
        return Sample(items, head.is_new, prefilled or None, left)  # after a reset there is nothing to replay

    def _replayed(self, head: TraceHead, root: Root) -> tuple[list[ProfileItem], Numbers]:
        """Returns what was replayed for a start of the volume `root`, and which blocks of that the kernel was not warmed
        with."""
        if not head.profile:
            return [], np.empty(0, np.int64)
        profile = self._log.get(head.repo, head.label, head.profile)
        lookup = None if profile.root == root.digest else lookup_in(self._repository, root)
        layout = self._layout(root)
        return listed_items(self._repository, lookup, layout, profile), left_out_of(profile, layout)

    def _ported(self, profile: Profile) -> list[ProfileItem]:
        return self._items(profile.items, profile.root)

    def _items(self, items: Sequence[ProfileItem], root: Digest) -> list[ProfileItem]:
        own = self._subject.root
        if root == own.digest:
            return list(items)
        return port_to(self._repository, lookup_in(self._repository, own), self._layout(own), items, root)

    def _layout(self, root: Root) -> BlockIndex:
        if root.digest not in self._layouts:
            self._layouts[root.digest] = index_of(self._repository, root)
        return self._layouts[root.digest]

    def _put_bundles(self, store: Writer, profile: Profile) -> list[BuiltBundle]:
        """Stores bundles for the subject and for other versions that the repository's names refer to."""
        made = []
        for version, root in {self._subject.version: self._subject.root, **self._others()}.items():
            try:
                one = put_bundle(store, version, root, self._layout(root), profile)
                ProfileLog(store).advise(profile.repo, version)
            except StoreReadOnly:
                raise
            except BlockmapError as error:
                self._warn(f"version {version.hex()[:12]} has no bundle of profile {profile.n}: {error}")
                continue
            made += [one] if one is not None else []
        return made

    def _others(self) -> dict[Digest, Root]:
        """Returns the other versions that the repository's names refer to, the last moved first."""
        names = NameReader(self._store)
        found = []
        for (repo, tag), n in names.catalogue().items():
            if repo == self._subject.repo:
                entry = names.entry(repo, tag, n)[0]
                if entry.version not in (None, self._subject.version):
                    found.append(entry)
        roots: dict[Digest, Root] = {}
        for entry in sorted(found, key=lambda entry: entry.time, reverse=True):
            if entry.version is not None and entry.version not in roots and len(roots) < _OTHER_VERSIONS:
                with suppress(Untrusted):
                    roots[entry.version] = root_of(entry, self._repository.version(entry.version, entry.number))
        return roots


def fresh_traces(store: Reader, traces: Sequence[Trace], repo: str, label: str) -> list[Trace]:
    """Returns the traces that began after this host last published a profile of the repository and label."""
    last = ProfileReader(store).latest_by(socket.gethostname(), repo, label)
    return [trace for trace in traces if last is None or trace.head.started_us > last.time * 1_000_000]


def _blocks(items: Sequence[ProfileItem]) -> int:
    return sum(item.blocks for item in items)
