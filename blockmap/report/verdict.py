"""Says in a sentence how a start went, and how two of them differ. Pure."""

from blockmap.format.trace import End
from blockmap.report.data import ReportRun
from blockmap.terminal.units import size

_SAME_S = 0.02
"""Seconds that two starts of one kind differ by anyhow."""
_LEAST_S = 0.005
"""Seconds that the figure of a wait does not round to nothing."""
_SAME_SHARE = 0.02
"""Likewise, the share of the bytes."""


def seconds(value: float) -> str:
    """Formats seconds as 0.33 s, so that two of them compare."""
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def verdict(run: ReportRun) -> str:
    """Returns how a start went."""
    if not len(run.touched):
        return "Nothing was read."
    quiet = ", then went quiet" * (run.head.end == End.QUIET or bool(run.later_reads))
    parts = [f"Ready after {seconds(run.end_s)}" if run.head.ready_ms else f"Read for {seconds(run.end_s)}{quiet}"]
    if run.waits is None:
        parts.append(f"{size(run.touched_bytes)} were read; what it waited for was not recorded")
    else:
        parts.append(_waiting(run))
        share = run.ahead_share or 0.0
        parts.append(f"{_percent(share)} of the {size(run.touched_bytes)} that it read came ahead of need")
    return "; ".join(parts) + "."


def _waiting(run: ReportRun) -> str:
    waited = waited_s(run)
    if waited >= _LEAST_S:
        return f"{seconds(waited)} of it waiting for the store"
    return f"it {'hardly' if waited else 'never'} waited for the store"


def waited_s(run: ReportRun) -> float:
    """Returns for how long any read of a start waited; the waits are known."""
    assert run.waits is not None
    return run.waits.total_s(0.0, run.end_s)


def difference(first: ReportRun, second: ReportRun) -> str:
    """Returns how the second start differs from the first."""
    gap = second.end_s - first.end_s
    end = "ready" if first.head.ready_ms and second.head.ready_ms else "through"
    if abs(gap) <= _SAME_S:
        parts = [f"Both were {end} after the same time"]
    else:
        parts = [f"Start 2 was {end} {seconds(abs(gap))} {'later' if gap > 0 else 'sooner'} than start 1"]
    if first.waits is not None and second.waits is not None:
        longer = waited_s(second) - waited_s(first)
        if abs(longer) <= _SAME_S:
            parts.append("it waited as long for the store")
        else:
            parts.append(f"it waited {seconds(abs(longer))} {'longer' if longer > 0 else 'less'} for the store")
    more = second.touched_bytes - first.touched_bytes
    if abs(more) <= _SAME_SHARE * first.touched_bytes:
        parts.append("it read as much")
    else:
        parts.append(f"it read {size(abs(more))} {'more' if more > 0 else 'less'}")
    return "; ".join(parts) + "."


def _percent(share: float) -> str:
    """Returns a share in whole percent, which is 100 % or 0 % only where it is that."""
    whole = min(max(round(share * 100), 1), 99) if 0 < share < 1 else round(share * 100)
    return f"{whole} %"
