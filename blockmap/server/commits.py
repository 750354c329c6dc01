"""Commits of clones in two steps: a moment is captured, which is local and takes milliseconds; then it is published.

What is captured is on record until it is published, in order, by a thread that has nothing else to do: through restarts of
the server, and as often as it takes while the store is away. Where the name has moved on, a person decides.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from blockmap.commit.task import PublishedCapture, PublishTask
from blockmap.errors import BlockmapError, NameMoved, NotFound
from blockmap.server.clones import Clones
from blockmap.volume.clone_table import CaptureRecord

_log = logging.getLogger(__name__)

_RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0)
"""After a failure the store is left alone for so long; the last is repeated."""


class CapturePublisher(Protocol):
    """Makes versions of captures."""

    def prepare(self) -> None:
        """Gets ready, as something may be captured soon; never raises."""

    def publish(self, task: PublishTask) -> PublishedCapture:
        """Returns what a capture has become; NameMoved, or a BlockmapError that may pass."""


class Commits:
    """Has captures published one after another; safe to share between threads."""

    def __init__(
        self,
        clones: Clones,
        publish: Callable[[CaptureRecord, bool], PublishedCapture],
        rebase: Callable[[CaptureRecord, str], None],
    ) -> None:
        """`publish` makes a version of a capture, and is told if that is the first attempt; NameMoved, or a BlockmapError that
        may pass. `rebase` puts a clone on the version that a capture of it has become, given the version's export name."""
        self._clones = clones
        self._publish = publish
        self._rebase = rebase
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._changed = threading.Condition(self._lock)
        self._is_running = False
        self._closed = False
        self._news = False
        """True if there may be something that the thread has not seen."""
        self._fresh: set[int] = set()
        """Numbers of captures at which nobody has made an attempt."""
        self._outcomes: dict[int, PublishedCapture | NameMoved | NotFound] = {}
        """What captures have become in this server's time."""
        self._failures: dict[int, str] = {}
        """Why the last attempt at a capture failed."""

    def begin(self, fresh: int | None = None) -> None:
        """Has published what is captured: at the start of a server, and after each change; `fresh` is the number of what was
        captured just now."""
        with self._lock:
            if self._closed:
                return
            if fresh is not None:
                self._fresh.add(fresh)
            self._news = True
            self._outcomes = {n: each for n, each in self._outcomes.items() if not isinstance(each, NameMoved)}
            self._changed.notify_all()
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._work, name="commit", daemon=True).start()

    def wait(self, number: int, seconds: float) -> PublishedCapture | str:
        """Returns what a capture has become, or after `seconds` why it is not published yet, as far as that is known.

        NameMoved where a person must decide, NotFound where it was dropped.
        """
        end = time.monotonic() + seconds
        with self._lock:
            while number not in self._outcomes and not self._closed and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            outcome, failure = self._outcomes.get(number), self._failures.get(number, "")
        if isinstance(outcome, BlockmapError):
            raise outcome
        return failure if outcome is None else outcome

    def forget(self, numbers: Sequence[int]) -> None:
        """Tells whoever waits for captures that they were dropped."""
        for number in numbers:
            self._note(number, NotFound("what was captured was dropped meanwhile: the clone has it, and no version"))

    def close(self) -> None:
        """Publishes no more; what is captured stays on record."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        failed = 0
        while True:
            with self._lock:
                self._news = False
            try:
                is_done = self._publish_all()
            except Exception:  # whatever it is: nobody else would publish what is captured
                _log.exception("what is captured is published later")
                is_done = False
            failed = 0 if is_done else failed + 1
            with self._lock:
                if failed and not self._news and not self._closed:
                    self._changed.wait(_RETRY_SECONDS[min(failed, len(_RETRY_SECONDS)) - 1])
                if self._closed or not (failed or self._news):
                    self._is_running = False
                    return

    def _publish_all(self) -> bool:
        """Returns False if something is to be tried again later."""
        blocked: set[int] = set()
        is_done = True
        try:
            captures = self._clones.captures()
        except BlockmapError as error:
            _log.error("what is captured cannot be published: %s", error)
            return False
        for capture in captures:
            if self._closed:
                return True
            if capture.clone in blocked:
                continue
            if capture.conflict:
                blocked.add(capture.clone)
                self._note(capture.id, NameMoved(capture.conflict))
                continue
            try:
                with self._lock:
                    is_first = capture.id in self._fresh
                    self._fresh.discard(capture.id)
                done = self._publish(capture, is_first)
                self._rebase(capture, done.export)
                self._note(capture.id, done)
            except NameMoved as error:
                blocked.add(capture.clone)
                try:
                    self._clones.note_conflict(capture.id, str(error))
                except BlockmapError as failure:
                    is_done = False
                    _log.warning("a conflict is not on record yet: %s", failure)
                self._note(capture.id, error)
                _log.warning("a capture waits for a decision: %s", error)
            except NotFound as error:
                blocked.add(capture.clone)
                _log.info("a capture has gone: %s", error)
            except BlockmapError as error:
                blocked.add(capture.clone)
                is_done = False
                with self._lock:
                    self._failures[capture.id] = str(error)
                _log.warning("a capture is not published yet: %s", error)
        return is_done

    def _note(self, number: int, outcome: PublishedCapture | NameMoved | NotFound) -> None:
        with self._lock:
            self._outcomes[number] = outcome
            self._failures.pop(number, None)
            self._changed.notify_all()
