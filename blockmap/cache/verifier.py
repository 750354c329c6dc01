"""One thread at a time verifies, and holds the interpreter's lock while it does.

Many threads bring chunks at once. Each time that the interpreter's lock goes from one of them to another costs as much as
a hundred of its instructions or more, while waiting for a lock of one's own costs nothing.
"""

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Verifier:
    """Runs checks one after the other, for all threads that share it; a server has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # no other lock is taken while it is held

    def run(self, check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Returns what `check` returns, or raises what it raises, when no other check is running."""
        with self._lock:
            return check(*args, **kwargs)
