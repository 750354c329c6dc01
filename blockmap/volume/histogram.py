"""Counts durations in fixed buckets: cheap to add to, to add up, and to hand to Prometheus."""

from bisect import bisect_left
from collections.abc import Sequence

# fmt: off
BOUNDS_S = (
    5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3,
    1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
)
# fmt: on
"""Upper ends of the buckets (seconds), the first of which is the fastest read; one more bucket has all longer durations."""


class Histogram:
    """Durations in buckets. One thread adds at a time; others may look meanwhile."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0
        """The sum of all durations."""

    def add(self, seconds: float, weight: int = 1) -> None:
        """Adds a duration that stands for `weight` of its kind."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += weight
        self.seconds += seconds * weight

    def merge(self, other: "Histogram") -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds

    def status(self) -> dict[str, object]:
        return {"bounds_s": BOUNDS_S, "counts": list(self.counts), "seconds": self.seconds}


def quantile(bounds_s: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """Returns the duration (seconds) that a share `q` of all does not exceed, as far as the buckets tell; None if there is none.

    Within a bucket the durations are taken to be spread evenly, as Prometheus' histogram_quantile does.
    """
    total = sum(counts)
    if total == 0:
        return None
    rank, below = q * total, 0
    for i, count in enumerate(counts[:-1]):
        if count and below + count >= rank:
            low = bounds_s[i - 1] if i else 0.0
            return low + (bounds_s[i] - low) * (rank - below) / count
        below += count
    return bounds_s[-1]
