"""Draws the plots of a report that are not maps: bytes over time, waits by file, coverage."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from bokeh.layouts import row
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, LegendItem, Range1d
from bokeh.plotting import figure

from blockmap.format import BLOCK
from blockmap.report.data import Coverage, ReportedStart, ReportRun
from blockmap.report.files import Numbers
from blockmap.report.style import COLORS, REST_COLOR, SECONDS, TOOLS, legend, mark_ready, shortened

_BARS = 12
_LABEL_LENGTHS = (48, 30)
_MOST_STEPS = 2_000
_DASHES = ("solid", "dashed")


def draw_growth(starts: Sequence[ReportedStart]) -> Any:
    """Draws bytes read for the first time, summed up over time, one line for each start."""
    plot = figure(
        height=320,
        tools=TOOLS,
        x_axis_label=SECONDS,
        y_axis_label="MB read for the first time",
        sizing_mode="stretch_width",
    )
    for number, start in enumerate(starts):
        run = start.run
        at: Any = (
            np.unique(np.linspace(0, len(run.touched_s) - 1, _MOST_STEPS).astype(int)) if len(run.touched_s) else []
        )
        source = ColumnDataSource({"time": run.touched_s[at], "mb": (np.asarray(at) + 1) * BLOCK / 1e6})
        line = plot.step(
            "time", "mb", source=source, mode="after", color=COLORS[(0, 3)[number]], line_dash=_DASHES[number],
            line_width=2.5, legend_label=run.title,
        )  # fmt: skip
        plot.add_tools(HoverTool(renderers=[line], tooltips=[("time", "@time{0.000} s"), ("sum", "@mb{0.00} MB")]))
        mark_ready(plot, run.head.ready_ms, COLORS[(0, 3)[number]])
    plot.legend.location = "bottom_right"
    plot.legend.label_text_font_size = "9pt"
    return plot


def draw_waits(starts: Sequence[ReportedStart]) -> Any:
    """Draws the files with the longest pauses after a read of them, one plot for each start, on the same axis."""
    plots = []
    sums = [_waits(start) for start in starts]
    longest_ms = max((total for waits in sums for _, _, total in waits), default=1.0)
    across = Range1d(0, 1.05 * longest_ms)
    for start, waits in zip(starts, sums, strict=True):
        names = _distinct([name for name, _, _ in waits], _LABEL_LENGTHS[len(starts) - 1])
        source = ColumnDataSource(
            {
                "name": names,
                "path": [name for name, _, _ in waits],
                "asking": [asking for _, asking, _ in waits],
                "other": [total - asking for _, asking, total in waits],
            }
        )
        plot = figure(
            title=start.run.title, height=160 + 22 * len(names), y_range=FactorRange(*reversed(names)), x_range=across,
            tools="reset,save", x_axis_label="milliseconds without a read", sizing_mode="stretch_width",
        )  # fmt: skip
        plot.title.text_font_size = "9pt"
        asked = _BarPart("asking", "while the store was asked (measured)", COLORS[3], " ")
        other = _BarPart("other", "otherwise: program, kernel, host", COLORS[1], "/")
        unknown = _BarPart("other", "reason not known", COLORS[1], "/")
        _stack(plot, source, [asked, other] if start.pauses.known else [unknown], 3 - len(starts), "@path: ", "ms")
        plots.append(plot)
    return row(*plots, sizing_mode="stretch_width")


class _BarPart(NamedTuple):
    """One colour of stacked bars."""

    column: str
    label: str
    color: str
    hatch: str


def _stack(
    plot: Any, source: ColumnDataSource, parts: Sequence[_BarPart], legend_columns: int, before: str, unit: str
) -> None:
    bars = plot.hbar_stack(
        [part.column for part in parts], y="name", height=0.7, source=source, color=[part.color for part in parts],
        line_color="white", hatch_pattern=[part.hatch for part in parts], hatch_color="white",
    )  # fmt: skip
    items = []
    for bar, part in zip(bars, parts, strict=True):
        plot.add_tools(
            HoverTool(renderers=[bar], tooltips=[(part.label, f"{before}@{{{part.column}}}{{0,0.00}} {unit}")])
        )
        items.append(LegendItem(label=part.label, renderers=[bar]))
    plot.add_layout(legend(items, legend_columns), "below")


def _waits(start: ReportedStart) -> list[tuple[str, float, float]]:
    """Returns the files with the longest pauses: file, milliseconds while the store was asked, milliseconds in all."""
    pauses = start.pauses
    titles = start.run.image.titles("file")
    total = np.bincount(pauses.file, pauses.length_s) * 1e3
    asking = np.bincount(pauses.file, pauses.asking_s) * 1e3
    order = np.argsort(-total, kind="stable")[:_BARS]
    return [(titles[n], float(asking[n]), float(total[n])) for n in order.tolist() if total[n]]


def _distinct(names: Sequence[str], length: int) -> list[str]:
    """Returns names cut to fit, no two of them equal."""
    found: list[str] = []
    for name in names:
        short = shortened(name, length)
        found.append(f"{short} ({len(found) + 1})" if short in found else short)
    return found


def draw_coverage(covered: Sequence[tuple[ReportRun, Coverage]]) -> Any:
    """Draws a bar for each start: what the profile covered, missed and wasted."""
    names = _distinct([run.title for run, _ in covered], 60)
    parts = [
        _BarPart("covered", "covered: in the profile and read", COLORS[2], " "),
        _BarPart("missed", "missed: read, not in the profile", COLORS[3], "x"),
        _BarPart("wasted", "wasted: in the profile, not read", REST_COLOR, "/"),
    ]
    sums = {part.column: [_megabytes(getattr(each, part.column)) for _, each in covered] for part in parts}
    plot = figure(
        height=150 + 50 * len(names), y_range=FactorRange(*reversed(names)), tools="reset,save", x_axis_label="MB",
        sizing_mode="stretch_width",
    )  # fmt: skip
    plot.x_range.start = 0
    _stack(plot, ColumnDataSource({"name": names, **sums}), parts, len(parts), "", "MB")
    return plot


def _megabytes(blocks: Numbers) -> float:
    return len(blocks) * BLOCK / 1e6
