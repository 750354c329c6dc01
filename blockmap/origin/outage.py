"""Whether the store answers, and what readers do while it does not.

A request that fails while others succeed is tried again after a short pause. Where nobody's has succeeded since it was
sent (the engine has tried a few times by then), the store counts as away: nobody asks it but one probe, with pauses that
grow, and readers wait for the probe's success as long as each of them has patience; once that of one has come to its end,
those who come later with no more of it do not wait at all. The store is back with the first answer, of whatever request.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

from blockmap.errors import BlockmapError, StoreUnavailable
from blockmap.origin.outage_policy import OutagePolicy

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Of a reader without patience, while others are answered."""
_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0
_PROBE_PAUSE_S = 0.1
_MAX_PROBE_PAUSE_S = 2.0


class Attempt:
    """A reader's attempts to get something."""

    __slots__ = ("attempts", "deadline", "since", "wait_s")

    def __init__(self, now: float, patience: OutagePolicy) -> None:
        self.wait_s = patience.wait_s
        self.deadline = now + patience.wait_s
        self.since = now
        """When the present attempt began."""
        self.attempts = 0


class OutageGate:
    """The store as its readers see it; safe to share between threads."""

    def __init__(self, probe: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._changed = threading.Condition()  # guards what follows; never held across I/O
        self._away: StoreUnavailable | None = None
        self._answered = float("-inf")
        self._given_up_s = -1.0
        """The longest patience that has come to its end in the present outage."""
        self._stopped = False
        self._retries = self._outages = 0

    @property
    def away(self) -> bool:
        """Whether the store is known not to answer, or nobody is to ask it any more."""
        return self._away is not None or self._stopped

    @property
    def stopped(self) -> bool:
        """Whether nobody is to ask it any more."""
        return self._stopped

    def trial(self, patience: OutagePolicy) -> Attempt:
        return Attempt(self._clock(), patience)

    def check(self, trial: Attempt) -> None:
        """To be called before an attempt: waits while the store is away; StoreUnavailable where patience ends."""
        if self.away:
            with self._changed:
                self._await(trial)
            trial.since = self._clock()

    def answered(self) -> None:
        """A request succeeded, whoever made it."""
        self._answered = self._clock()
        if self._away is not None:
            with self._changed:
                if self._away is not None:
                    _log.warning("the store answers again")
                    self._away = None
                    self._changed.notify_all()

    def failed(self, trial: Attempt, error: StoreUnavailable) -> None:
        """An attempt failed: returns when there is reason to make another, else raises StoreUnavailable."""
        with self._changed:
            trial.attempts += 1
            if self._away is None and self._answered <= trial.since:
                self._go_away(error)
            trial.since = self._clock()
            if self._away is None:
                if trial.attempts >= _ATTEMPTS and self._clock() >= trial.deadline:
                    raise error  # others are answered: it is about what this reader wants
                self._retries += 1
                pause = min(_PAUSE_S * 2.0 ** (trial.attempts - 1), _MAX_PAUSE_S) * random.uniform(0.5, 1.0)
                self._changed.wait_for(lambda: self.away, pause)
            self._await(trial)

    def await_return(self, since: float, error: StoreUnavailable, seconds: float) -> bool:
        """What nobody waits for failed, begun at `since`: whether the store answers, waiting for that if it is away."""
        with self._changed:
            if self._away is None and self._answered <= since:
                self._go_away(error)
            self._changed.wait_for(lambda: not self.away or self._stopped, seconds)
            return not self.away

    def stop(self) -> None:
        """Ends all waiting, now and from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def status(self) -> dict[str, int]:
        with self._changed:
            return {"retries": self._retries, "outages": self._outages, "away": int(self._away is not None)}

    def _await(self, trial: Attempt) -> None:
        if self._away is not None and trial.wait_s <= self._given_up_s:
            # A program that reads on after an error would else wait anew for every block of a file.
            raise StoreUnavailable(f"the store is away: {self._away}")
        while self.away:
            if self._stopped:
                raise StoreUnavailable("the server is ending: read again when it is there")
            left = trial.deadline - self._clock()
            if left <= 0:
                self._given_up_s = max(self._given_up_s, trial.wait_s)
                raise StoreUnavailable(f"the store is away: {self._away}")
            self._changed.wait(left)

    def _go_away(self, error: StoreUnavailable) -> None:
        _log.warning("the store does not answer, it is asked again until it does: %s", error)
        self._away = error
        self._given_up_s = -1.0
        self._outages += 1
        self._changed.notify_all()
        threading.Thread(target=self._look, args=(self._outages,), name="probe", daemon=True).start()

    def _look(self, outage: int) -> None:
        """Probes until the outage is over."""
        pause = _PROBE_PAUSE_S
        while True:
            with self._changed:
                over = self._changed.wait_for(
                    lambda: not self._away or self._stopped or self._outages != outage,
                    pause * random.uniform(0.5, 1.0),
                )
            if over:
                return
            try:
                self._probe()
            except BlockmapError as error:
                _log.debug("the store is still away: %s", error)
                pause = min(pause * 2, _MAX_PROBE_PAUSE_S)
            else:
                self.answered()
                return
