"""Brings the rest of a volume to a start that goes on missing, as far as the link has bytes to spare.

A start of which nothing is known reads tens of things one after the other, each of which it learns of from the one before: over
a link of 200 ms that costs 10 s and more, while a link of 1 Gbit/s could carry 25 MB in each round trip that is waited for. So
each round trip earns bytes that the link can spare, and these bring what is near to the misses, then what is further away. A
start that misses no more earns no more: this ends with what is missing, or with the misses.

It stays out of the way where all that is spared would bring too little too late to save a round trip (a thin link, a large
volume), while a bundle is under way, and while the bundle has nearly all that the start reads.
"""

import logging
import threading
from collections.abc import Sequence

from blockmap.errors import BlockmapError
from blockmap.fetch.fetcher import Fetcher
from blockmap.format.chunker import SPAN
from blockmap.format.node import FANOUT, Node
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.server.regions import Region, Regions, regions_of
from blockmap.store.packs import NodeRef
from blockmap.store.walk import Spot, leaves
from blockmap.volume.leaves import bring_nodes, load_node
from blockmap.volume.misses import PAUSE_S
from blockmap.volume.start import Key, Start

_log = logging.getLogger(__name__)

_LEAST_STEPS = 3
"""Round trips that a start has waited for before anything is brought: whoever lists a directory or copies a file waits for
fewer."""
_EXPECTED_STEPS = 64
"""Round trips that a start is expected to wait for: without a profile, starts take 13 to 250."""
_EARNED_STEPS = 4
"""Round trips whose spare bytes each one that was waited for earns, as more are expected to follow than came before, and the
link is idle between them too: with 1, starts over 50 ms waited for as many as without."""
_MOST_NODES = 256
"""Nodes of a level that are looked at, those nearest to the latest miss: leaves of 4 GiB of address space."""
_CACHE_SHARE = 0.5
"""The share of the cache that may be filled: what other starts have left there is worth more than the rest of this."""
_NO_WAIT = OutagePolicy(0.0)


class StartHydration:
    """Hydrates the volume of one start while it goes on missing; safe to share between threads."""

    def __init__(self, start: Start, fetcher: Fetcher) -> None:
        self._start, self._fetcher = start, fetcher
        self._misses = start.misses
        self._woken = threading.Event()
        self._stopped = self._is_over = False

    @property
    def key(self) -> Key:
        return self._start.key

    def is_due(self) -> bool:
        """Returns True if `run` is to be called."""
        start = self._start
        return (
            not (self._is_over or self._stopped)
            and self._misses.steps >= _LEAST_STEPS
            and (start.replay is None or (start.replay.ended and not start.skips_readahead()))
            and self._fetcher.spare_bytes > 0
            and self._fetcher.cache.can_write
        )

    def wake(self) -> None:
        """Takes notice of a miss; never waits."""
        self._woken.set()

    def stop(self) -> None:
        """Ends `run`, when there is room on the link or the fetcher has been stopped."""
        self._stopped = True
        self._woken.set()

    def run(self) -> None:
        """Brings what is missing until all is there, or nothing is missed any more; never raises."""
        try:
            spent, why = self._bring()
            _log.info("%s: %d bytes were brought ahead of reads that missed, until %s", self._start.version, spent, why)
        except BlockmapError as error:
            _log.warning("nothing is brought ahead of the reads of %s: %s", self._start.version, error)

    def _bring(self) -> tuple[int, str]:
        """Returns the bytes that were asked for, and why it ended."""
        misses, fetcher = self._misses, self._fetcher
        regions, spent = self._find_regions(), 0
        if regions.raw > _CACHE_SHARE * fetcher.cache.cap_bytes:
            self._is_over = True
            return 0, "it was too large for the cache"
        while not self._stopped:
            spare, steps = fetcher.spare_bytes, misses.steps
            pays = spare * max(_EXPECTED_STEPS, steps) >= regions.stored
            if pays and spent < spare * steps * _EARNED_STEPS:
                region = regions.take_nearest(misses.recent)
                if region is None:
                    self._is_over = True
                    return spent, "all was there"
                spent += fetcher.prefetcher.bring(region.chunks())
            elif not self._woken.wait(PAUSE_S):
                return spent, "it missed no more"
            if fetcher.outage.away:
                return spent, "the store went away"
            self._woken.clear()
        return spent, "it was stopped"

    def _find_regions(self) -> Regions:
        """Returns what is missing of the volume, of the part that is nearest to the latest miss. Raises the error of a node that
        cannot be read."""
        near = self._misses.recent[-1] // SPAN

        def nearest(level: int, row: list[Spot]) -> list[Spot]:
            covered = FANOUT**level
            away = [max(spot.span - near, near - spot.span - covered + 1, 0) for spot in row]
            return [row[at] for at in sorted(range(len(row)), key=away.__getitem__)[:_MOST_NODES]]

        def load(refs: Sequence[NodeRef]) -> list[Node]:
            bring_nodes(self._fetcher, refs)
            attempt = self._fetcher.outage.attempt
            return [load_node(self._fetcher, name, place, attempt(_NO_WAIT)) for name, place in refs]

        found: list[Region] = []
        for span, leaf in leaves(self._start.root, load, nearest):
            found += regions_of(span, leaf)
        return Regions(found)
