"""Says how long reads of an export wait while the store is away, before they fail."""

import re
from dataclasses import dataclass

from blockmap.errors import UsageError

_OPTION = re.compile(r"(?:(?P<export>.+)=)?(?P<policy>fail|wait=[^=]*)")


@dataclass(frozen=True, slots=True)
class OutagePolicy:
    """Says what a read that needs the store does while the store does not answer."""

    wait_s: float
    """Seconds that a read waits for the store to come back; with 0 it fails at once."""

    def __str__(self) -> str:
        return f"wait={self.wait_s:g}" if self.wait_s else "fail"


DEFAULT = OutagePolicy(60.0)
"""Reads wait 60 s: Linux reports a task as hung after 120 s, and a request that is under way when the store goes away may take
half a minute of its own. `blockmap attach` sets no timeout of the kernel's."""


def parse(text: str) -> OutagePolicy:
    """Parses `wait=SECONDS` or `fail`. Raises UsageError."""
    if text == "fail":
        return OutagePolicy(0.0)
    what, _, seconds = text.partition("=")
    if what == "wait" and re.fullmatch(r"\d{1,7}(\.\d+)?", seconds):
        return OutagePolicy(float(seconds))
    raise UsageError(f"{text!r} says nothing about outages: wait=SECONDS does, as in wait=90, or fail")


def parse_option(text: str) -> tuple[str, OutagePolicy]:
    """Parses `[EXPORT=]wait=SECONDS` or `[EXPORT=]fail`: returns the export, empty for all, and its policy. Raises UsageError."""
    found = _OPTION.fullmatch(text)
    if found is None:
        parse(text)
        raise AssertionError(text)
    return found["export"] or "", parse(found["policy"])
