"""Records in the store what readers found damaged or lost there, so that no importer relies on it.

In the background, and as far as that is possible: readers wait for nothing of it. What was damaged on its way is no damage
of the store, so each thing is read once more before.
"""

import logging
import threading
from collections import defaultdict
from functools import partial

from blockmap.errors import BlockmapError, Corrupt, NotFound
from blockmap.format.digest import Digest
from blockmap.store.base import Reader, Writer
from blockmap.store.crew import Crew
from blockmap.store.pack_logs import record_damage
from blockmap.store.packs import Packs
from blockmap.store.plan import Wanted
from blockmap.store.resolver import check_presence

_log = logging.getLogger(__name__)

_MOST_NAMES = 16
"""Chunks and nodes of one pack that are recorded one by one: where there are more, nothing of the pack is relied on any more."""
_MOST_PACKS = 1024
"""Packs that are recorded in the life of a server, which may take 1 MB."""
_CLOSE_S = 1.0
"""Seconds that records under way are waited for at the end."""


class DamageRecorder:
    """Records damage of one store; safe to share between threads."""

    def __init__(self, store: Reader, writer: Writer | None) -> None:
        """`writer` is the same store; None where it cannot be written: then damage is only said."""
        self._store, self._writer = store, writer
        self._packs = Packs(store.get_range)
        self._crew = Crew(1, "damage recorder")
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._noted: defaultdict[Digest, set[Digest]] = defaultdict(set)
        """What was noted, by pack."""

    def note(self, item: Wanted) -> None:
        """Has it recorded that a chunk or node cannot be read where it should be; each one once. Never blocks or raises."""
        pack = item.place.pack
        with self._lock:
            if pack not in self._noted and len(self._noted) >= _MOST_PACKS:
                return
            noted = self._noted[pack]
            if item.name in noted or len(noted) > _MOST_NAMES:
                return
            noted.add(item.name)
            whole = len(noted) > _MOST_NAMES
        self._crew.run(partial(self._record, item, whole))

    def close(self) -> None:
        """Ends the thread."""
        self._crew.close(_CLOSE_S)

    def _record(self, item: Wanted, whole: bool) -> None:
        pack = item.place.pack
        what = f"pack {pack.hex()} in {self._store.url} is damaged or lost, {item.name.hex()} in it for one"
        try:
            check_presence(self._store)
            if self._is_sound(item):
                return
            if self._writer is None:
                _log.warning(
                    "%s: import an image that has it again, or `blockmap verify` it, where the store can be written",
                    what,
                )
                return
            record_damage(self._writer, pack, None if whole else [item.name])
        except BlockmapError as error:
            _log.warning("%s, which cannot be recorded there: %s", what, error)
        else:
            _log.warning("%s, which is recorded there: importing an image that has it again mends it", what)

    def _is_sound(self, item: Wanted) -> bool:
        """Returns True if the store has the right content after all. Raises StoreUnavailable."""
        open_item = self._packs.open_node if item.is_node else self._packs.open_chunk
        try:
            open_item(item.name, item.place, self._packs.stored([item]))
        except (Corrupt, NotFound):
            return False
        return True
