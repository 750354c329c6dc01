"""Formats times for people, in UTC."""

from datetime import UTC, datetime


def moment(seconds: float) -> str:
    """Formats a Unix time: 2026-11-20 08:30:00."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def timestamp(seconds: float) -> str:
    """Formats a Unix time for machines: 2026-11-20T08:30:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
