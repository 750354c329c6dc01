"""Writes the waterfall: a row for each package and file, with bars in time, as HTML with a small drawing in each row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

from blockmap.report.data import ReportedStart
from blockmap.report.rows import Bar, BarKind, Lane, Row, call_rows, package_rows
from blockmap.report.verdict import seconds
from blockmap.terminal.units import duration, size

_WIDTH: Final = 1000
"""Units across a row's drawing, which is as wide as the window has room."""
_HEIGHT: Final = 12
_HEIGHTS: Final = {BarKind.STORE: 12, BarKind.PREFETCH: 9, BarKind.CACHE: 6, BarKind.CALL: 12}
_MIN_WIDTH: Final = 3
"""Units of a bar, so that a moment can be seen and pointed at."""
_MAX_TICKS: Final = 9
LEAST_S: Final = 0.001
"""Seconds of a wait that figures tell: a link takes no less."""
_LEGEND: Final = {
    BarKind.STORE: "waited for the store",
    BarKind.PREFETCH: "came with the bundle or another prefetch, waited for it",
    BarKind.CACHE: "from the cache, no waiting",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """The time that all rows show."""

    begin_s: float
    """Below zero where the store was asked before the open."""
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s

    def percent(self, at_s: float) -> str:
        """Returns where a moment lies."""
        return f"{(at_s - self.begin_s) / self.seconds * 100:.2f}%"

    def ticks(self) -> list[tuple[float, str]]:
        """Returns round moments, and what to print there."""
        least = self.seconds / _MAX_TICKS
        power = 10.0 ** floor(log10(least))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
        digits = max(-floor(log10(step) + 1e-9), 0)
        numbers = range(ceil(self.begin_s / step - 1e-9), floor(self.end_s / step + 1e-9) + 1)
        return [(number * step, f"{number * step:.{digits}f}") for number in numbers]


def axis_of(starts: Sequence[ReportedStart]) -> Axis:
    """Returns the time from the first call of the store, or the open, until the last start ends."""
    begin_s = min((call.start_s for start in starts for call in start.calls), default=0.0)
    return Axis(min(begin_s, 0.0), max(max(start.run.end_s for start in starts) * 1.02, 0.01))


def waterfall(starts: Sequence[ReportedStart]) -> str:
    """Returns legend and rows of one start, or of two on one time axis."""
    across = axis_of(starts)
    calls = call_rows(starts, across.seconds)
    rows = [*calls, *package_rows(starts, across.seconds)]
    drawn_lines = ", ".join(_drawn_lines(starts, across))
    lines = [_legend(starts, bool(calls))]
    lines.append(f'<div class="falls {"two" if len(starts) > 1 else "one"}" style="--lines: {drawn_lines}">')
    lines.append(_head(starts, across))
    lines += [_row(row, across) for row in rows]
    return "\n".join([*lines, "</div>"])


def swatch(kind: str, says: str) -> str:
    """Returns an entry of a legend."""
    return f'<li><span class="swatch"><i class="{kind}"></i></span>{escape(says)}</li>'


def _legend(starts: Sequence[ReportedStart], has_calls: bool) -> str:
    known = [start.run.waits is not None for start in starts]
    found = [swatch(kind.value, says) for kind, says in _LEGEND.items() if any(known) and kind is not BarKind.CACHE]
    says = _LEGEND[BarKind.CACHE] if all(known) else "read; waits are not known" if not any(known) else (
        f"{_LEGEND[BarKind.CACHE]}; of start {known.index(False) + 1}, all reads"
    )  # fmt: skip
    found.append(swatch(BarKind.CACHE.value, says))
    if has_calls:
        found.append(swatch(BarKind.CALL.value, "the server asks the store"))
    kinds = {kind: says for kind, _, says in _moments(starts)}
    found += [swatch(kind, {"first": "first byte", "ready": "ready"}[kind]) for kind in kinds]
    return '<ul class="legend">\n' + "\n".join(found) + "\n</ul>"


def _moments(starts: Sequence[ReportedStart]) -> Iterator[tuple[str, float, str]]:
    """Yields the moments that a line marks: class, seconds, text."""
    for number, start in enumerate(starts, 1):
        whose = f" {number}" if len(starts) > 1 else ""
        first = start.run.first_byte_s
        if first is not None:
            yield "first", first, f"first byte{whose} {seconds(first)}"
        if start.run.head.ready_ms:
            yield "ready", start.run.end_s, f"ready{whose} {seconds(start.run.end_s)}"


def _head(starts: Sequence[ReportedStart], across: Axis) -> str:
    flags = []
    for kind, at, says in _moments(starts):
        side = "left" if at - across.begin_s > across.seconds / 2 else "right"
        flags.append(
            f'<div class="flags"><span class="{side} {kind}" style="left:{across.percent(at)}">{says}</span></div>'
        )
    ticks = [
        f'<span class="{"minor" if number % 2 else "major"}" style="left:{across.percent(at)}">{label}</span>'
        for number, (at, label) in enumerate(across.ticks())
    ]
    axis = f'<div class="axis">{"".join(ticks)}</div>'
    titles = '<span class="figure">read</span><span class="figure">waited</span>'
    return (
        f'<div class="row head"><span class="name">seconds since the open</span><div class="lanes">{"".join(flags)}'
        f"{axis}</div>{titles}</div>"
    )


def _drawn_lines(starts: Sequence[ReportedStart], across: Axis) -> Iterator[str]:
    """Yields the backgrounds of all rows' bars: a line for each moment, then one for each tick."""
    kinds = {
        "ready": "linear-gradient(var(--ready) 0 0)",
        "first": "repeating-linear-gradient(var(--soft) 0 4px, transparent 4px 8px)",
    }
    for kind, at, _ in _moments(starts):
        yield f"{kinds[kind]} {across.percent(at)} 0 / 2px 100% no-repeat"
    for at, _ in across.ticks():
        yield f"linear-gradient(var(--grid) 0 0) {across.percent(at)} 0 / 1px 100% no-repeat"


def _row(row: Row, across: Axis) -> str:
    cells = _cells(row, across)
    if not row.files:
        return f'<div class="row">{cells}</div>'
    files = "\n".join(f'<div class="row">{_cells(each, across)}</div>' for each in row.files)
    return f'<details><summary class="row">{cells}</summary>\n{files}\n</details>'


def _cells(row: Row, across: Axis) -> str:
    lanes = "".join(f'<span class="lane">{_drawing(lane, across)}</span>' for lane in row.lanes)
    read = "".join(f"<span>{'-' if lane is None else size(lane.bytes)}</span>" for lane in row.lanes)
    waited = "".join(f"<span>{_waited(lane)}</span>" for lane in row.lanes)
    return (
        f'<span class="name">{escape(row.name)}</span><span class="lanes">{lanes}</span><span class="figure">{read}</span>'
        f'<span class="figure">{waited}</span>'
    )


def _waited(lane: Lane | None) -> str:
    return "-" if lane is None or (lane.waited_s or 0.0) < LEAST_S else duration(lane.waited_s)


def _drawing(lane: Lane | None, across: Axis) -> str:
    bars = "" if lane is None else "".join(_bar(bar, across) for bar in lane.bars)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'


def _bar(bar: Bar, across: Axis) -> str:
    begin, end = (
        min(max((at - across.begin_s) / across.seconds, 0.0), 1.0) * _WIDTH for at in (bar.start_s, bar.end_s)
    )
    height = _HEIGHTS[bar.kind]
    return (
        f'<rect class="{bar.kind.value}" x="{begin:.1f}" y="{(_HEIGHT - height) / 2:g}" '
        f'width="{max(end - begin, _MIN_WIDTH):.1f}" height="{height}"><title>{bar.says}</title></rect>'
    )
