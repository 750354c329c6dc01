"""Writes the tables of a report: figures, the longest waits, and what a profile covered, missed and wasted."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.trace import EXACT, End
from blockmap.report.data import Coverage, ReportedStart, ReportRun
from blockmap.report.files import Numbers
from blockmap.report.waterfall import LEAST_S, swatch
from blockmap.terminal.units import duration, share, size

MAX_WAITS: Final = 12
MAX_PACKAGES: Final = 25
_ENDS: Final = {
    End.OPEN: "it did not: the server ended first, or it goes on",
    End.READY: "the program was ready",
    End.LONG: "it lasted too long",
    End.QUIET: "nothing new was read any more",
    End.FULL: "its file was full",
    End.CLOSED: "the last connection closed",
    End.FAILED: "the program failed",
}
_COLUMN: Final = ' scope="col"'
_ROW: Final = ' scope="row"'
_COVERED: Final = {
    "covered": "covered: in the profile and read",
    "missed": "missed: read, not in the profile",
    "wasted": "wasted: in the profile, not read",
}


def figures(starts: Sequence[ReportedStart]) -> str:
    """Returns a table with a column for each start."""
    heads = ["Figure", *(f"Start {number}" for number in range(1, len(starts) + 1))] if len(starts) > 1 else []
    rows = [
        [names[0][0], *(value for _, value in names)]
        for names in zip(*(_figures(start) for start in starts), strict=True)
    ]
    return _table(heads, rows, 0)


def _figures(start: ReportedStart) -> Iterator[tuple[str, str]]:
    run, head = start.run, start.run.head
    data = run.image.data_bytes
    yield "Reads", f"{run.reads:,} of {size(run.bytes)}"
    yield "Read for the first time", size(run.touched_bytes)
    yield "Share of the image", f"{share(run.touched_bytes / data)} of {size(data)}" if data else "not known"
    yield "Distinct files", f"{run.file_count:,}" if run.image.files.paths else "not known"
    later = f"{run.later_reads:,} reads until {run.last_s:.1f} s, not shown" if run.later_reads else "nothing was read"
    yield "After that", later
    yield "Trace ended", f"{_ENDS[head.end]}"
    yield "Kernel's read-ahead", "off: exact to the block" if head.flags & EXACT else "on: some blocks nobody asked for"
    yield "New to this host", "yes" if head.is_new else "no: a page cache may hide what it needs"
    yield "Profile replayed", str(head.profile) if head.profile else "none"
    yield (
        "Calls of the store",
        f"{len(start.calls):,}" if not start.calls_note else f"not known: {start.calls_note}",
    )


def longest_waits(run: ReportRun) -> str:
    """Returns a table of the files whose reads waited longest."""
    waits = run.waits
    if waits is None:
        return ""
    took = waits.end_s - waits.start_s
    order = [n for n in np.argsort(-took, kind="stable")[:MAX_WAITS].tolist() if took[n] >= LEAST_S]
    if not order:
        return ""
    rows = [
        [
            f"{waits.start_s[n]:.3f} s",
            _file(run, int(waits.file[n])),
            duration(float(took[n])),
            "the store" if waits.for_store[n] else "a prefetch",
        ]
        for n in order
    ]
    return _table(["at", "file", "waited", "for"], rows, numbers=(2,), whole=(0, 3))


def _file(run: ReportRun, number: int) -> str:
    path, package = run.image.paths[number], run.image.packages[number]
    return path if package in path else f"{path} ({package})"


def coverage(run: ReportRun, found: Coverage) -> str:
    """Returns what of a profile a start read: in all as a bar, and by package as a table."""
    sums = {name: len(getattr(found, name)) * BLOCK for name in _COVERED}
    total = sum(sums.values()) or 1
    parts = "".join(f'<i class="{name}" style="width:{each / total * 100:.2f}%"></i>' for name, each in sums.items())
    legend = "\n".join(swatch(name, f"{says}, {size(sums[name])}") for name, says in _COVERED.items())
    by_package = [_by_package(run, getattr(found, name)) for name in ("missed", "wasted", "covered")]
    names = sorted(set().union(*by_package), key=lambda name: [-each.get(name, 0) for each in by_package] + [name])
    rows = [[name, *(_size(each.get(name, 0)) for each in by_package)] for name in names[:MAX_PACKAGES]]
    if len(names) > MAX_PACKAGES:
        rest = names[MAX_PACKAGES:]
        sums_of_rest = (_size(sum(each.get(name, 0) for name in rest)) for each in by_package)
        rows.append([f"{len(rest):,} others", *sums_of_rest])
    table = _table(["package", "missed", "wasted", "covered"], rows, numbers=(1, 2, 3))
    return f'<ul class="legend">\n{legend}\n</ul>\n<div class="shares" aria-hidden="true">{parts}</div>\n{table}'


def _size(count: int) -> str:
    return size(count) if count else "-"


def _by_package(run: ReportRun, files: Numbers) -> dict[str, int]:
    """Returns bytes by package; takes one file number per block."""
    found: dict[str, int] = {}
    for number, blocks in enumerate(np.bincount(files).tolist()):
        if blocks:
            name = run.image.packages[number]
            found[name] = found.get(name, 0) + blocks * BLOCK
    return found


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    head_column: int = -1,
    numbers: Sequence[int] = (),
    whole: Sequence[int] = (),
) -> str:
    """Returns a table; the text of the columns `whole`, as of those with numbers, is never broken."""

    def cell(tag: str, at: int, text: str, scope: str = "") -> str:
        kind = ' class="number"' if at in numbers else ' class="whole"' if at in whole else ""
        return f"<{tag}{scope}{kind}>{escape(text)}</{tag}>"

    def line(row: Sequence[str]) -> str:
        cells = (
            cell("th", at, text, _ROW) if at == head_column else cell("td", at, text) for at, text in enumerate(row)
        )
        return f"<tr>{''.join(cells)}</tr>"

    head = [f"<tr>{''.join(cell('th', at, text, _COLUMN) for at, text in enumerate(heads))}</tr>"] if heads else []
    return "\n".join(["<table>", *head, *map(line, rows), "</table>"])
