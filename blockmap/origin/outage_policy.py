"""How long a reader waits while the store is away, before its read is an error: the outage contract of an export."""

import re
from dataclasses import dataclass

from blockmap.errors import UsageError

_OPTION = re.compile(r"(?:(?P<export>.+)=)?(?P<patience>fail|wait=[^=]*)")


@dataclass(frozen=True, slots=True)
class OutagePolicy:
    """What a read that needs the store does while the store does not answer."""

    wait_s: float
    """For so long it waits for the store to come back; 0: it fails at once."""

    def __str__(self) -> str:
        return f"wait={self.wait_s:g}" if self.wait_s else "fail"


DEFAULT = OutagePolicy(60.0)
"""Linux reports a task that is blocked for 120 s as hung; a request that is under way when the store goes has up to half a
minute of its own. `blockmap attach` sets no timeout of the kernel's."""


def parse(text: str) -> OutagePolicy:
    """From `wait=SECONDS` or `fail`; UsageError."""
    if text == "fail":
        return OutagePolicy(0.0)
    what, _, seconds = text.partition("=")
    if what == "wait" and re.fullmatch(r"\d{1,7}(\.\d+)?", seconds):
        return OutagePolicy(float(seconds))
    raise UsageError(f"{text!r} says nothing about outages: wait=SECONDS does, as in wait=90, or fail")


def parse_option(text: str) -> tuple[str, OutagePolicy]:
    """From `[EXPORT=]wait=SECONDS` or `[EXPORT=]fail`: the export, empty for all, and its patience; UsageError."""
    found = _OPTION.fullmatch(text)
    if found is None:
        parse(text)
        raise AssertionError(text)
    return found["export"] or "", parse(found["patience"])
