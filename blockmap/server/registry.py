"""Keeps the open volumes: each version once however many clients it has, and one start for each label of it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from blockmap.fetch.fetcher import Fetcher
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.server.opener import ResolvedStart
from blockmap.volume.clone import CloneVolume
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.start import Start
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


class Registry:
    """Holds all that is open in one server; safe to share between threads."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._open: dict[int, Opened] = {}
        """By number, the latest at the end."""
        self._opened = 0
        self._versions: dict[int, Volume] = {}
        """What each connection reads of the store, by the same numbers: its volume, or the base of its clone."""

    def volume(self, found: ResolvedStart, policy: OutagePolicy) -> Volume:
        """Returns the volume of a version, shared by all that have it open under one policy."""
        with self._lock:
            return self._volume(found, policy)

    def open(self, found: ResolvedStart, policy: OutagePolicy, clone: CloneVolume | None = None) -> Opened:
        """Opens a version, or a clone of it, for a connection; shares the volume with those of its policy, and the start with
        those of its label."""
        traced = clone is None or clone.untouched
        with self._lock:
            self._opened += 1
            number = self._opened
            running = self._running(found)
            version = self._volume(found, policy) if clone is None else clone.base
            volume, start = clone or version, running or _begin(found)
            self._open[number] = Opened(volume, start, policy, running is None, lambda: self._close(number), traced)
            self._versions[number] = version
            return self._open[number]

    def note_profile(self, found: ResolvedStart, number: int) -> None:
        """Notes the profile with which the kernel is warmed, for the open starts of a version and label."""
        with self._lock:
            for each in self._open.values():
                if each.start.key == found.key:
                    each.start.profile = number

    def status(self) -> dict[str, object]:
        """Returns the volumes that are open, and how often any was opened."""
        with self._lock:
            volumes = [each.volume for each in self._open.values()]
            opened = self._opened
        exports = [
            {"export": each.name, "connections": volumes.count(each), "size": each.size, "waiting": each.waiting}
            for each in dict.fromkeys(volumes)
        ]
        return {"exports": exports, "opens": opened}

    def _volume(self, found: ResolvedStart, policy: OutagePolicy) -> Volume:
        resolved = found.resolved
        for number, version in self._versions.items():
            if version.name == resolved.pinned and self._open[number].policy == policy:
                return version
        return ReadOnlyVolume(resolved.pinned, resolved.root, self._fetcher, policy)

    def _running(self, found: ResolvedStart) -> Start | None:
        """Returns the latest start of a version and label, unless another bundle is replayed by now."""
        latest = next((each.start for each in reversed(self._open.values()) if each.start.key == found.key), None)
        return latest if latest is not None and found.replay in (None, latest.replay) else None

    def _close(self, number: int) -> None:
        with self._lock:
            del self._open[number], self._versions[number]


def _begin(found: ResolvedStart) -> Start:
    return Start(found.resolved.pinned, found.resolved.root, found.label, found.replay)
