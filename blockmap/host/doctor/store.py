"""Checks of the store, and of the clock, which a store is the judge of."""

import ctypes
import secrets
import statistics
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeVar

from blockmap.errors import BlockmapError, StoreReadOnly, StoreUnavailable
from blockmap.format import keys
from blockmap.format.refs import parse_reference
from blockmap.host.doctor.finding import Check, Examined, Finding, fault, megabytes, ok, skipped, warning
from blockmap.store import limits
from blockmap.store.base import Pruner, Reader
from blockmap.store.collections import store_time
from blockmap.store.concurrent import spawn
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store, open_writer, reach
from blockmap.store.packs import pack_key
from blockmap.store.probe import PREFIX
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.walk import leaves

_T = TypeVar("_T")

_ANSWER_SECONDS = 15.0
"""How long a call may take: an engine that does not answer is asked again for some seconds."""
_QUESTIONS = 5
_SLOW_SECONDS = 0.25
"""A round trip with which a start that has no profile takes some seconds longer than from the local disk."""
_OBJECT_BYTES = 8 << 20
_THIN_BYTES_PER_S = 3e6
"""25 Mbit/s, over which an image of 100 MB takes half a minute."""
_SKEW_SECONDS = 30.0
_REFUSED_SECONDS = 600.0
"""Object stores refuse requests that are signed 15 minutes before or after their own time."""
_TIME_ERROR = 5
"""What adjtimex(2) returns where nothing keeps the clock right."""
_NONE = "no store is named: add --store URL, or set BLOCKMAP_STORE"


def _store(subject: Examined) -> Finding:
    url = subject.store
    if not url:
        return skipped(_NONE)
    store, form = _within(lambda: open_store(url))
    return ok(f"{store.url} answers (store {form.store})")


def _writable(subject: Examined) -> Finding:
    store = _opened(subject)
    if isinstance(store, Finding):
        return store
    key = f"{PREFIX}{secrets.token_hex(8)}"
    try:
        writer, _ = open_writer(store.url)
        _within(lambda: writer.create(key, [b"blockmap doctor"]))
        _within(lambda: writer.delete(key))
    except StoreReadOnly:
        return ok("read-only for this user: images are opened, and not imported")
    return ok("can be written by this user")


def _latency(subject: Examined) -> Finding:
    store = _opened(subject)
    if isinstance(store, Finding):
        return store
    taken = sorted(_timed(lambda: store.get(keys.FORMAT, limits.FORMAT)) for _ in range(_QUESTIONS))
    median = statistics.median(taken)
    said = f"{median * 1e3:.1f} ms for a small object (median of {_QUESTIONS}, {taken[0] * 1e3:.1f} to {taken[-1] * 1e3:.1f})"
    if median > _SLOW_SECONDS:
        return warning(
            f"{said}: a start waits that long for each read that nothing foresaw",
            "have starts recorded (blockmap profile record), or put a cache (nginx) near this host",
        )
    return ok(said)


def _bandwidth(subject: Examined) -> Finding:
    store = _opened(subject)
    if isinstance(store, Finding):
        return store
    pack = _a_pack(store)
    if pack is None:
        return skipped("the store has no image whose data could be read")
    length = min(_within(lambda: store.size(pack)), _OBJECT_BYTES)
    seconds = _timed(lambda: store.get_range(pack, 0, length))
    rate = length / max(seconds, 1e-6)
    if rate < _THIN_BYTES_PER_S and seconds > 1:
        return warning(
            f"{megabytes(rate)}/s ({megabytes(length)} of one object)", "see what else uses the link to the store"
        )
    return ok(f"{megabytes(rate)}/s ({megabytes(length)} of one object)")


def _clock(subject: Examined) -> Finding:
    store = None if not subject.store else reach(subject.store)
    if store is None or store.local:
        return _by_ntp()
    try:
        skew = _within(lambda: _skew(store))
    except (BlockmapError, OSError, ValueError):
        return _by_ntp()  # a store that cannot be written, or asked at all
    said = f"this host is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store"
    action = "have the clock kept right: apt-get install systemd-timesyncd, or chrony"
    if abs(skew) > _REFUSED_SECONDS:
        return fault(f"{said}: object stores refuse requests that are signed so", action)
    return warning(said, action) if abs(skew) > _SKEW_SECONDS else ok("it agrees with the store's")


def _skew(store: Reader) -> float:
    """Returns how far the clock is ahead of the store's, in seconds; BlockmapError, OSError, ValueError."""
    if isinstance(store, Pruner):
        return time.time() - store_time(store)
    with urllib.request.urlopen(f"{store.url}/{keys.FORMAT}", timeout=_ANSWER_SECONDS) as answer:
        return time.time() - parsedate_to_datetime(answer.headers["Date"]).timestamp()


def _by_ntp() -> Finding:
    """Asks the kernel whether something keeps the clock right."""
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # modes 0: nothing is set
    if state == _TIME_ERROR:
        return warning(
            "nothing keeps it right, as far as the kernel knows", "apt-get install systemd-timesyncd, or chrony"
        )
    return ok("it is kept right, says the kernel")


def _opened(subject: Examined) -> Reader | Finding:
    """Returns the store, or why it is not asked."""
    url = subject.store
    if not url:
        return skipped(_NONE)
    try:
        return _within(lambda: open_store(url))[0]
    except BlockmapError:
        return skipped("the store does not answer")


def _a_pack(store: Reader) -> str | None:
    """Returns the key of a pack with data of an image; None where there is none."""
    names = _within(NameReader(store).catalogue)
    repository = Repository(store)
    for repo, tag in sorted(names)[:_QUESTIONS]:
        try:
            found = _within(partial(find_version, repository, parse_reference(f"{repo}:{tag}")))
            first = next(leaves(found.root, repository.packs.nodes), None)
        except BlockmapError:
            continue  # a name that was removed; `fsck` says what is damaged
        place = next(iter(first[1].placements), None) if first is not None else None
        if place is not None:
            return pack_key(place.pack)
    return None


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    _within(call)
    return time.perf_counter() - began


def _within(call: Callable[[], _T]) -> _T:
    """Returns what a call of the store returns; StoreUnavailable where it takes too long."""
    future: Future[_T] = spawn(call)
    try:
        return future.result(_ANSWER_SECONDS)
    except TimeoutError:
        raise StoreUnavailable(
            f"the store does not answer within {_ANSWER_SECONDS:.0f} s: check that it is up"
        ) from None


CHECKS = (
    Check("store", _store),
    Check("store-writable", _writable),
    Check("store-latency", _latency),
    Check("store-bandwidth", _bandwidth),
    Check("clock", _clock),
)
