"""Makes versions of a clone again and again while a program runs on it."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from blockmap.control.client import Client
from blockmap.control.clone_messages import AwaitPublished, Capture
from blockmap.errors import BlockmapError, HostError, NameMoved

_log = logging.getLogger(__name__)

_SOON_SECONDS = 1.0
"""Seconds to wait for the store before the next moment is waited for."""
ASK_SECONDS = 2.0
"""Seconds for which the server is asked at a time what a capture has become."""
NOT_YET = "captured, and published as soon as possible (ctrl-C leaves it to the server): %s"
_RESTART_SECONDS = 30.0
"""Seconds in which a server that was killed is there again."""
_POLL_SECONDS = 0.2


class RegularCommits:
    """An observer of a run: captures the clone every so often, and once more at the end; a moment at which nothing was written
    since the last one makes no version.

    A moment is passed over while the one before is not published, except the last. Where somebody else has moved the name, no
    more versions are made: what was captured and what is written later stay in the clone.
    """

    def __init__(
        self,
        client: Client,
        freeze: Callable[[], AbstractContextManager[object]],
        clone: str,
        name: str,
        every_seconds: float,
        message: str,
        author: str,
    ) -> None:
        """`freeze` keeps the clone's file system as it is for a moment; an empty `message` says when the version was made."""
        self._client = client
        self._freeze = freeze
        self._clone = clone
        self._name = name
        self._every_seconds = every_seconds
        self._message = message
        self._author = author
        self._began = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="regular commits", daemon=True)
        # What follows is the thread's until it has ended, then the caller's.
        self._pending: list[int] = []
        """Captures that are not published yet: one, and at the end perhaps another."""
        self._entry: int | None = None
        """The number of the name's entry that was made last."""
        self._has_lost = False
        """True once somebody else has moved the name."""
        self._told = ""

    def starts(self, export: str) -> None:
        self._began = time.monotonic()
        self._thread.start()

    def ended(self, code: int | None) -> None:
        self._over.set()
        self._thread.join()
        self._capture("at its end" if code is None else f"at its end, status {code}")

    def finish(self) -> None:
        """Waits until the last version is published, however long the store is away; HostError where the server has gone."""
        answered = time.monotonic()
        while self._pending:
            try:
                self._look(ASK_SECONDS)
                answered = time.monotonic()
            except HostError:
                if time.monotonic() > answered + _RESTART_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)

    def _work(self) -> None:
        due = self._began + self._every_seconds
        while not self._over.wait(max(due - time.monotonic(), 0)):
            try:
                self._look(0)
                if not self._pending:
                    self._capture(f"after {time.monotonic() - self._began:.0f} s")
                    self._look(_SOON_SECONDS)
            except HostError as error:
                self._tell(str(error))
            due = max(due + self._every_seconds, time.monotonic())

    def _capture(self, when: str) -> None:
        if self._has_lost:
            return
        after = self._entry
        if self._pending and after is not None:
            after += 1  # the entry that the moment before is about to be
        wanted = Capture(
            self._clone, self._name, self._message or f"{self._clone} {when}", self._author, after=after, skip_unchanged=True
        )  # fmt: skip
        try:
            with self._freeze():
                captured = self._client.ask(wanted).capture
            self._pending += [captured] if captured else []
        except BlockmapError as error:
            _log.warning("no version of %s %s: %s", self._clone, when, error)

    def _look(self, seconds: float) -> None:
        """Looks what has become of the first capture that was not published, and waits for that for some seconds; HostError where
        no server answers."""
        if not self._pending:
            return
        try:
            found = self._client.ask(AwaitPublished(self._pending[0], seconds))
        except NameMoved as error:
            self._has_lost, self._pending = True, []
            _log.warning(
                "%s; no more versions are made, and what is written stays in %s: see `blockmap commit %s NAME --retry`, or --drop",
                error, self._clone, self._clone,
            )  # fmt: skip
            return
        if found.export:
            self._entry, self._told = found.entry, ""
            del self._pending[0]
        elif found.failure:
            self._tell(found.failure)

    def _tell(self, failure: str) -> None:
        if failure != self._told:
            self._told = failure
            _log.warning(NOT_YET, failure)
