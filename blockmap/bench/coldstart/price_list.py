"""Says what starts cost by an object store's price list."""

from dataclasses import dataclass

STARTS = 1000


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars, as price lists have them."""

    per_1000_requests: float
    per_gb: float
    """For 10^9 bytes sent."""

    def of_starts(self, requests: float, sent_bytes: float) -> float:
        """Returns the cost of 1,000 starts, given the requests and bytes of one."""
        return STARTS * (requests / 1000 * self.per_1000_requests + sent_bytes / 1e9 * self.per_gb)
