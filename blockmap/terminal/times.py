"""Formats times for people, in UTC."""

from datetime import UTC, datetime

_DAY_S = 86400
_UNITS = (
    ("year", 365 * _DAY_S), ("month", 30 * _DAY_S), ("week", 7 * _DAY_S), ("day", _DAY_S), ("hour", 3600), ("minute", 60),
    ("second", 1),
)  # fmt: skip


def moment(seconds: float) -> str:
    """Formats a Unix time: 2026-11-20 08:30:00."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago(seconds: float, now: float) -> str:
    """Formats a Unix time by how long ago it was: 2 hours ago, in the largest unit of which there are two at least."""
    passed = int(max(now - seconds, 0))
    for unit, length in _UNITS:
        if passed >= 2 * length:
            return f"{passed // length} {unit}s ago"
    return "just now"


def timestamp(seconds: float) -> str:
    """Formats a Unix time for machines: 2026-11-20T08:30:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
