"""Checks the logs of names, their hints and the catalogue."""

from collections.abc import Callable, Mapping
from functools import partial

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound
from blockmap.format import catalogue, hint, keys
from blockmap.format import entry as entries
from blockmap.format.entry import Entry
from blockmap.publish.object_writer import put
from blockmap.store import limits
from blockmap.store.base import Pruner
from blockmap.store.names import NameLog
from blockmap.upkeep.findings import Problem, Report, read_each

_Name = tuple[str, str]


def replace_object(store: Pruner, key: str, data: bytes) -> None:
    """Stores a damaged or lost object again, given its content, for which its key or its seal vouches."""
    store.delete(key)
    put(store, key, [data])


class NameCheck:
    """Checks the names of a store, and adds what it finds to a report."""

    def __init__(self, store: Pruner, report: Report, warn: Callable[[str], object]) -> None:
        self._store = store
        self._names = NameLog(store)
        self._report = report
        self._warn = warn

    def run(self, newest: Mapping[_Name, int]) -> None:
        """Checks the names, given the number of the newest entry of each: that each entry continues the one before it, the hints,
        and the catalogue."""
        for (repo, tag), n in sorted(newest.items()):
            self._check_history(repo, tag, n)
            self._check_hint(repo, tag, n)
        told = self._told()
        if told is None:
            self._report.problems.append(
                Problem(
                    keys.CATALOGUE,
                    "the catalogue is damaged",
                    "the next move of a name mends it",
                    partial(self._advise, newest),
                )
            )
        elif told != newest:
            self._report.notes.append("the catalogue is behind: the next move of a name mends it")

    def _check_history(self, repo: str, tag: str, newest: int) -> None:
        def entry(number: int) -> tuple[Entry, bytes]:
            return self._names.entry(repo, tag, number)

        expected: bytes | None = None
        for number, found in reversed(list(enumerate(read_each(entry, range(1, newest + 1)), 1))):
            if not isinstance(found, BlockmapError):
                if expected is not None and entries.digest(found[1]) != expected:
                    self._report.notes.append(
                        f"entry {number} of {repo}:{tag} is not the one that entry {number + 1} continues"
                    )
                expected = found[0].previous
                continue
            expected = None
            text = f"entry {number} of {repo}:{tag} cannot be read: {found}"
            if number < newest:
                self._report.notes.append(
                    f"{text}; the name has moved on, but `gc` does nothing until it is older than --keep"
                )
                continue
            action = (
                f"move it to where it should be, for example `blockmap tag {repo}:{tag}@{{{newest - 1}}} {repo}:{tag}`"
            )
            mend = partial(self._mend_entry, repo, tag, newest)
            self._report.problems.append(Problem(f"{repo}:{tag}", text, action, mend))

    def _mend_entry(self, repo: str, tag: str, n: int) -> None:
        """Stores the newest entry of a name again, if its hint has it."""
        found = self._names.hint(repo, tag)
        if found is not None and found.entry.n == n:
            key = keys.entry(repo, tag, n)
            replace_object(self._store, key, found.stored)
            self._warn(f"{key} was stored again")

    def _check_hint(self, repo: str, tag: str, n: int) -> None:
        key = keys.name_hint(repo, tag)
        try:
            found = hint.decode(self._store.get(key, limits.HINT), repo, tag)
        except NotFound:
            return
        except (Corrupt, FormatError) as error:
            self._report.problems.append(
                Problem(
                    key,
                    f"the hint is damaged: {error}",
                    "the next open or move mends it",
                    partial(self._names.newest, repo, tag),
                )
            )
        else:
            if found.entry.n != n:
                self._report.notes.append(f"{key} is behind, at entry {found.entry.n} of {n}: the next open mends it")

    def _told(self) -> dict[_Name, int] | None:
        """Returns the stored catalogue, empty where there is none; None where it is damaged."""
        try:
            return self._names.told()
        except Corrupt:
            return None

    def _advise(self, newest: Mapping[_Name, int]) -> None:
        self._store.replace(keys.CATALOGUE, catalogue.encode(newest))
