"""Medians and spreads of repeated measurements."""

from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    low: float
    median: float
    high: float


def spread(values: list[float]) -> Spread:
    """Returns minimum, median and maximum."""
    return Spread(min(values), median(values), max(values))


def ratios(own: list[float], peer: list[float]) -> Spread:
    """Returns the spread of the ratios of measurements that were made in pairs."""
    return spread([a / b for a, b in zip(own, peer, strict=True)])
