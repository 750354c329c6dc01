"""Runs several calls of a store at once, each in a daemon thread: a process that ends does not wait for them."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

_AT_ONCE = 16


def spawn(call: Callable[[], _T]) -> Future[_T]:
    """Starts a call in a thread of its own; a caller that does not need the result any more drops it."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="store call", daemon=True).start()
    return future


def each(call: Callable[[_T], _R], items: Iterable[_T], at_once: int = _AT_ONCE) -> list[_R]:
    """Returns the results of a call for each item, in order, `at_once` at once; raises what one of them raised."""
    wanted = list(items)
    results: dict[int, _R] = {}
    waiting = iter(enumerate(wanted))
    lock = threading.Lock()  # guards `waiting`

    def work() -> None:
        while True:
            with lock:
                found = next(waiting, None)
            if found is None:
                return
            results[found[0]] = call(found[1])

    others = [spawn(work) for _ in range(min(at_once, len(wanted)) - 1)]
    work()
    for other in others:
        other.result()
    return [results[at] for at in range(len(wanted))]
