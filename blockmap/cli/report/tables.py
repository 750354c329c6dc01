"""The tables of a report: sorted by a click on a column's head, searched by a part of the path."""

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

from blockmap.cli.report.data import Coverage, Image, Run, Start, bytes_by_file

MAX_ROWS: Final = 3_000
_TEXT_WIDTH, _NUMBER_WIDTH = 420, 110
_SEARCH = """
const wanted = cb_obj.value_input.toLowerCase();
const {file, package: owner} = source.data;
view.filter.booleans = Array.from(file, (text, n) => `${text} ${owner[n]}`.toLowerCase().includes(wanted));
"""


def draw_files(starts: Sequence[Start]) -> Any:
    """Files by the bytes that were read of them for the first time; of two starts, side by side."""
    rows: dict[tuple[str, str], list[float]] = {}
    width = 2 * len(starts)
    for place, start in enumerate(starts):
        run = start.run
        paths, packages, sums = run.image.titles("file"), run.image.packages, bytes_by_file(run.touched_file, run.image)
        found, first = np.unique(run.touched_file, return_index=True)
        for number, at in zip(found.tolist(), first.tolist(), strict=True):
            cells = rows.setdefault((paths[number], packages[number]), [float("nan")] * width)
            cells[2 * place : 2 * place + 2] = float(sums[number]) / 1e3, float(run.touched_s[at])
    filled = {key: [0.0 if n % 2 == 0 and c != c else c for n, c in enumerate(cells)] for key, cells in rows.items()}
    if len(starts) == 1:
        return _table(
            {"kB": [cells[0] for cells in filled.values()], "first read at, s": [c[1] for c in filled.values()]},
            list(filled),
        )
    columns = {
        "kB, start 1": [cells[0] for cells in filled.values()],
        "kB, start 2": [cells[2] for cells in filled.values()],
        "difference, kB": [cells[2] - cells[0] for cells in filled.values()],
        "1 first read at, s": [cells[1] for cells in filled.values()],
        "2 first read at, s": [cells[3] for cells in filled.values()],
    }
    return _table(columns, list(filled))


def draw_waits_table(start: Start) -> Any:
    """Pauses by the file that was read last before them."""
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
    return _table(columns, _keys(image, files.tolist()))


def draw_coverage_table(run: Run, coverage: Coverage) -> Any:
    """Covered, missed and wasted bytes by file."""
    image = run.image
    sums = {
        "missed, kB": bytes_by_file(coverage.missed, image),
        "wasted, kB": bytes_by_file(coverage.wasted, image),
        "covered, kB": bytes_by_file(coverage.covered, image),
    }
    files = np.flatnonzero(sum(sums.values()))
    return _table({title: (each[files] / 1e3).tolist() for title, each in sums.items()}, _keys(image, files.tolist()))


def _format(title: str) -> str:
    if title == "pauses":
        return "0,0"
    return "0,0.000" if title.endswith(", s") else "0,0.0"


def _keys(image: Image, files: Sequence[int]) -> list[tuple[str, str]]:
    paths = image.titles("file")
    return [(paths[number], image.packages[number]) for number in files]


def _table(numbers: Mapping[str, Sequence[float]], keys: Sequence[tuple[str, str]]) -> Any:
    """Rows by the first column of numbers, the highest first, with a field to search them."""
    order = np.argsort(-np.array(next(iter(numbers.values())), float), kind="stable")[:MAX_ROWS]
    source = ColumnDataSource(
        {
            "file": [keys[n][0] for n in order],
            "package": [keys[n][1] for n in order],
            **{title: np.array(values, float)[order] for title, values in numbers.items()},
        }
    )
    view = CDSView(filter=BooleanFilter([True] * len(order)))
    columns = [
        TableColumn(field=name, title=name, width=_TEXT_WIDTH // (1 + (name != "file"))) for name in ("file", "package")
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
        sizing_mode="stretch_width", reorderable=False,
    )  # fmt: skip
    field = TextInput(placeholder="a part of the path or package", title="Search", width=320)
    field.js_on_change("value_input", CustomJS(args={"source": source, "view": view}, code=_SEARCH))
    left_out = len(keys) - len(order)
    if left_out:
        field.title = f"Search ({left_out:,} rows with the lowest numbers are left out)"
    return column(field, table, sizing_mode="stretch_width")
