"""What is noted of a call of a store. It imports nothing: whoever asks a server about calls waits for no formats."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store, and how it ended."""

    op: str
    """The method: get, get_range, list, exists, size."""
    key: str
    """The object's key; of a listing, the prefix."""
    start_s: float
    """When the call began, by the monotonic clock, which is the same for all processes of a host."""
    seconds: float
    bytes: int
    """Bytes of content that came."""
    error: str | None
    """The class of the error, None where the call was answered."""
