"""Connections that are kept open."""

import threading
import time

from blockmap.errors import StoreUnavailable
from blockmap.origin.keepalive import ConnectionKeeper

LIMIT_S = 20.0


def test_four_at_once_again_and_again_whatever_fails() -> None:
    lock = threading.Lock()
    together = threading.Barrier(4)
    count = 0
    twice = threading.Event()

    def ping() -> None:
        nonlocal count
        together.wait(LIMIT_S)
        with lock:
            count += 1
            if count >= 12:
                twice.set()
        raise StoreUnavailable("no answer")

    keeper = ConnectionKeeper(ping, every_s=0.01)
    assert twice.wait(LIMIT_S)
    keeper.close()
    assert count % 4 == 0


def test_closing_does_not_wait_for_the_next_time() -> None:
    first = threading.Event()
    keeper = ConnectionKeeper(first.set, every_s=3600.0)
    assert first.wait(LIMIT_S)
    began = time.monotonic()
    keeper.close()
    assert time.monotonic() - began < LIMIT_S


def test_it_is_warm_when_all_have_been_asked() -> None:
    asked, answer = threading.Semaphore(0), threading.Event()

    def ping() -> None:
        asked.release()
        assert answer.wait(LIMIT_S)

    keeper = ConnectionKeeper(ping, every_s=0.01)
    assert asked.acquire(timeout=LIMIT_S)
    assert not keeper.is_warm
    answer.set()
    for _ in range(2 * 16):  # the last of these is of the second time
        assert asked.acquire(timeout=LIMIT_S)
    assert keeper.is_warm
    keeper.close()
