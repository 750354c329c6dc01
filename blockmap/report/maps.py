"""Draws starts as maps of time and address, with pauses and the calls of the store below, on one time axis."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    HoverTool,
    IndexFilter,
    LegendItem,
    RadioButtonGroup,
    Range1d,
)
from bokeh.plotting import figure

from blockmap.format import BLOCK
from blockmap.report.data import ReportedStart, ReportRun, biggest_groups, lanes
from blockmap.report.style import COLORS, MARKS, REST_COLOR, SECONDS, TOOLS, legend, mark_ready, shortened

MAX_POINTS: Final = 50_000
"""The most marks in all maps together, so that the page stays below 6 MB."""
_LANES = 12
_LOOK_UP = "return names.get(value);"
"""JavaScript that looks a number up: dictionaries with numbers as keys arrive there as maps."""
_SWITCH = "parts.forEach((list, n) => list.forEach((part) => { part.visible = n === cb_obj.active; }));"

Groups = Mapping[str, Sequence[str]]
"""The titles that have colours of their own, by what colours them."""


def draw_maps(starts: Sequence[ReportedStart]) -> Any:
    """Draws a column for each start, on the same axes, and a switch between colours by package, directory and file."""
    runs = [start.run for start in starts]
    end_s = max(max(run.end_s, float(run.time_s.max(initial=0))) for run in runs) or 1.0
    top_mb = max(float((run.start + run.blocks).max(initial=1)) for run in runs) * BLOCK / 1e6
    across, upward = Range1d(-0.02 * end_s, 1.02 * end_s), Range1d(-0.02 * top_mb, 1.02 * top_mb)
    choices = [
        by for by in ("package", "directory", "file") if by != "package" or any(r.image.has_owners for r in runs)
    ]
    groups = {by: biggest_groups(runs, by, len(COLORS)) for by in choices}
    switched: dict[str, list[Any]] = {by: [] for by in choices}
    columns = []
    for start in starts:
        plot = _map(start.run, across, upward, MAX_POINTS // len(runs))
        _draw_reads(plot, start.run, groups, switched, MAX_POINTS // len(runs), 3 if len(runs) == 1 else 2)
        columns.append(column(plot, _timeline(start, across, 1 if len(runs) > 1 else 3), sizing_mode="stretch_width"))
    switch = RadioButtonGroup(labels=[f"by {by}" for by in choices], active=0)
    switch.js_on_change("active", CustomJS(args={"parts": [switched[by] for by in choices]}, code=_SWITCH))
    return column(switch, row(*columns, sizing_mode="stretch_width"), sizing_mode="stretch_width")


def _step(run: ReportRun, most: int) -> int:
    return max(-(-len(run.start) // most), 1)


def _map(run: ReportRun, across: Range1d, upward: Range1d, most: int) -> Any:
    step = _step(run, most)
    plot = figure(
        title=run.title + (f" (one read in {step} is shown)" if step > 1 else ""), height=560, x_range=across,
        y_range=upward, tools=TOOLS, output_backend="webgl", x_axis_label=SECONDS,
        y_axis_label="address in the volume, MB", sizing_mode="stretch_width",
    )  # fmt: skip
    mark_ready(plot, run.head.ready_ms)
    return plot


def _draw_reads(
    plot: Any, run: ReportRun, groups: Groups, switched: dict[str, list[Any]], most: int, legend_columns: int
) -> None:
    chosen = slice(None, None, _step(run, most))
    file = run.file[chosen]
    source = ColumnDataSource(
        {
            "time": run.time_s[chosen].astype(np.float32),
            "mb": (run.start[chosen] * (BLOCK / 1e6)).astype(np.float32),
            "at": run.start[chosen] * float(BLOCK),
            "bytes": (run.blocks[chosen] * BLOCK).astype(np.int32),
            "file": file.astype(np.int32),
            "package": file.astype(np.int32),
            "more": run.more_files[chosen].astype(np.int32),
        }
    )
    for by, names in groups.items():
        first = by == next(iter(groups))
        titles = run.image.titles(by)
        place = {name: number for number, name in enumerate(names)}
        group = np.array([place.get(title, len(names)) for title in titles])[file]
        items = []
        for number, name in enumerate([*names, "all others"]):
            members = np.flatnonzero(group == number).tolist()
            if not members:
                continue
            rest = number == len(names)
            dots = plot.scatter(
                "time", "mb", source=source, view=CDSView(filter=IndexFilter(members)), size=4 if rest else 7,
                marker="circle" if rest else MARKS[number], color=REST_COLOR if rest else COLORS[number],
                fill_alpha=0.5, line_alpha=0.9, visible=first,
            )  # fmt: skip
            items.append(LegendItem(label=shortened(name), renderers=[dots]))
            switched[by].append(dots)
        names_of_colours = legend(items, legend_columns, first)
        plot.add_layout(names_of_colours, "below")
        switched[by].append(names_of_colours)
    plot.add_tools(_hover(run, file))


def _hover(run: ReportRun, file: Any) -> HoverTool:
    used = np.unique(file).tolist()
    paths, packages = run.image.titles("file"), run.image.titles("package")
    return HoverTool(
        tooltips=[
            ("time", "@time{0.0000} s"), ("file", "@file{custom}"), ("package", "@package{custom}"),
            ("further files", "@more"), ("range", "@bytes{0,0} bytes from @at{0,0}"),
        ],
        formatters={
            "@file": CustomJSHover(args={"names": {n: paths[n] for n in used}}, code=_LOOK_UP),
            "@package": CustomJSHover(args={"names": {n: packages[n] for n in used}}, code=_LOOK_UP),
        },
        limit=2,
    )  # fmt: skip


def _timeline(start: ReportedStart, across: Range1d, legend_columns: int) -> Any:
    """Draws pauses in the top row, and below it the calls of the store, those that overlap in rows of their own."""
    rows = lanes(start.calls)
    count = min(max(rows, default=-1) + 1, _LANES)
    plot = figure(
        height=130 + 11 * count + 75 // legend_columns, x_range=across, y_range=Range1d(-count - 0.5, 1.6), tools=TOOLS,
        x_axis_label=SECONDS, sizing_mode="stretch_width",
    )  # fmt: skip
    plot.yaxis.visible = False
    plot.ygrid.visible = False
    items = [_draw_pauses(plot, start, True), _draw_pauses(plot, start, False)] if start.pauses.known else []
    items = items or [_draw_pauses(plot, start, None)]
    if start.calls:
        items.append(_draw_calls(plot, start, rows))
    plot.add_layout(legend(items, legend_columns), "below")
    mark_ready(plot, start.run.head.ready_ms)
    return plot


def _draw_pauses(plot: Any, start: ReportedStart, asking: bool | None) -> LegendItem:
    """Returns the pauses in which the store was asked for most of the time, the others, or all."""
    pauses, titles = start.pauses, start.run.image.titles("file")
    mostly = pauses.asking_s >= pauses.length_s / 2
    those = np.ones(len(mostly), bool) if asking is None else mostly == asking
    source = ColumnDataSource(
        {
            "left": pauses.start_s[those],
            "right": (pauses.start_s + pauses.length_s)[those],
            "ms": pauses.length_s[those] * 1e3,
            "asking": pauses.asking_s[those] * 1e3,
            "file": [titles[number] for number in pauses.file[those].tolist()],
        }
    )
    bars = plot.quad(
        left="left", right="right", bottom=0.6, top=1.4, source=source, line_color=None,
        color=COLORS[3] if asking else COLORS[1], hatch_pattern=None if asking else "/", hatch_color="white",
    )  # fmt: skip
    asked = "not known" if asking is None else "@asking{0.0} ms"
    tips = [
        ("from", "@left{0.0000} s"), ("no read began for", "@ms{0.0} ms"), ("of it the store was asked", asked),
        ("last read before", "@file"),
    ]  # fmt: skip
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    labels = {
        True: "pause, store asked most of it",
        False: "pause, store hardly asked",
        None: "pause, reason not known",
    }
    return LegendItem(label=labels[asking], renderers=[bars])


def _draw_calls(plot: Any, start: ReportedStart, rows: Sequence[int]) -> LegendItem:
    source = ColumnDataSource(
        {
            "y": [-(lane % _LANES) - 0.2 for lane in rows],
            "left": [call.start_s for call in start.calls],
            "right": [call.start_s + call.seconds for call in start.calls],
            "ms": [call.seconds * 1e3 for call in start.calls],
            "bytes": [call.bytes for call in start.calls],
            "op": [call.op + (f", {call.error}" if call.error else "") for call in start.calls],
            "key": [call.key for call in start.calls],
        }
    )
    bars = plot.hbar(y="y", left="left", right="right", height=0.7, source=source, color=COLORS[0], line_color="white")
    tips = [
        ("from", "@left{0.0000} s"), ("took", "@ms{0.0} ms"), ("came", "@bytes{0,0} bytes"), ("call", "@op"), ("key", "@key"),
    ]  # fmt: skip
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    return LegendItem(label="call of the store", renderers=[bars])
