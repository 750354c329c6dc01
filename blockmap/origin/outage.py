"""Notices when the store does not answer, and holds its readers back until it does.

A request that fails while others succeed is tried again after a short pause. If nobody's has succeeded since it was sent, the
store counts as away: nobody asks it but one probe, with pauses that grow, and readers wait for the probe's success as long as
their outage policies say. Once a reader has waited in vain, later ones whose policy is no more patient fail at once. The store
is back with the first answer to any request. A request that is under way is waited for hardly longer: it has failed then.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from blockmap.errors import BlockmapError, StoreRefused, StoreUnavailable
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.store.concurrent import spawn

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Attempts of a reader whose policy is not to wait, while others are answered."""
_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0
"""Seconds between two attempts, at first and at most: the pause doubles."""
_PROBE_PAUSE_S = 0.1
_MAX_PROBE_PAUSE_S = 2.0
"""Seconds between two probes, at first and at most."""
_PROBE_S = 2.0
"""Seconds after which another probe is sent beside one that hangs: connections of a store that is back may stay dead."""
_GRACE_S = 1.5
"""Seconds that a reader gives a request which is under way beyond its policy's wait: a policy not to wait is one for healthy
links too, and a read may take 2 s longer than its policy says."""


class Attempt:
    """What a reader has gone through to get all that one read needs, one thing after the other."""

    __slots__ = ("deadline", "failures", "last", "since", "wait_s")

    def __init__(self, now: float, policy: OutagePolicy) -> None:
        self.wait_s = policy.wait_s
        self.deadline = now + policy.wait_s
        """When it stops waiting for a store that is away."""
        self.last = self.deadline + _GRACE_S
        """When it stops waiting for a request that is under way."""
        self.since = now
        """When its latest request began."""
        self.failures = 0
        """Requests that failed."""


class OutageGate:
    """Lets readers ask the store while it answers; safe to share between threads."""

    def __init__(self, probe: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        """`probe` makes the smallest request, and raises BlockmapError if the store does not answer."""
        self._probe = probe
        self._clock = clock
        self._changed = threading.Condition()  # guards what follows; never held across I/O
        self._away: StoreUnavailable | None = None
        self._answered = float("-inf")
        self._given_up_s = -1.0
        """The longest wait that ended in vain in the present outage."""
        self._stopped = False
        self._retries = self._outages = 0

    @property
    def away(self) -> bool:
        """Returns True if the store does not answer, or nobody may ask it any more."""
        return self._away is not None or self._stopped

    @property
    def stopped(self) -> bool:
        """Returns True if nobody may ask the store any more."""
        return self._stopped

    def attempt(self, policy: OutagePolicy) -> Attempt:
        """Returns the attempt of one read, which `check` and `failed` take."""
        return Attempt(self._clock(), policy)

    def begin(self, attempt: Attempt) -> None:
        """Notes that a reader goes on to the next thing that its read needs."""
        attempt.since, attempt.failures = self._clock(), 0

    def left_s(self, attempt: Attempt) -> float:
        """Returns the seconds that a reader still waits for a request which is under way."""
        return max(attempt.last - self._clock(), 0.0)

    def overdue(self, attempt: Attempt) -> StoreUnavailable:
        """Returns what is wrong with a request that a reader has waited for in vain."""
        took = self._clock() - attempt.since
        return StoreUnavailable(f"an answer of the store was not done after {took:.1f} s")

    def check(self, attempt: Attempt) -> None:
        """Waits while the store is away, before each request. Raises StoreUnavailable where the policy's time ends."""
        if self.away:
            with self._changed:
                self._await(attempt)
            attempt.since = self._clock()

    def answered(self) -> None:
        """Notes that a request succeeded, whoever made it."""
        self._answered = self._clock()
        if self._away is not None:
            with self._changed:
                if self._away is not None:
                    _log.warning("the store answers again")
                    self._away = None
                    self._changed.notify_all()

    def failed(self, attempt: Attempt, error: StoreUnavailable) -> None:
        """Notes that a request failed, and returns when it is time for the next. Raises StoreUnavailable if there is to be none."""
        with self._changed:
            attempt.failures += 1
            if self._away is None and self._answered <= attempt.since:
                self._go_away(error)
            attempt.since = self._clock()
            if self._away is None:
                over = self._clock() >= (attempt.deadline if attempt.failures >= _ATTEMPTS else attempt.last)
                if over:
                    raise error  # others are answered: it is about what this reader wants
                self._retries += 1
                pause = min(_PAUSE_S * 2.0 ** (attempt.failures - 1), _MAX_PAUSE_S) * random.uniform(0.5, 1.0)
                self._changed.wait_for(lambda: self.away, pause)
            self._await(attempt)

    def await_return(self, since: float, error: StoreUnavailable, seconds: float) -> bool:
        """Notes that a request which nobody waits for, begun at `since`, has failed. Waits while the store is away; returns
        True if it answers."""
        with self._changed:
            if self._away is None and self._answered <= since:
                self._go_away(error)
            self._changed.wait_for(lambda: not self.away or self._stopped, seconds)
            return not self.away

    def stop(self) -> None:
        """Ends all waiting; from now on nobody may ask the store."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def status(self) -> dict[str, int]:
        with self._changed:
            return {"retries": self._retries, "outages": self._outages, "store_away": int(self._away is not None)}

    def _await(self, attempt: Attempt) -> None:
        if self._away is not None and attempt.wait_s <= self._given_up_s:
            # Otherwise a program that reads on after an error would wait anew for every block of a file.
            raise StoreUnavailable(f"the store is away: {self._away}")
        while self.away:
            if self._stopped:
                raise StoreUnavailable("the server is ending: read again when it is there")
            left = attempt.deadline - self._clock()
            if left <= 0:
                self._given_up_s = max(self._given_up_s, attempt.wait_s)
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
                spawn(self._ask).result(_PROBE_S)
                return
            except (BlockmapError, TimeoutError) as error:
                _log.debug("the store is still away: %s", error or "no answer in time")
                pause = min(pause * 2, _MAX_PROBE_PAUSE_S)

    def _ask(self) -> None:
        with suppress(StoreRefused):  # an answer, though not as it should be, which whoever reads is told
            self._probe()
        self.answered()
