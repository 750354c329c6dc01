"""Which leaves to read, to learn where chunks are stored: those that most of the chunks' hooks vote for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockmap.format.digest import Digest
from blockmap.format.hooks import Hooks, prefixes

_SPAN_BITS = 32


@dataclass(frozen=True, slots=True)
class Champion:
    """A leaf that is worth reading."""

    tree: int
    """Number of the tree, in the order in which hooks were added."""
    span: int


class HookTable:
    """The hooks of many trees, 16 bytes each, sorted; not thread-safe."""

    def __init__(self, trees: Sequence[Hooks]) -> None:
        own = [hooks["hook"].astype(np.uint64) for hooks in trees]
        leaves = [hooks["span"].astype(np.uint64) | np.uint64(tree << _SPAN_BITS) for tree, hooks in enumerate(trees)]
        joined = np.concatenate(own) if own else np.zeros(0, np.uint64)
        order = np.argsort(joined, kind="stable")
        self._hooks = joined[order]
        self._leaves = np.concatenate(leaves)[order] if leaves else joined
        self._dropped: set[int] = set()

    def __len__(self) -> int:
        return len(self._hooks)

    def drop(self, champion: Champion) -> None:
        """Never proposes a leaf again: it cannot be read."""
        self._dropped.add(champion.tree << _SPAN_BITS | champion.span)

    def champions(self, chunks: Sequence[Digest], preferred: set[int], most: int) -> list[Champion]:
        """At most that many leaves that together have all hooks found among `chunks`, chosen greedily.

        Of leaves with as many votes, one in a `preferred` tree is taken, else one of the tree that was added last.
        """
        voters, leaves = self._votes(prefixes(chunks))
        found: list[Champion] = []
        if not len(leaves):
            return found
        codes, leaf = np.unique(leaves, return_inverse=True)
        trees = (codes >> np.uint64(_SPAN_BITS)).astype(np.int64)
        liked = np.isin(trees, np.fromiter(preferred, np.int64, len(preferred)))
        while len(voters) and len(found) < most:
            votes = np.bincount(leaf, minlength=len(codes))
            score = (votes * 2 + liked)[::-1]
            best = len(codes) - 1 - int(np.argmax(score))
            found.append(Champion(int(trees[best]), int(codes[best]) & (1 << _SPAN_BITS) - 1))
            liked |= trees == trees[best]
            rest = ~np.isin(voters, voters[leaf == best])
            voters, leaf = voters[rest], leaf[rest]
        return found

    def _votes(self, chunks: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Pairs of chunk (its position) and a leaf that lists it, two arrays."""
        first = np.searchsorted(self._hooks, chunks, "left")
        count = np.searchsorted(self._hooks, chunks, "right") - first
        voters = np.repeat(np.arange(len(chunks)), count)
        within = np.arange(len(voters)) - np.repeat(np.cumsum(count) - count, count)
        leaves = self._leaves[np.repeat(first, count) + within]
        if self._dropped:
            live = ~np.isin(leaves, np.fromiter(self._dropped, np.uint64, len(self._dropped)))
            voters, leaves = voters[live], leaves[live]
        return voters, leaves
