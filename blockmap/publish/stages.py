"""Measures where an import's processor time goes."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Processor seconds of the calling threads, added up by stage; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _seconds
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Counts the processor time of this thread inside the block as `stage`."""
        start = time.thread_time()
        try:
            yield
        finally:
            self.add(stage, time.thread_time() - start)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds

    def seconds(self) -> dict[str, float]:
        with self._lock:
            return dict(self._seconds)
