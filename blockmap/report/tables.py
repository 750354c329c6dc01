"""Draws the tables of a report: sorted by a click on a column's head, searched by a part of the path."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    BooleanFilter,
    CDSView,
    ColumnDataSource,
    CustomJS,
    DataTable,
    NumberFormatter,
    TableColumn,
    TextInput,
)

from blockmap.report.data import Coverage, Image, ReportedStart, ReportRun, bytes_by_file

MAX_ROWS: Final = 3_000
_WIDTH, _PACKAGE_WIDTH, _NUMBER_WIDTH = 1330, 220, 115
"""Widths in pixels, fixed: bokeh may fit columns to the page so that paths are narrower than numbers."""
_SEARCH = """
const wanted = cb_obj.value_input.toLowerCase();
const {file, package: owner} = source.data;
view.filter.booleans = Array.from(file, (text, n) => `${text} ${owner[n]}`.toLowerCase().includes(wanted));
"""


def draw_files(starts: Sequence[ReportedStart]) -> Any:
    """Draws files by the bytes that were read of them for the first time; two starts side by side."""
    sums, firsts = zip(*(_by_file(start.run) for start in starts), strict=True)
    keys = list(dict.fromkeys(key for each in sums for key in each))
    kilobytes = [[each.get(key, 0) / 1e3 for key in keys] for each in sums]
    first_s = [[each.get(key, float("nan")) for key in keys] for each in firsts]
    if len(starts) == 1:
        return _table("Search files", {"kB": kilobytes[0], "first read at, s": first_s[0]}, keys)
    columns = {
        "larger, kB": np.max(kilobytes, axis=0).tolist(),
        "start 1, kB": kilobytes[0],
        "start 2, kB": kilobytes[1],
        "start 1 first, s": first_s[0],
        "start 2 first, s": first_s[1],
    }
    return _table("Search files", columns, keys)


def _by_file(run: ReportRun) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], float]]:
    """Returns the bytes of each file, and when the first of them were read."""
    numbers, first = np.unique(run.touched_file, return_index=True)
    keys = _keys(run.image, numbers.tolist())
    sums = bytes_by_file(run.touched_file, run.image)[numbers].tolist()
    return dict(zip(keys, sums, strict=True)), dict(zip(keys, run.touched_s[first].tolist(), strict=True))


def draw_waits_table(start: ReportedStart) -> Any:
    """Draws pauses by the file that was read last before them."""
    pauses, image = start.pauses, start.run.image
    files = np.unique(pauses.file)
    count = np.bincount(pauses.file)
    total, asking = np.bincount(pauses.file, pauses.length_s), np.bincount(pauses.file, pauses.asking_s)
    longest = [float(pauses.length_s[pauses.file == number].max()) * 1e3 for number in files]
    columns = {
        "ms in all": (total[files] * 1e3).tolist(),
        "longest, ms": longest,
        "pauses": count[files].astype(float).tolist(),
    }
    if pauses.known:
        columns["store asked, ms"] = (asking[files] * 1e3).tolist()
    return _table(f"Search pauses of {start.run.title}", columns, _keys(image, files.tolist()))


def draw_coverage_table(run: ReportRun, coverage: Coverage) -> Any:
    """Draws covered, missed and wasted bytes by file."""
    image = run.image
    sums = {
        "missed, kB": bytes_by_file(coverage.missed, image),
        "wasted, kB": bytes_by_file(coverage.wasted, image),
        "covered, kB": bytes_by_file(coverage.covered, image),
    }
    files = np.flatnonzero(sum(sums.values()))
    columns = {title: (each[files] / 1e3).tolist() for title, each in sums.items()}
    return _table(f"Search files of {run.title}", columns, _keys(image, files.tolist()))


def _format(title: str) -> str:
    if title == "pauses":
        return "0,0"
    return "0,0.000" if title.endswith(", s") else "0,0.0"


def _keys(image: Image, files: Sequence[int]) -> list[tuple[str, str]]:
    paths = image.titles("file")
    return [(paths[number], image.packages[number]) for number in files]


def _table(title: str, numbers: Mapping[str, Sequence[float]], keys: Sequence[tuple[str, str]]) -> Any:
    """Draws rows by the first column of numbers, the highest first, with a field to search them."""
    order = np.argsort(-np.array(next(iter(numbers.values())), float), kind="stable")[:MAX_ROWS]
    source = ColumnDataSource(
        {
            "file": [keys[n][0] for n in order],
            "package": [keys[n][1] for n in order],
            **{title: np.array(values, float)[order] for title, values in numbers.items()},
        }
    )
    view = CDSView(filter=BooleanFilter([True] * len(order)))
    path_width = _WIDTH - _PACKAGE_WIDTH - len(numbers) * _NUMBER_WIDTH
    columns = [
        TableColumn(field="file", title="file", width=path_width),
        TableColumn(field="package", title="package", width=_PACKAGE_WIDTH),
    ]
    columns += [
        TableColumn(
            field=title, title=title, width=_NUMBER_WIDTH, default_sort="descending",
            formatter=NumberFormatter(format=_format(title), text_align="right", nan_format="-"),
        )
        for title in numbers
    ]  # fmt: skip
    table = DataTable(
        source=source, view=view, columns=columns, height=min(330, 32 + 26 * max(len(order), 1)), index_position=None,
        sizing_mode="stretch_width", autosize_mode="none", reorderable=False,
    )  # fmt: skip
    field = TextInput(placeholder="a part of the path or package", title=title, width=420)
    field.js_on_change("value_input", CustomJS(args={"source": source, "view": view}, code=_SEARCH))
    left_out = len(keys) - len(order)
    if left_out:
        field.title = f"{title} ({left_out:,} rows with the lowest numbers are left out)"
    return column(field, table, sizing_mode="stretch_width")
