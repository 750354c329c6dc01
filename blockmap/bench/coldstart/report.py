"""Sums up the figures of all starts: a row for each image and way, with figures for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from blockmap.bench.coldstart.opening import Opening
from blockmap.bench.coldstart.origin_log import LoggedRequest, at_client
from blockmap.bench.coldstart.price_list import Prices
from blockmap.bench.coldstart.schedule import Step
from blockmap.bench.coldstart.slope import theil_sen
from blockmap.bench.coldstart.timed_start import TimedStart
from blockmap.bench.statistics import spread
from blockmap.server.store_log import serial_steps
from blockmap.store.call import Call

CAVEATS = [
    "The link is a relay on loopback: it models delay and bandwidth, but no slow start, no packet loss and no TLS; real "
    "links are slower, most of all for those who open many connections.",
    "The far side, the relay, the servers and the program that starts share this machine's processors; seconds of different "
    "machines do not compare, slopes do.",
    "The clock runs from the request to open until the program is ready, and includes about 0.2 s of run-startup's own start. "
    "Nothing of the image is on this host before it; the host's programs are in memory, and a resident server has its "
    "connections open. `before` counts what a server that "
    "was there already had asked for.",
    "The slope of ready over RTT (Theil-Sen, 95 % interval) is the number of serial round trips, connections included. "
    "`counted` is the longest chain of requests that did not overlap, at the longest RTT, by blockmap's own log of calls and "
    "by the far side's for the others: connections are not in it, "
    "and requests that came later for another reason than waiting are.",
    "Requests and bytes (with headers) are those begun until the program was ready, medians over all starts of a row (--json "
    "has them by RTT); prices are the user's.",
    "nbdkit's curl plugin and qemu-nbd run as they come, without filters; skopeo tries TLS first, which costs a pull "
    "some more round trips.",
]


@dataclass(frozen=True, slots=True)
class ReadyFigures:
    """All starts of one image in one way, or all its openings."""

    image: str
    way: str
    ready_s: dict[float | None, list[float]]
    """Seconds by RTT in milliseconds."""
    requests: dict[float | None, list[list[LoggedRequest]]]
    calls: dict[float | None, list[list[Call]]]
    """Calls by blockmap's own log; empty where there is none."""
    before: list[list[LoggedRequest]]
    """The requests of each start before the clock started."""
    failures: list[str]


def of_starts(starts: Sequence[tuple[Step, TimedStart]], ways: Mapping[str, str]) -> list[ReadyFigures]:
    """Returns one for each image and way, in the order in which they first came; `ways` are their names for people."""
    found: dict[tuple[str, str], ReadyFigures] = {}
    for step, start in starts:
        each = found.setdefault((step.image, step.way), ReadyFigures(step.image, ways[step.way], {}, {}, {}, [], []))
        each.before.append(start.before)
        if start.ready_s is None:
            each.failures.append(f"{each.way} of {step.image} at {step.rtt_ms} ms: {start.failure}")
            continue
        each.ready_s.setdefault(step.rtt_ms, []).append(start.ready_s)
        each.requests.setdefault(step.rtt_ms, []).append(start.requests)
        if start.calls is not None:
            each.calls.setdefault(step.rtt_ms, []).append(start.calls)
    return list(found.values())


def of_openings(way: str, openings: Sequence[Opening]) -> list[ReadyFigures]:
    """Returns one for each image and part."""
    found: dict[tuple[str, str], ReadyFigures] = {}
    for opening in openings:
        each = found.setdefault(
            (opening.image, opening.part), ReadyFigures(opening.image, f"{way} {opening.part}", {}, {}, {}, [], [])
        )
        each.before.append(opening.before)
        each.ready_s.setdefault(opening.rtt_ms, []).append(opening.seconds)
        each.requests.setdefault(opening.rtt_ms, []).append(opening.requests)
        if opening.calls is not None:
            each.calls.setdefault(opening.rtt_ms, []).append(opening.calls)
    return list(found.values())


def row(figures: ReadyFigures, rtts_ms: Sequence[float], prices: Prices) -> dict[str, Any]:
    """Returns the row of the table, "-" where there is no figure."""
    starts = sum(map(len, figures.ready_s.values()))
    result: dict[str, Any] = {"image": figures.image, "way": figures.way, "starts": starts}
    for rtt in rtts_ms:
        # Without a link, the time is the same for every link.
        seconds = figures.ready_s.get(rtt) or figures.ready_s.get(None)
        result[f"{rtt:g} ms"] = median(seconds) if seconds else "-"
    slope = theil_sen(_points(figures))
    result["slope"] = slope.slope if slope else "-"
    result["interval"] = f"{slope.low:.1f} to {slope.high:.1f}" if slope else "-"
    sets = [each for sets in figures.requests.values() for each in sets]
    requests = median(len(each) for each in sets) if sets else 0.0
    sent = median(sum(request.sent_bytes for request in each) for each in sets) if sets else 0.0
    steps = _counted(figures)
    result["counted"] = "-" if steps is None else steps
    result["requests"] = requests
    result["MB"] = sent / 1e6
    result["before"] = median(len(each) for each in figures.before) if figures.before else 0.0
    result["$ per 1,000"] = prices.of_starts(requests, sent)
    result["failed"] = len(figures.failures)
    return result


def beside(figures: Sequence[ReadyFigures], own: Sequence[str], peer: str) -> list[str]:
    """Sentences: for each image, the round trips of our ways as a share of a peer's."""
    found = []
    for each in figures:
        other = next((other for other in figures if (other.image, other.way) == (each.image, peer)), None)
        if each.way not in own or other is None:
            continue
        slopes, steps = [theil_sen(_points(one)) for one in (each, other)], [_counted(one) for one in (each, other)]
        if slopes[0] and slopes[1] and slopes[1].slope and steps[0] is not None and steps[1]:
            found.append(
                f"{each.image}: {each.way} has {slopes[0].slope / slopes[1].slope:.2f} of {peer}'s round trips by slope, "
                f"{steps[0] / steps[1]:.2f} as counted"
            )
    return found


def against(figures: Sequence[ReadyFigures], own: str, floor: str, pull: str, mbit: float) -> list[str]:
    """Sentences: for each image and RTT, our way beside what it cannot be faster than (local disk, two round trips, and its
    bytes at the link's rate), and beside a pull."""
    by_way = {(each.image, each.way): each for each in figures}
    found = []
    for each in figures:
        local, pulled = by_way.get((each.image, floor)), by_way.get((each.image, pull))
        if each.way != own:
            continue
        for rtt, seconds in sorted((rtt, seconds) for rtt, seconds in each.ready_s.items() if rtt is not None):
            ready = median(seconds)
            sent = median(sum(request.sent_bytes for request in one) for one in each.requests[rtt])
            wire = sent * 8e-6 / mbit if mbit else 0.0
            parts = []
            if local is not None and local.ready_s:
                least = median(local.ready_s[None]) + 2 * rtt / 1000 + wire
                parts.append(f"{ready / least:.2f} of local + 2 RTT + {sent / 1e6:.1f} MB on the wire ({least:.2f} s)")
            if pulled is not None and pulled.ready_s.get(rtt):
                parts.append(f"{ready / median(pulled.ready_s[rtt]):.2f} of a pull")
            if parts:
                found.append(f"{each.image}: {each.way} at {rtt:g} ms takes {ready:.2f} s, {' and '.join(parts)}")
    return found


def details(figures: ReadyFigures) -> dict[str, Any]:
    """Returns every measurement, for machines."""
    slope = theil_sen(_points(figures))
    return {
        "image": figures.image,
        "way": figures.way,
        "slope": slope._asdict() if slope else None,
        "counted": _counted(figures),
        "failures": figures.failures,
        "before": [
            {
                "requests": len(each),
                "bytes": sum(request.sent_bytes for request in each),
                "targets": sorted({request.target for request in each}),
            }
            for each in figures.before
        ],
        "by_rtt": [
            {
                "rtt_ms": rtt,
                "ready_s": seconds,
                "ready_s_spread": spread(seconds)._asdict(),
                "requests": [len(each) for each in figures.requests[rtt]],
                "bytes": [sum(request.sent_bytes for request in each) for each in figures.requests[rtt]],
                "serial": _serial(figures, rtt) if rtt else None,
            }
            for rtt, seconds in sorted(figures.ready_s.items(), key=lambda each: each[0] or 0)
        ],
    }  # fmt: skip


def _points(figures: ReadyFigures) -> list[tuple[float, float]]:
    """Returns pairs of RTT and ready time, both in seconds: their slope is a number of round trips."""
    return [(rtt / 1000, value) for rtt, values in figures.ready_s.items() if rtt is not None for value in values]


def _counted(figures: ReadyFigures) -> float | None:
    """Returns the steps at the longest RTT, where overlapping calls are most surely distinguished from others."""
    longest = max((rtt for rtt in figures.requests if rtt), default=None)
    return median(_serial(figures, longest)) if longest else None


def _serial(figures: ReadyFigures, rtt_ms: float) -> list[int]:
    """Returns the serial steps of each start by blockmap's own log, else by that of the far side."""
    logs = figures.calls.get(rtt_ms) or [at_client(each, rtt_ms / 1000) for each in figures.requests[rtt_ms]]
    return [serial_steps(log) for log in logs]
