"""Sorts reads and waits into the rows of a waterfall: a package, and below it its files, with bars in time. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.trace import FOR_PREFETCH, FOR_STORE
from blockmap.report.data import ReportedStart, ReportRun, union
from blockmap.store.call import Call
from blockmap.terminal.units import size

MAX_GROUPS: Final = 60
MAX_FILES: Final = 80
"""Files of a package, so that a page stays below half a megabyte; the rest are summed up in one row."""
_STEPS: Final = 250
"""Parts of the time that is shown; reads and waits closer to each other than that are one bar."""


class BarKind(Enum):
    """What a bar stands for; its value is its class in the page."""

    STORE = "store"
    PREFETCH = "ahead"
    CACHE = "cache"
    CALL = "call"


class Bar(NamedTuple):
    kind: BarKind
    start_s: float
    end_s: float
    says: str


@dataclass(frozen=True, slots=True)
class Lane:
    """What one start read of a package or file, or asked of the store."""

    bytes: int
    first_s: float
    waited_s: float | None
    """None where waits are not known, or mean nothing."""
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the waterfall; `lanes` has one for each start, None where it has nothing of this. A row that is a file itself has
    none below it."""

    name: str
    lanes: Sequence[Lane | None]
    files: "Sequence[Row]" = ()


def package_rows(starts: Sequence[ReportedStart], span_s: float) -> list[Row]:
    """Returns a row for each package, with its files below it, in the order in which they were first read."""
    runs = [start.run for start in starts]
    packages = _grouped(runs, lambda run: run.image.packages)
    return [
        Row(name, _lanes(runs, members, span_s), [row for row in _file_rows(runs, members, span_s) if row.name != name])
        for name, members in _limited(packages, runs, MAX_GROUPS, "packages")
    ]


def call_rows(starts: Sequence[ReportedStart], span_s: float) -> list[Row]:
    """Returns a row for each kind of call of the store."""
    kinds = {"bundles/": "Store: the bundle", "packs/": "Store: packs, of chunks and nodes"}
    rows: dict[str, list[Lane | None]] = {}
    for number, start in enumerate(starts):
        sorted_calls: dict[str, list[Call]] = {}
        for call in start.calls:
            name = next((name for key, name in kinds.items() if call.key.startswith(key)), "Store: names and records")
            sorted_calls.setdefault(name, []).append(call)
        for name, calls in sorted_calls.items():
            rows.setdefault(name, [None] * len(starts))[number] = _calls_lane(calls, span_s)
    return [Row(name, rows[name]) for name in sorted(rows)]


_Members = list[set[int]]
"""File numbers, for each run."""


def _grouped(runs: Sequence[ReportRun], titles: Callable[[ReportRun], Sequence[str]]) -> dict[str, _Members]:
    """Returns the files that were read of each group."""
    found: dict[str, _Members] = {}
    for number, run in enumerate(runs):
        names = titles(run)
        for file in np.unique(run.touched_file).tolist():
            found.setdefault(names[file], [set() for _ in runs])[number].add(file)
    return found


def _file_rows(runs: Sequence[ReportRun], members: _Members, span_s: float) -> list[Row]:
    files: dict[str, _Members] = {}
    for number, (run, chosen) in enumerate(zip(runs, members, strict=True)):
        paths = run.image.paths
        for file in chosen:
            files.setdefault(paths[file], [set() for _ in runs])[number].add(file)
    return [Row(name, _lanes(runs, each, span_s)) for name, each in _limited(files, runs, MAX_FILES, "files")]


def _limited(
    groups: dict[str, _Members], runs: Sequence[ReportRun], most: int, what: str
) -> list[tuple[str, _Members]]:
    """Returns groups by their first read; those with the fewest bytes beyond `most` are one."""
    sums = [np.bincount(run.touched_file) for run in runs]
    firsts = [dict(zip(*map(np.ndarray.tolist, _first(run)), strict=True)) for run in runs]

    def blocks(members: _Members) -> int:
        return sum(int(total[sorted(each)].sum()) for total, each in zip(sums, members, strict=True) if each)

    def first(members: _Members) -> float:
        return min(float(times[file]) for times, each in zip(firsts, members, strict=True) for file in each)

    by_size = sorted(groups, key=lambda name: (-blocks(groups[name]), name))
    kept, rest = by_size[:most], by_size[most:]
    found = sorted(((name, groups[name]) for name in kept), key=lambda each: (first(each[1]), each[0]))
    if rest:
        together: _Members = [set().union(*(groups[name][n] for name in rest)) for n in range(len(runs))]
        found.append((f"{len(rest):,} other {what}", together))
    return found


def _first(run: ReportRun) -> tuple[np.ndarray, np.ndarray]:
    """Returns file numbers, and when each was first read."""
    files, first = np.unique(run.touched_file, return_index=True)
    return files, run.touched_s[first]


def _lanes(runs: Sequence[ReportRun], members: _Members, span_s: float) -> list[Lane | None]:
    return [_lane(run, sorted(files), span_s) if files else None for run, files in zip(runs, members, strict=True)]


def _lane(run: ReportRun, files: Sequence[int], span_s: float) -> Lane:
    mine = np.isin(run.touched_file, files)
    came, times = run.touched_by[mine], run.touched_s[mine]
    bars = _cache_bars(times[came == 0], run.waits is not None, span_s / _STEPS)
    waited_s = None
    if run.waits is not None:
        waits = run.waits
        own = np.isin(waits.file, files)
        for reason in (FOR_PREFETCH, FOR_STORE):
            chosen = own & (waits.for_store == (reason == FOR_STORE))
            spans = np.stack([waits.start_s[chosen], np.minimum(waits.end_s[chosen], run.end_s)], 1)
            bars += _wait_bars(spans, waits.bytes[chosen], reason, span_s / _STEPS)
        waited_s = sum(
            end - begin
            for begin, end in union(zip(waits.start_s[own].tolist(), waits.end_s[own].tolist(), strict=True))
        )
    return Lane(int(mine.sum()) * BLOCK, float(times.min()), waited_s, bars)


def _cache_bars(times: np.ndarray, known: bool, apart_s: float) -> list[Bar]:
    found = []
    times = np.sort(times)
    cuts = np.flatnonzero(np.diff(times) > apart_s) + 1
    for part in np.split(times, cuts) if len(times) else []:
        begin, end = float(part[0]), float(part[-1])
        how = "there already" if known else "read"
        found.append(Bar(BarKind.CACHE, begin, end, f"{size(len(part) * BLOCK)} {how}, {_between(begin, end)}"))
    return found


def _wait_bars(spans: np.ndarray, counts: np.ndarray, reason: int, apart_s: float) -> list[Bar]:
    kind, why = (
        (BarKind.STORE, "for the store") if reason == FOR_STORE else (BarKind.PREFETCH, "for what was on its way")
    )
    found = []
    for begin, end in union(map(tuple, spans.tolist()), apart_s):
        inside = (spans[:, 0] >= begin) & (spans[:, 0] <= end)
        reads, total = int(inside.sum()), int(counts[inside].sum())
        says = f"{reads:,} {'read' if reads == 1 else 'reads'} of {size(total)} waited {why}, {_between(begin, end)}"
        found.append(Bar(kind, begin, end, says))
    return found


def _calls_lane(calls: Sequence[Call], span_s: float) -> Lane:
    bars = []
    for begin, end in union(((call.start_s, call.start_s + call.seconds) for call in calls), span_s / _STEPS):
        inside = [call for call in calls if begin <= call.start_s <= end]
        came, count = sum(call.bytes for call in inside), len(inside)
        says = f"{count:,} {'call' if count == 1 else 'calls'}, {size(came)} came, {_between(begin, end)}"
        bars.append(Bar(BarKind.CALL, begin, end, says))
    return Lane(sum(call.bytes for call in calls), min(call.start_s for call in calls), None, bars)


def _between(begin: float, end: float) -> str:
    return f"at {begin:.3f} s" if end - begin < 0.0005 else f"{begin:.3f} to {end:.3f} s"
