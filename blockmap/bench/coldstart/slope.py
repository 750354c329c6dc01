"""Fits a line through measurements, whose slope a few slow ones do not change."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist, median
from typing import NamedTuple

_CONFIDENCE = 0.95


class Slope(NamedTuple):
    low: float
    slope: float
    high: float


def theil_sen(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Returns the median slope over all pairs of points (x, y), with its 95 % interval; None where all x are equal.

    Theil 1950 and Sen 1968, section 4: the interval's ends are order statistics of the slopes, from the normal
    approximation of Kendall's statistic with ties.
    """
    slopes = sorted(
        (y2 - y1) / (x2 - x1) for at, (x1, y1) in enumerate(points) for x2, y2 in points[at + 1 :] if x2 != x1
    )
    if not slopes:
        return None
    variance = (_term(len(points)) - _ties([x for x, _ in points]) - _ties([y for _, y in points])) / 18
    reach = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * math.sqrt(max(variance, 0))
    low = max(round((len(slopes) - reach) / 2) - 1, 0)
    high = min(round((len(slopes) + reach) / 2), len(slopes) - 1)
    return Slope(slopes[low], median(slopes), slopes[high])


def _ties(values: Sequence[float]) -> int:
    return sum(_term(count) for count in Counter(values).values())


def _term(count: int) -> int:
    return count * (count - 1) * (2 * count + 5)
