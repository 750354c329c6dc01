"""Computes the numbers that a report shows from traces, files, profiles and calls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from blockmap.format import BLOCK
from blockmap.format.trace import FOR_STORE, Reads, Trace, TraceHead, Waits
from blockmap.report.files import Files, Numbers, shown
from blockmap.store.call import Call

Seconds = npt.NDArray[np.float64]

_REST_S: Final = 0.5
"""Seconds without a new block or a wait after which another burst of reads begins: round trips and most computing are shorter."""
_BURST_SHARE: Final = 0.02
"""A burst with a smaller share of the blocks is what an idle program reads: redis reads 0.3 % of its blocks after its start."""


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

    @property
    def paths(self) -> Sequence[str]:
        """Returns the path of each file as text, by file number."""
        return self.files.labels(shown)


@dataclass(frozen=True, slots=True)
class WaitedReads:
    """Reads that waited, in the order in which they ended."""

    start_s: Seconds
    """When each began, since the open."""
    end_s: Seconds
    bytes: Numbers
    for_store: npt.NDArray[np.bool_]
    """True where the read asked the store itself; the others waited for what was on its way."""
    file: Numbers
    """The number of the file that the read's first block belongs to."""

    def total_s(self, start_s: float, end_s: float) -> float:
        """Returns for how long, between two moments, any read waited."""
        return float(sum(max(min(end, end_s) - max(begin, start_s), 0.0) for begin, end in self.spans()))

    def spans(self) -> list[tuple[float, float]]:
        """Returns the times in which any read waited."""
        return union(zip(self.start_s.tolist(), self.end_s.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class ReportRun:
    """One start."""

    head: TraceHead
    image: Image
    end_s: float
    """When the program was ready; where nobody said so, the end of the last burst of reads."""
    later_reads: int
    """Reads after that, which are not counted below."""
    last_s: float
    """When the last of all reads began."""
    reads: int
    bytes: int
    """Bytes of all these reads; a part of a block counts as the block."""
    touched: Numbers
    """Every block read, once, in first-touch order."""
    touched_s: Seconds
    touched_file: Numbers
    touched_by: Numbers
    """How each came: 0 at once, FOR_STORE or FOR_PREFETCH where a read of it waited."""
    waits: WaitedReads | None
    """None where they are not known."""

    @property
    def touched_bytes(self) -> int:
        return len(self.touched) * BLOCK

    @property
    def file_count(self) -> int:
        return len(np.unique(self.touched_file[self.touched_file > 0]))

    @property
    def first_byte_s(self) -> float | None:
        """Returns when the first read was answered; None where that is not known."""
        if self.waits is None or not len(self.touched_s):
            return None
        first = float(self.touched_s[0])
        began = self.waits.start_s <= first
        return float(self.waits.end_s[began].min(initial=np.inf)) if began.any() else first

    @property
    def ahead_share(self) -> float | None:
        """Returns the share of the blocks that were there, or on their way, when they were first read."""
        if self.waits is None or not len(self.touched):
            return None
        return float((self.touched_by != FOR_STORE).mean())


def analyse(trace: Trace, image: Image) -> ReportRun:
    """Returns the reads of a trace by file, until the start's end; reads of a part of a block count as the block."""
    start, blocks = _blocks(trace.reads)
    time_s = trace.reads["time_us"].astype(np.float64) / 1e6
    every, read = _expanded(start, blocks)
    order = np.sort(np.unique(every, return_index=True)[1])
    touched, touched_s = every[order], time_s[read[order]]
    waits = None if trace.waits is None else _waits(trace.waits, image)
    end_s = trace.head.ready_ms / 1000 or _quiet_s(touched_s, waits)
    kept, kept_reads = touched_s <= end_s, time_s <= end_s
    touched, touched_s = touched[kept], touched_s[kept]
    came = np.zeros(len(touched), np.int64) if trace.waits is None else _reasons(touched, trace.waits)
    return ReportRun(
        trace.head, image, end_s, int((~kept_reads).sum()), float(time_s.max(initial=0.0)), int(kept_reads.sum()),
        int(blocks[kept_reads].sum()) * BLOCK, touched, touched_s, image.files.find(touched), came, _until(waits, end_s),
    )  # fmt: skip


def _blocks(ranges: Reads | Waits) -> tuple[Numbers, Numbers]:
    """Returns the first block of each read, and how many it has."""
    offset, length = ranges["offset"].astype(np.int64), ranges["length"].astype(np.int64)
    start = offset // BLOCK
    return start, -(-(offset + length) // BLOCK) - start


def _expanded(start: Numbers, blocks: Numbers) -> tuple[Numbers, Numbers]:
    """Returns every block of ranges, and the number of its range."""
    number = np.repeat(np.arange(len(start)), blocks)
    first = np.concatenate(([0], np.cumsum(blocks)[:-1]))
    return np.repeat(start - first, blocks) + np.arange(int(blocks.sum())), number


def _waits(waits: Waits, image: Image) -> WaitedReads:
    start_s = waits["time_us"].astype(np.float64) / 1e6
    start, blocks = _blocks(waits)
    return WaitedReads(
        start_s, start_s + waits["took_us"] / 1e6, blocks * BLOCK, waits["reason"] == FOR_STORE, image.files.find(start)
    )


def _until(waits: WaitedReads | None, end_s: float) -> WaitedReads | None:
    """Returns the waits that began before the end."""
    if waits is None:
        return None
    kept = waits.start_s < end_s
    return WaitedReads(
        waits.start_s[kept], waits.end_s[kept], waits.bytes[kept], waits.for_store[kept], waits.file[kept]
    )


def _reasons(touched: Numbers, waits: Waits) -> Numbers:
    """Returns what the first wait for each block was for; 0 where none was."""
    start, blocks = _blocks(waits)
    waited, number = _expanded(start, blocks)
    found, first = np.unique(waited, return_index=True)
    if not len(found):
        return np.zeros(len(touched), np.int64)
    at = np.minimum(np.searchsorted(found, touched), len(found) - 1)
    return np.where(found[at] == touched, waits["reason"][number[first[at]]].astype(np.int64), 0)


def _quiet_s(touched_s: Seconds, waits: WaitedReads | None) -> float:
    """Returns when the last burst ended that read more than a little for the first time."""
    if not len(touched_s):
        return 0.0
    busy_until = touched_s.copy()
    if waits is not None and len(waits.start_s):
        order = np.argsort(waits.start_s, kind="stable")
        begun = np.searchsorted(waits.start_s[order], touched_s, "right")
        ended = np.concatenate(([0.0], np.maximum.accumulate(waits.end_s[order])))[begun]
        busy_until = np.maximum(busy_until, ended)
    busy_until = np.maximum.accumulate(busy_until)
    cuts = np.flatnonzero(touched_s[1:] - busy_until[:-1] > _REST_S) + 1
    ends = np.append(cuts, len(touched_s))
    sizes = np.diff(np.append(0, ends))
    last = np.flatnonzero(sizes >= min(_BURST_SHARE * len(touched_s), sizes.max()))[-1]
    return float(busy_until[ends[last] - 1])


def union(spans: Iterable[tuple[float, float]], apart_s: float = 0.0) -> list[tuple[float, float]]:
    """Returns the union of spans of time, ascending; those no more than `apart_s` apart are joined."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1] + apart_s:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


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


def expand(ranges: Sequence[tuple[int, int]]) -> Numbers:
    """Returns every block of ranges (start, blocks)."""
    return np.concatenate([np.arange(start, start + blocks) for start, blocks in ranges] or [np.zeros(0, np.int64)])


@dataclass(frozen=True, slots=True)
class ReportedStart:
    """A run, and all that is known about it."""

    run: ReportRun
    calls: Sequence[Call]
    """Calls of the store in seconds since the open, by their start; empty where they are not known."""
    calls_note: str
    """Why the calls are not known."""
    coverage: Coverage | None
    profile_note: str
    """The profile that the start is compared with, or why with none."""
