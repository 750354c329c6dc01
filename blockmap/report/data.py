"""Computes the numbers that a report shows from traces, files, profiles and calls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockmap.format import BLOCK
from blockmap.format.trace import Trace, TraceHead
from blockmap.report.files import Files, Numbers, directory, shown
from blockmap.store.call import Call

Seconds = npt.NDArray[np.float64]

PAUSE_S = 0.002
"""A shorter time without a read is the kernel's or the program's: no remote store answers so soon."""


@dataclass(frozen=True, slots=True)
class Image:
    """The files of the version that a trace read, as the store knows them."""

    files: Files
    packages: Sequence[str]
    """By file number."""
    data_bytes: int | None
    """Bytes of the whole image; None where not known."""
    has_owners: bool
    """True if the image says which package files belong to."""

    def titles(self, by: str) -> Sequence[str]:
        """Returns the title of each file, by file number."""
        if by == "package":
            return self.packages
        return self.files.labels(shown if by == "file" else directory)


@dataclass(frozen=True, slots=True)
class ReportRun:
    """One start."""

    title: str
    head: TraceHead
    image: Image
    time_s: Seconds
    """When each read began, since the open."""
    start: Numbers
    """First block of each read."""
    blocks: Numbers
    file: Numbers
    """The number of the file that each read's first block belongs to."""
    more_files: Numbers
    """The number of further files that the read has blocks of."""
    touched: Numbers
    """Every block read, once, in first-touch order."""
    touched_s: Seconds
    touched_file: Numbers

    @property
    def end_s(self) -> float:
        """Returns when the program was ready, else the time of the last read."""
        return self.head.ready_ms / 1000 or (float(self.time_s[-1]) if len(self.time_s) else 0.0)

    @property
    def bytes(self) -> int:
        return int(self.blocks.sum()) * BLOCK

    @property
    def touched_bytes(self) -> int:
        return len(self.touched) * BLOCK

    @property
    def file_count(self) -> int:
        return len(np.unique(self.touched_file[self.touched_file > 0]))


def analyse(title: str, trace: Trace, image: Image) -> ReportRun:
    """Returns the reads of a trace by file; reads of a part of a block count as the block."""
    reads = trace.reads
    offset, length = reads["offset"].astype(np.int64), reads["length"].astype(np.int64)
    start, end = offset // BLOCK, -(-(offset + length) // BLOCK)
    blocks = end - start
    read = np.repeat(np.arange(len(start)), blocks)
    every = np.repeat(start - np.concatenate(([0], np.cumsum(blocks)[:-1])), blocks) + np.arange(int(blocks.sum()))
    file = image.files.find(every)
    pairs = np.unique(np.stack([read, file], 1)[file > 0], axis=0)[:, 0] if len(read) else read
    first_file = image.files.find(start)
    more = np.bincount(pairs, minlength=len(start)) - (first_file > 0)
    order = np.sort(np.unique(every, return_index=True)[1])
    time_s = reads["time_us"].astype(np.float64) / 1e6
    return ReportRun(
        title, trace.head, image, time_s, start, blocks, first_file, more, every[order], time_s[read[order]], file[order]
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pauses:
    """Times of at least PAUSE_S in which no read began."""

    start_s: Seconds
    """When the last read before each began."""
    length_s: Seconds
    asking_s: Seconds
    """Seconds of each pause in which some call of the store was under way; zeros where calls are not known."""
    file: Numbers
    """File number of the last read before each."""
    known: bool
    """True if calls are known."""


def find_pauses(run: ReportRun, calls: Sequence[Call] | None) -> Pauses:
    """Returns the pauses of a start; calls are in seconds since the open. Pauses end with the start."""
    at = np.append(run.time_s, max(run.end_s, float(run.time_s[-1]))) if len(run.time_s) else np.zeros(1)
    length = np.diff(at)
    long = np.flatnonzero((length >= PAUSE_S) & (at[:-1] < run.end_s))
    start, length = at[:-1][long], length[long]
    asking = np.zeros(len(long))
    for begin, end in _union(calls or ()):
        asking += np.clip(np.minimum(start + length, end) - np.maximum(start, begin), 0, None)
    return Pauses(start, length, asking, run.file[long], calls is not None)


def _union(calls: Sequence[Call]) -> list[tuple[float, float]]:
    """Returns the times in which some call was under way."""
    found: list[tuple[float, float]] = []
    for call in sorted(calls, key=lambda call: call.start_s):
        begin, end = call.start_s, call.start_s + call.seconds
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def lanes(calls: Sequence[Call]) -> list[int]:
    """Returns a row for each call, so that calls under way together lie in different ones; `calls` are sorted by start."""
    free: list[float] = []
    rows = []
    for call in calls:
        row = next((row for row, end in enumerate(free) if end <= call.start_s), len(free))
        if row == len(free):
            free.append(0.0)
        free[row] = call.start_s + call.seconds
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Coverage:
    """Blocks of a start and a profile, by the file that they belong to: one number per block."""

    covered: Numbers
    """Read, and in the profile."""
    missed: Numbers
    """Read, and not in the profile."""
    wasted: Numbers
    """In the profile, and not read."""


def cover(run: ReportRun, profiled: Numbers) -> Coverage:
    """Compares a start with the blocks of a profile of the same version."""
    profiled = np.unique(profiled)
    known = np.isin(run.touched, profiled)
    unread = profiled[np.isin(profiled, run.touched, invert=True)]
    return Coverage(run.touched_file[known], run.touched_file[~known], run.image.files.find(unread))


def bytes_by_file(numbers: Numbers, image: Image) -> Numbers:
    """Returns bytes by file number; takes one file number per block."""
    return np.bincount(numbers, minlength=len(image.files.paths) + 1).astype(np.int64) * BLOCK


def expand(ranges: Sequence[tuple[int, int]]) -> Numbers:
    """Returns every block of ranges (start, blocks)."""
    return np.concatenate([np.arange(start, start + blocks) for start, blocks in ranges] or [np.zeros(0, np.int64)])


def biggest_groups(runs: Sequence[ReportRun], by: str, limit: int) -> list[str]:
    """Returns the groups of which most bytes were read for the first time, over all runs."""
    sums: dict[str, int] = {}
    for run in runs:
        titles = run.image.titles(by)
        for number, count in enumerate(np.bincount(run.touched_file).tolist()):
            sums[titles[number]] = sums.get(titles[number], 0) + count
    return sorted((title for title, count in sums.items() if count), key=lambda title: (-sums[title], title))[:limit]


@dataclass(frozen=True, slots=True)
class ReportedStart:
    """A run, and all that is known about it."""

    run: ReportRun
    pauses: Pauses
    calls: Sequence[Call]
    """Calls of the store in seconds since the open, by their start; empty where they are not known."""
    calls_note: str
    """Why the calls are not known."""
    coverage: Coverage | None
    profile_note: str
    """The profile that the start is compared with, or why with none."""
