"""Remembers the traces that have ended while a server ran."""

import logging
import threading
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from blockmap.format.trace import DECLARED, EXACT, End, TraceHead
from blockmap.trace.recorder import rewrite_head
from blockmap.volume.start import Key

_log = logging.getLogger(__name__)

_REMEMBERED = 32
_LATE_NS = 600 * 10**9
"""A program that is ready later than this after its start was started again meanwhile."""


@dataclass(slots=True, eq=False)
class _Ended:
    key: Key
    path: Path
    head: TraceHead
    reads: int
    began_ns: int


class EndedTraces:
    """Remembers the latest traces; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._latest: deque[_Ended] = deque(maxlen=_REMEMBERED)
        """Traces that ended, the newest first."""
        self._at_ns: dict[str, int] = {}
        """When the last trace of each export ended."""

    def note_end(self, export: str, began_ns: int, now_ns: int, apart_ns: int) -> bool:
        """Notes that a trace of an export by digest ends; returns True if no other ended within `apart_ns` before it began,
        or since."""
        with self._lock:
            alone = self._at_ns.get(export, began_ns - apart_ns - 1) < began_ns - apart_ns
            self._at_ns = {name: at for name, at in self._at_ns.items() if now_ns - at < apart_ns + _LATE_NS}
            self._at_ns[export] = now_ns
            return alone

    def add(self, key: Key, path: Path, head: TraceHead, reads: int, began_ns: int) -> None:
        with self._lock:
            self._latest.appendleft(_Ended(key, path, head, reads, began_ns))

    def ready(self, key: Key, now_ns: int, failed: bool) -> Path | None:
        """Has the newest trace of a start say that its program is ready now, or has failed; returns None if it says something
        like that already."""
        with self._lock:
            found = next((each for each in self._latest if each.key == key), None)
            if found is None or found.head.ready_ms or found.head.end in (End.OPEN, End.CLOSED, End.FAILED):
                return None
            if now_ns - found.began_ns > _LATE_NS:
                return None
            if failed:
                found.head = replace(found.head, end=End.FAILED)
            else:
                found.head = replace(found.head, ready_ms=(now_ns - found.began_ns) // 1_000_000)
        try:
            rewrite_head(found.path, found.head)
        except OSError as error:
            _log.warning("%s does not say what became of the program: %s", found.path, error)
        return found.path

    def described(self) -> list[dict[str, object]]:
        """Returns the description of each, the newest first."""
        with self._lock:
            return [
                {**describe(each.key, each.path, each.head, each.reads), "state": each.head.end.name.lower()}
                for each in self._latest
            ]


def describe(key: Key, path: Path, head: TraceHead, reads: int) -> dict[str, object]:
    """Returns the description of a trace in a server's status."""
    return {
        "path": str(path), "export": key[0], "label": key[1], "started": head.started_us / 1e6, "reads": reads,
        "new": head.is_new, "declared": bool(head.flags & DECLARED), "exact": bool(head.flags & EXACT),
        "ready_ms": head.ready_ms, "profile": head.profile,
    }  # fmt: skip
