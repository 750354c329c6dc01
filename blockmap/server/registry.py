"""Keeps the open volumes: each version once however many clients it has, and one start for each label of it."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from blockmap.fetch.fetcher import Fetcher
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.server.opener import ResolvedStart
from blockmap.volume.clone import CloneVolume
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.start import Key, Start
from blockmap.volume.volume import Volume


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An open connection's volume, and the start that it belongs to."""

    volume: Volume
    start: Start
    policy: OutagePolicy
    is_first: bool
    """True if the start begins with this connection."""
    close: Callable[[], object]
    """To be called once, when the connection reads no more."""
    is_traced: bool = True
    """False where reads of the image say nothing of what a start needs, since a clone has some of it in its layers."""


_K = TypeVar("_K")
_T = TypeVar("_T")

_VersionKey = tuple[str, OutagePolicy]
"""A version's export name by digest, and the policy of those who have it open."""


class Registry:
    """Holds all that is open in one server; safe to share between threads.

    An open and a close cost the same however many connections there are.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._versions: dict[_VersionKey, list[ReadOnlyVolume]] = {}
        """What connections read of the store: volumes, and bases of clones."""
        self._starts: dict[Key, list[Start]] = {}
        """The latest start of a version and label is at the end; there are more while connections are left to an earlier one,
        which replays another bundle."""
        self._sharing: Counter[Volume | Start] = Counter()
        """How many connections share each of these."""
        self._exported: Counter[Volume] = Counter()
        """How many connections each volume has, clones among them."""
        self._opened = 0

    def volume(self, found: ResolvedStart, policy: OutagePolicy) -> ReadOnlyVolume:
        """Returns the volume of a version, shared by all that have it open under one policy."""
        with self._lock:
            return self._volume(found, policy)

    def open(self, found: ResolvedStart, policy: OutagePolicy, clone: CloneVolume | None = None) -> Opened:
        """Opens a version, or a clone of it, for a connection; shares the volume with those of its policy, and the start with
        those of its label, unless another bundle is replayed by now."""
        traced = clone is None or clone.untouched
        with self._lock:
            self._opened += 1
            version = self._volume(found, policy) if clone is None else clone.base
            volume, key = clone or version, (version.name, policy)
            versions = self._versions.setdefault(key, [])
            if version not in versions:
                versions.append(version)
            starts = self._starts.setdefault(found.key, [])
            is_first = not starts or found.replay not in (None, starts[-1].replay)
            if is_first:
                starts.append(Start(found.resolved.pinned, found.resolved.root, found.label, found.replay))
            start = starts[-1]
            self._sharing.update((version, start))
            self._exported[volume] += 1
        return Opened(volume, start, policy, is_first, lambda: self._close(key, version, volume, start), traced)

    def note_profile(self, found: ResolvedStart, number: int) -> None:
        """Notes the profile with which the kernel is warmed, for the open starts of a version and label."""
        with self._lock:
            for start in self._starts.get(found.key, ()):
                start.profile = number

    def status(self) -> dict[str, object]:
        """Returns the volumes that are open, and how often any was opened."""
        with self._lock:
            volumes, opened = list(self._exported.items()), self._opened
        exports = [
            {"export": each.name, "connections": connections, "size": each.size, "waiting": each.waiting}
            for each, connections in volumes
        ]
        return {"exports": exports, "opens": opened}

    def _volume(self, found: ResolvedStart, policy: OutagePolicy) -> ReadOnlyVolume:
        resolved = found.resolved
        versions = self._versions.get((resolved.pinned, policy))
        return versions[0] if versions else ReadOnlyVolume(resolved.pinned, resolved.root, self._fetcher, policy)

    def _close(self, key: _VersionKey, version: ReadOnlyVolume, volume: Volume, start: Start) -> None:
        with self._lock:
            _leave(self._exported, volume)
            if _leave(self._sharing, version):
                _remove(self._versions, key, version)
            if _leave(self._sharing, start):
                _remove(self._starts, start.key, start)


def _leave(connections: Counter[_T], shared: _T) -> bool:
    """Counts a connection less; returns True if it was the last."""
    connections[shared] -= 1
    if connections[shared]:
        return False
    del connections[shared]
    return True


def _remove(lists: dict[_K, list[_T]], key: _K, item: _T) -> None:
    """Takes an item out of the list of a key, and an empty list with its key."""
    lists[key].remove(item)
    if not lists[key]:
        del lists[key]
