"""Extracts counters from a server's status, which can be subtracted, so that two give a rate."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blockmap.control.messages import ServerStatus
from blockmap.format.refs import short_export
from blockmap.terminal.units import size
from blockmap.volume.histogram import quantile


@dataclass(frozen=True, slots=True)
class Figures:
    """Reads of an export, or calls of the store."""

    count: int
    bytes: int
    errors: int
    cached: int
    """Reads that the cache answered; 0 for calls."""
    fetched: int
    bounds_s: tuple[float, ...]
    latency: tuple[int, ...]
    """Counts in buckets with these upper ends, and one more."""

    def since(self, before: "Figures | None") -> "Figures":
        """Returns the difference from `before`; all of it where that is None."""
        if before is None or not before.latency:
            return self
        return Figures(
            self.count - before.count,
            self.bytes - before.bytes,
            self.errors - before.errors,
            self.cached - before.cached,
            self.fetched - before.fetched,
            self.bounds_s,
            tuple(now - then for now, then in zip(self.latency, before.latency, strict=True)),
        )

    @property
    def hit_ratio(self) -> float | None:
        """Returns the share of reads that the cache answered, reads of zeros left out; None where there were none."""
        data = self.cached + self.fetched
        return self.cached / data if data else None

    def latency_s(self, q: float) -> float | None:
        return quantile(self.bounds_s, self.latency, q)


_NOTHING = Figures(0, 0, 0, 0, 0, (), ())


@dataclass(frozen=True, slots=True)
class Export:
    """An export that is open, or was."""

    name: str
    size: int | None
    """Size in bytes; None where it is not open."""
    connections: int
    waiting: int
    reads: Figures


def exports(status: ServerStatus) -> list[Export]:
    """Returns all exports, those that are open first."""
    reads = {each["export"]: _reads(each) for each in status["reads"]}
    found = {}
    for each in status["exports"]:
        # A version may be open more than once, under different outage policies.
        same = [other for other in status["exports"] if other["export"] == each["export"]]
        found[each["export"]] = Export(
            each["export"],
            each["size"],
            sum(other["connections"] for other in same),
            sum(other["waiting"] for other in same),
            reads.pop(each["export"], _NOTHING),
        )
    return [*found.values(), *(Export(name, None, 0, 0, figures) for name, figures in reads.items())]


def prefetches(status: ServerStatus) -> list[str]:
    """Returns lines about what is brought before anybody reads it: bundles of starts, and whole images."""
    fetch = status["fetch"]
    lines = []
    if fetch["bundles"]:
        running, missed, failed = fetch["bundles_running"], fetch["bundle_missed_reads"], fetch["bundles_failed"]
        bundles = f"{fetch['bundles']:,} bundle{'' if fetch['bundles'] == 1 else 's'}"
        lines.append(
            f"{bundles}, {f'{running:,} under way' if running else 'done'}, {missed:,} reads had to fetch besides"
            + (f"; {failed:,} failed" if failed else "")
        )
    if fetch["hydrated_bytes"]:
        lines.append(
            f"{size(fetch['hydrated_bytes'])} for starts that missed, {fetch['hydrated_reads']:,} chunks of it were read"
        )
    return [*lines, *(_hydration(each) for each in status["hydrations"])]


def _hydration(each: dict[str, Any]) -> str:
    return f"all of {short_export(each['export'])}: {size(each['bytes'])}, {each['state']}"


def faults(status: ServerStatus) -> list[str]:
    """Returns lines about what has gone wrong since the server started; none where nothing has."""
    fetch, cache, calls = status["fetch"], status["cache"], remote(status)
    counted = {
        "calls of the store failed": calls.errors,
        "chunks and nodes came damaged from the store": fetch["damaged"] + fetch["bundle_damaged_chunks"],
        "reads got nothing from the store": fetch["failed_reads"],
        "chunks and nodes of the cache were damaged": cache["damaged"],
        "chunks and nodes of the cache were lost": cache["lost"],
        "traces could not be learnt from": status["learn"]["failures"],
    }
    lines = [f"{count:,} {what}" for what, count in counted.items() if count]
    if fetch["store_away"]:
        lines.insert(0, "the store does not answer")
    if cache["missing"]:
        lines.append("the cache's directory is gone, and cannot be made again: reads go on without a cache")
    elif cache["replaced"]:
        lines.append(f"the cache's directory was removed or replaced {cache['replaced']:,} times: it began anew, empty")
    return lines


def remote(status: ServerStatus) -> Figures:
    """Returns the calls of the store."""
    sums = status["remote"]
    latency = [op["latency"] for op in sums["ops"].values()]
    return Figures(sums["requests"], sums["bytes"], sums["errors"], 0, 0, *_added(latency))


def _reads(each: dict[str, Any]) -> Figures:
    sources = each["sources"]
    return Figures(
        sum(source["reads"] for source in sources.values()),
        sum(source["bytes"] for source in sources.values()),
        each["errors"],
        sources["cache"]["reads"],
        sources["bundle"]["reads"] + sources["fetched"]["reads"],
        *_added(source["latency"] for source in sources.values()),
    )


def _added(latencies: Iterable[dict[str, Any]]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Returns bounds and sums of histograms, which all have the same bounds."""
    found = list(latencies)
    if not found:
        return (), ()
    return tuple(found[0]["bounds_s"]), tuple(map(sum, zip(*(each["counts"] for each in found), strict=True)))
