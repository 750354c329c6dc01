"""The plots of a report that are no map: bytes over time, waits by file, coverage."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.layouts import row
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Range1d
from bokeh.plotting import figure

from blockmap.cli.report.data import Coverage, Run, Start
from blockmap.cli.report.style import COLORS, REST_COLOR, SECONDS, TOOLS, mark_ready, shortened
from blockmap.format import BLOCK

_BARS = 12
_MOST_STEPS = 2_000
_DASHES = ("solid", "dashed")


def draw_growth(starts: Sequence[Start]) -> Any:
    """Bytes read for the first time, summed up over time, one line for each start."""
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
            line_width=2.5, legend_label=f"{number + 1}: {run.title}",
        )  # fmt: skip
        plot.add_tools(HoverTool(renderers=[line], tooltips=[("time", "@time{0.000} s"), ("sum", "@mb{0.00} MB")]))
        mark_ready(plot, run.head.ready_ms, COLORS[(0, 3)[number]])
    plot.legend.location = "bottom_right"
    plot.legend.label_text_font_size = "9pt"
    return plot


def draw_waits(starts: Sequence[Start]) -> Any:
    """The files with the longest pauses after a read of them, one plot for each start, on the same axis."""
    plots = []
    sums = [_waits(start) for start in starts]
    longest_ms = max((total for waits in sums for _, _, total in waits), default=1.0)
    across = Range1d(0, 1.05 * longest_ms)
    for start, waits in zip(starts, sums, strict=True):
        names = _distinct([name for name, _, _ in waits])
        source = ColumnDataSource(
            {
                "name": names,
                "path": [name for name, _, _ in waits],
                "asking": [asking for _, asking, _ in waits],
                "other": [total - asking for _, asking, total in waits],
            }
        )
        plot = figure(
            title=start.run.title, height=130 + 24 * len(names), y_range=FactorRange(*reversed(names)), x_range=across,
            tools="reset,save", x_axis_label="milliseconds without a read", sizing_mode="stretch_width",
        )  # fmt: skip
        labels = ("while the store was asked (measured)", "otherwise: program, kernel, host")
        if not start.pauses.known:
            labels = ("", "reason not known")
        plot.hbar_stack(
            ["asking", "other"], y="name", height=0.75, source=source, color=[COLORS[3], COLORS[1]], line_color="white",
            hatch_pattern=[" ", "/"], hatch_color="white", legend_label=list(labels),
        )  # fmt: skip
        plot.add_tools(
            HoverTool(tooltips=[("file", "@path"), ("store asked", "@asking{0.0} ms"), ("otherwise", "@other{0.0} ms")])
        )
        if not start.pauses.known:
            plot.legend.items = plot.legend.items[1:]
        _lay_below(plot)
        plots.append(plot)
    return row(*plots, sizing_mode="stretch_width")


def _lay_below(plot: Any) -> None:
    box = plot.legend[0]
    plot.center.remove(box)
    box.update(orientation="horizontal", border_line_color=None, label_text_font_size="9pt", location="top_left")
    plot.add_layout(box, "below")


def _waits(start: Start) -> list[tuple[str, float, float]]:
    """File, milliseconds while the store was asked, milliseconds in all: the longest."""
    pauses = start.pauses
    titles = start.run.image.titles("file")
    total = np.bincount(pauses.file, pauses.length_s) * 1e3
    asking = np.bincount(pauses.file, pauses.asking_s) * 1e3
    order = np.argsort(-total, kind="stable")[:_BARS]
    return [(titles[n], float(asking[n]), float(total[n])) for n in order.tolist() if total[n]]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names cut to fit, each another."""
    found: list[str] = []
    for name in names:
        short = shortened(name)
        found.append(short if short not in found else f"{short} ({found.count(short) + len(found)})")
    return found


def draw_coverage(covered: Sequence[tuple[Run, Coverage]]) -> Any:
    """One bar for each start: what the profile covered, missed and wasted."""
    names = [f"{number}: {shortened(run.title, 60)}" for number, (run, _) in enumerate(covered, 1)]
    parts = {
        "covered: in the profile and read": [each.covered for _, each in covered],
        "missed: read, not in the profile": [each.missed for _, each in covered],
        "wasted: in the profile, not read": [each.wasted for _, each in covered],
    }
    source = ColumnDataSource(
        {"name": names, **{label: [len(blocks) * BLOCK / 1e6 for blocks in each] for label, each in parts.items()}}
    )
    plot = figure(
        height=150 + 50 * len(names), y_range=FactorRange(*reversed(names)), tools="reset,save", x_axis_label="MB",
        sizing_mode="stretch_width",
    )  # fmt: skip
    plot.x_range.start = 0
    bars = plot.hbar_stack(
        list(parts), y="name", height=0.6, source=source, color=[COLORS[2], COLORS[3], REST_COLOR], line_color="white",
        hatch_pattern=[" ", "x", "/"], hatch_color="white", legend_label=list(parts),
    )  # fmt: skip
    for bar, label in zip(bars, parts, strict=True):
        plot.add_tools(HoverTool(renderers=[bar], tooltips=[(label.partition(":")[0], f"@{{{label}}}{{0.00}} MB")]))
    _lay_below(plot)
    return plot
