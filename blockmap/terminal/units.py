"""Formats numbers for people, and takes sizes as they type them."""

import re

from blockmap.errors import UsageError

_SIZE = re.compile(r"([0-9]{1,16})([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(count: float) -> str:
    """Formats bytes with a decimal unit: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float | None) -> str:
    """Formats seconds with a unit: 12 us, 3.4 ms; a dash for None."""
    if seconds is None:
        return "-"
    value, unit = next(
        (seconds * n, unit) for n, unit in ((1e6, "us"), (1e3, "ms"), (1, "s")) if seconds * n < 1000 or n == 1
    )
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def share(ratio: float | None) -> str:
    """Formats a ratio in percent; a dash for None."""
    return "-" if ratio is None else f"{ratio * 100:.1f} %"


def parse_size(text: str) -> int:
    """Returns the bytes of a size such as 40G, whose units are powers of 1024; UsageError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is not a size: bytes, or a number with K, M, G or T are expected, as in 40G")
    return int(found[1]) * _UNITS[found[2].upper()]
