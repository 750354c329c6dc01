"""Merges the first touches of many starts with an older profile into one order. It is pure.

A start on a host that had no block of the image counts in full: it did not need the blocks that it did not read. If a
profile was replayed for a start, it read the profile's blocks from the kernel's cache, unseen; the trace says nothing about
them, but for the few that were left out of the warming: what was read of these is sure, what was not fades. Where too much
of what the profile was sure of was not read, it is spoiled, and sure of nothing else any more. The start's other blocks are
added, unless only one of many such starts read them. A start on a warm host does not show which blocks are not needed, and is
used only if there is no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex, Numbers, blocks_of
from blockmap.learn.sample import PROVEN_STARTS, is_sure

MEMORY = 20
"""Starts that a profile remembers; older ones fade, so that it follows a workload that changes."""
_MANY = 3
"""Starts from which on a block that only one of them touched is dropped, unless that is the newest: otherwise nothing new could be
learnt one start at a time."""
_SPOILED = 1 / 8
"""Share of the blocks left out, of those that a profile was sure of, that make it spoiled if they are not read. Starts of Redis
and Flask read all but one in a thousand."""
_UNREAD_STARTS = 2
"""Starts for which a block counts less each time that it is left out, and not read: six such starts in a row drop what half of
the starts read, so that two workloads of one label do not drop each other's."""
_LEAST_UNREAD = 4
"""Blocks not read that make a profile spoiled, at least: a small one may leave out only a few."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The first touches of one start, ported to the version that the profile is made for."""

    items: Sequence[ProfileItem]
    is_evidence: bool
    prefilled: Sequence[ProfileItem] | None = None
    """The items that were replayed before the start; None if there was no replay."""
    left: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    """Blocks of `prefilled` that the kernel was not warmed with, so that reads of them were seen."""


@dataclass(frozen=True, slots=True)
class Merged:
    items: list[ProfileItem]
    starts: int
    """Number of starts merged, with those of the old profile."""
    whole: int
    """Number of new starts that count in full."""
    added: int
    """Number of new starts that only add blocks."""
    is_guess: bool
    """True if no start was on a host that had no block of the image."""


@dataclass(frozen=True, slots=True)
class _Votes:
    blocks: Numbers
    times_ms: Numbers
    ranks: Numbers
    counts: Numbers


def merge(index: BlockIndex, old: Sequence[ProfileItem], old_starts: int, starts: Sequence[Sample]) -> Merged:
    """Merges `old`, the items of a profile of `old_starts` starts, with new starts."""
    whole = [start for start in starts if start.is_evidence and start.prefilled is None]
    added = [start for start in starts if start.is_evidence and start.prefilled is not None]
    is_guess = not (whole or added or old_starts)
    if is_guess:
        whole = list(starts)
    kept = min(old_starts, max(1, MEMORY - len(whole))) if whole else old_starts
    votes, worth = [], 1
    if kept:
        known, kept = _revised(_votes(old, kept, old_starts), kept, added)
        votes.append(known)
        worth = kept // 2 if kept == PROVEN_STARTS else 1
    votes += [_votes(start.items) for start in whole]
    votes += _often([_outside(_votes(start.items, worth), start.prefilled or ()) for start in added])
    total = max(kept + len(whole), 1)
    blocks, times_ms, touched = _counted(votes)
    if whole and not is_guess and total >= _MANY:
        often = touched > 1
        if len(whole) < _MANY:
            often |= np.isin(blocks, np.concatenate([own.blocks for own in votes[bool(kept) :]]))
        blocks, times_ms, touched = blocks[often], times_ms[often], touched[often]
    items = index.items(blocks, times_ms, np.minimum(touched, total))
    return Merged(items, total, len(whole), len(added), is_guess)


def shows_unread(start: Sample, old: Sequence[ProfileItem], old_starts: int) -> bool:
    """Returns True if a start shows that a profile is spoiled, or something about what the profile is not sure of."""
    seen = _observe(_votes(old), old_starts, [start])
    return seen.is_spoiled or seen.unsure > 0


def outside(items: Sequence[ProfileItem], known: Sequence[ProfileItem]) -> int:
    """Returns the number of blocks of `items` that are not in `known`."""
    return int((~np.isin(blocks_of(items)[0], blocks_of(known)[0])).sum())


def _votes(items: Sequence[ProfileItem], kept: int = 1, of: int = 1) -> _Votes:
    blocks, owners = blocks_of(items)
    times = np.fromiter((item.time_ms for item in items), np.int64)
    counts = np.fromiter((item.touched * kept // of for item in items), np.int64)
    return _Votes(blocks, times[owners], owners, counts[owners])


@dataclass(frozen=True, slots=True)
class _Observation:
    """Which blocks of a profile, of those that were left out for some starts, these starts read."""

    read: NDArray[np.bool_]
    unread: NDArray[np.bool_]
    unsure: int
    """How many of both the profile was not sure of."""
    is_spoiled: bool


def _observe(old: _Votes, starts: int, added: Sequence[Sample]) -> _Observation:
    """Returns what starts show about a profile of `starts` starts."""
    left = np.concatenate([start.left for start in added]) if added else np.empty(0, np.int64)
    found = [start.left[np.isin(start.left, blocks_of(start.items)[0])] for start in added]
    seen = np.isin(old.blocks, left)
    read = np.isin(old.blocks, np.concatenate(found)) if found else np.zeros_like(seen)
    unread, sure = seen & ~read, is_sure(old.counts, starts)
    missed = int((unread & sure).sum())
    is_spoiled = starts != PROVEN_STARTS and missed >= max(_LEAST_UNREAD, _SPOILED * (seen & sure).sum())
    return _Observation(read, unread, int((seen & ~sure).sum()), is_spoiled)


def _revised(old: _Votes, kept: int, added: Sequence[Sample]) -> tuple[_Votes, int]:
    """Returns the votes of `kept` starts with what others show about the blocks that were left out for them, and for how many
    starts they count then."""
    seen = _observe(old, kept, added)
    if not (seen.is_spoiled or seen.unsure):
        return old, kept
    counts = old.counts * PROVEN_STARTS // kept
    if seen.is_spoiled:
        counts = np.minimum(counts, PROVEN_STARTS // 2)
    counts = np.where(seen.unread, np.maximum(counts - _UNREAD_STARTS, 0), counts)
    return replace(old, counts=np.where(seen.read, PROVEN_STARTS, counts)), PROVEN_STARTS


def _outside(votes: _Votes, prefilled: Sequence[ProfileItem]) -> _Votes:
    return _only(votes, ~np.isin(votes.blocks, blocks_of(prefilled)[0]))


def _often(starts: list[_Votes]) -> list[_Votes]:
    """Returns the votes without blocks that only one of many starts read."""
    if len(starts) < _MANY:
        return starts
    blocks, touched = np.unique(np.concatenate([own.blocks for own in starts]), return_counts=True)
    return [_only(own, np.isin(own.blocks, blocks[touched > 1])) for own in starts]


def _only(votes: _Votes, which: NDArray[np.bool_]) -> _Votes:
    return _Votes(votes.blocks[which], votes.times_ms[which], votes.ranks[which], votes.counts[which])


def _counted(votes: Sequence[_Votes]) -> tuple[Numbers, Numbers, Numbers]:
    """Returns each block with its median time and the number of its touches, in the order of the times."""
    if not votes:
        return (np.empty(0, np.int64),) * 3
    blocks, times, ranks, counts = (
        np.concatenate([getattr(own, name) for own in votes]) for name in ("blocks", "times_ms", "ranks", "counts")
    )
    blocks, times, ranks = (np.repeat(column, counts) for column in (blocks, times, ranks))
    order = np.lexsort((ranks, times, blocks))
    blocks, times, ranks = blocks[order], times[order], ranks[order]
    distinct, heads, touched = np.unique(blocks, return_index=True, return_counts=True)
    middle = heads + (touched - 1) // 2
    order = np.lexsort((distinct, ranks[middle], times[middle]))
    return distinct[order], times[middle][order], touched[order]
