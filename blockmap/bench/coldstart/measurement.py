"""Makes all starts and openings that were asked for, and sums them up, also where it was cut off."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from blockmap.bench import Report
from blockmap.bench.coldstart.images import Prepared
from blockmap.bench.coldstart.opening import Opening, openings
from blockmap.bench.coldstart.price_list import Prices
from blockmap.bench.coldstart.report import CAVEATS, ReadyFigures, against, beside, details, of_openings, of_starts, row
from blockmap.bench.coldstart.schedule import Step, interleave
from blockmap.bench.coldstart.timed_start import Bench, TimedStart, start
from blockmap.bench.coldstart.ways import Way, all_ways
from blockmap.terminal.output import warn


@dataclass(frozen=True, slots=True)
class StartPlan:
    """What is to be measured."""

    ways: dict[str, Way]
    """The rows, by the words that ask for them, in the order of the table."""
    rtts: list[float]
    rounds: int
    mbit: float
    idle_s: float
    opens: bool
    """True if opening alone is timed as well."""


@dataclass(slots=True)
class Measured:
    """What was measured until now."""

    steps: int = 0
    """Starts that are to be made."""
    starts: list[tuple[Step, TimedStart]] = field(default_factory=list)
    opened: list[ReadyFigures] = field(default_factory=list)
    is_whole: bool = False


def measure(bench: Bench, images: Sequence[Prepared], plan: StartPlan, results: Measured) -> None:
    """Makes all starts and openings; `results` has them as they come."""
    by_name = {image.name: image for image in images}
    remote = [name for name, way in plan.ways.items() if way.remote]
    local = [name for name in plan.ways if name not in remote]
    steps = interleave(list(by_name), remote, local, plan.rtts, plan.rounds)
    results.steps = len(steps)
    for number, step in enumerate(steps, 1):
        way = plan.ways[step.way]
        taken = start(bench, way, by_name[step.image], step.rtt_ms)
        where = "" if step.rtt_ms is None else f" at {step.rtt_ms:g} ms"
        how = taken.failure if taken.ready_s is None else f"ready after {taken.ready_s:.2f} s"
        warn(f"{number}/{len(steps)} {step.image} by {way.name}{where}: {how}")
        results.starts.append((step, taken))
    for seconds in (0.0, plan.idle_s) if plan.idle_s else (0.0,):
        if not plan.opens:
            break
        name = f"opening after {seconds:g} s idle" if seconds else "opening"
        found: list[Opening] = []
        for number in range(plan.rounds):
            warn(f"{name}: {number + 1}/{plan.rounds}")
            found += openings(bench, images, plan.rtts, seconds)
        results.opened += of_openings(name, found)
    results.is_whole = True


def ready_figures(plan: StartPlan, results: Measured, images: Sequence[str]) -> list[ReadyFigures]:
    """Returns the starts by image and way, as the rows were asked for: they are made in another order."""
    names = list(plan.ways)
    starts = sorted(results.starts, key=lambda each: (images.index(each[0].image), names.index(each[0].way)))
    return of_starts(starts, {name: way.name for name, way in plan.ways.items()})


def summed_up(
    plan: StartPlan, results: Measured, starts: Sequence[ReadyFigures], prices: Prices, notes: Sequence[str]
) -> Report:
    """Returns all that is printed; `notes` say what was left out."""
    names = {key: way.name for key, way in all_ways().items()}
    figures = [*starts, *results.opened]
    # Rounds come one after the other, each with as many starts.
    whole_rounds = len(results.starts) * plan.rounds // results.steps
    cut_off = [] if results.is_whole else [
        f"Cut off: {len(results.starts)} of {results.steps} starts were made, {whole_rounds} of {plan.rounds} rounds are whole; "
        "`starts` says how many each row has."
    ]  # fmt: skip
    return {
        "caveats": [*CAVEATS, *notes, *cut_off],
        "rows": [row(each, plan.rtts, prices) for each in figures],
        "summary": [
            *beside(starts, [names[key] for key in ("blockmap", "resident", "profile")], names["qemu"]),
            *(
                sentence
                for key in ("blockmap", "resident", "profile")
                for sentence in against(starts, names[key], names["local"], names["pull"], plan.mbit)
            ),
            *(failure for each in figures for failure in each.failures),
            *cut_off,
        ],
        "details": [details(each) for each in figures],
        "cut_off": not results.is_whole,
        "mbit": plan.mbit,
        "rounds": plan.rounds,
        "whole_rounds": whole_rounds,
        "prices": {"per_1000_requests": prices.per_1000_requests, "per_gb": prices.per_gb},
    }  # fmt: skip
