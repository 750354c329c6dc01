"""Keeps the Python thread state of nbdkit's worker threads.

nbdkit makes and destroys a thread state around each callback, which costs a mapping and an unmapping of memory under the
GIL, and empties `threading.local`. One more PyGILState_Ensure keeps the state alive; a destructor that runs when the
thread ends takes it back. C++ thread destructors run before pthread's, so Python's own key is still there then.

A thread keeps the tally of its reads with its state: a worker thread belongs to one connection.

Where libc has no __cxa_thread_atexit_impl (it is glibc's), states are not kept, and reads are slower.
"""

import contextlib
import ctypes
import threading

from blockmap.volume.reads import Tally

here = threading.local()
"""Holds `tally` in a thread whose state is kept."""

_ensure = ctypes.pythonapi.PyGILState_Ensure
_release = ctypes.pythonapi.PyGILState_Release
_release.restype = None
_release.argtypes = [ctypes.c_int]
_LOCKED = 0


def _forget(_: object) -> None:
    _release(_LOCKED)


_destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_forget)
_at_thread_exit = None
with contextlib.suppress(AttributeError):
    _at_thread_exit = ctypes.CDLL(None).__cxa_thread_atexit_impl
    _at_thread_exit.argtypes = [ctypes.c_void_p] * 3


def keep(tally: Tally) -> Tally:
    """Keeps the state of the calling thread, and its tally; for worker threads, once each."""
    here.tally = tally
    if _at_thread_exit is not None:
        _ensure()
        # The third argument must not be NULL: glibc looks an object file up by it.
        _at_thread_exit(ctypes.cast(_destructor, ctypes.c_void_p), None, ctypes.cast(_ensure, ctypes.c_void_p))
    return tally
