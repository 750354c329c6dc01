"""Checks all that is needed before anything is built, measures, and prints."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from blockmap.bench import Report, show
from blockmap.bench.coldstart import plot as plots
from blockmap.bench.coldstart.engine import ENGINES, to_write
from blockmap.bench.coldstart.images import Prepared, prepare
from blockmap.bench.coldstart.link import Shape
from blockmap.bench.coldstart.opening import Opening, openings
from blockmap.bench.coldstart.origin import serving
from blockmap.bench.coldstart.prerequisites import find_prerequisites, need_image, need_programs
from blockmap.bench.coldstart.price_list import Prices
from blockmap.bench.coldstart.processes import calm
from blockmap.bench.coldstart.recording import record
from blockmap.bench.coldstart.report import CAVEATS, ReadyFigures, against, beside, details, of_openings, of_starts, row
from blockmap.bench.coldstart.schedule import Step, interleave
from blockmap.bench.coldstart.timed_start import Bench, TimedStart, start
from blockmap.bench.coldstart.ways import all_ways
from blockmap.errors import UsageError
from blockmap.host import tools
from blockmap.terminal.options import json_option
from blockmap.terminal.output import warn

_ROWS = tuple(all_ways())
_MAX_WORK_PATH = 50


def parse_rtts(text: str) -> list[float]:
    """Milliseconds, in increasing order; UsageError."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--rtt {text} is no list of milliseconds, as in 0,50,100,200") from None
    if not 0 <= found[0] <= found[-1] <= 10_000:
        raise UsageError(f"--rtt {text}: 0 to 10000 ms are expected")
    return found


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--rtt", "rtt", default="0,50,100,200", show_default=True, metavar="MS,...", help="Round-trip times.")
@click.option("--mbit", default=1000.0, show_default=True, help="Of the link, each way; 0 for no cap.")
@click.option("--rounds", default=5, show_default=True, help="Starts of each image in each way at each RTT.")
@click.option(
    "--row", "rows", multiple=True, type=click.Choice(_ROWS), help="Only these ways; may be given several times."
)
@click.option("--engine", default="http", show_default=True, type=click.Choice(ENGINES), help="Of blockmap's store.")
@click.option("--idle", default=120.0, show_default=True, help="Seconds before opening alone is timed again; 0: not.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds after which a start has failed.")
@click.option("--price-per-1000-requests", default=0.0004, show_default=True, help="$; GET of S3 Standard, us-east-1.")
@click.option("--price-per-gb", default=0.09, show_default=True, help="$; S3 to the internet; 0 within a region.")
@click.option(
    "--shared", envvar="BLOCKMAP_SHARED", default="../shared", show_default=True, metavar="DIR",
    type=click.Path(path_type=Path), help="Holds netshape and corpus/. [env BLOCKMAP_SHARED]",
)  # fmt: skip
@click.option(
    "--corpus", envvar="BLOCKMAP_CORPUS", metavar="DIR", type=click.Path(path_type=Path),
    help="Images, as corpus/build made them. [env BLOCKMAP_CORPUS]",
)  # fmt: skip
@click.option(
    "--work", default="/var/tmp", show_default=True, metavar="DIR", type=click.Path(path_type=Path, exists=True),
    help="For volumes and unpacked images, on the disk that hosts the floor.",
)  # fmt: skip
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Also a plot: .svg or .png (matplotlib).")
@json_option
def coldstart(
    images: tuple[str, ...],
    rtt: str,
    mbit: float,
    rounds: int,
    rows: tuple[str, ...],
    engine: str,
    idle: float,
    timeout: float,
    price_per_1000_requests: float,
    price_per_gb: float,
    shared: Path,
    corpus: Path | None,
    work: Path,
    plot: Path | None,
    as_json: bool,
) -> None:
    """From the request to open until IMAGE's program is ready, beside other ways to get there.

    IMAGE is NAME:VERSION of the corpus.
    """
    rtts = parse_rtts(rtt)
    if rounds < 1 or mbit < 0 or idle < 0:
        raise UsageError("--rounds is at least 1, --mbit and --idle at least 0")
    if len(str(work.absolute())) > _MAX_WORK_PATH:
        raise UsageError(
            f"--work {work}: sockets lie below it, and their paths have a limit: name a folder of at most {_MAX_WORK_PATH} "
            "characters"
        )
    if plot is not None:
        plots.need_matplotlib()
        if plot.suffix not in (".svg", ".png"):
            raise UsageError(f"--plot {plot}: a name that ends in .svg or .png is expected")
    found = find_prerequisites(shared, corpus)
    tools.need_root("bench coldstart")
    need_programs(engine)
    layouts = {image: need_image(found, image) for image in images}
    with calm() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockmap-bench-", dir=work)))
        origin = stack.enter_context(serving(folder, engine))
        bench = Bench(folder, origin, engine, Shape(found.netshape, mbit), found.run_startup, timeout)
        warn(f"preparing {', '.join(images)}")
        prepared = [prepare(image, layout, origin, engine, folder) for image, layout in layouts.items()]
        if not rows or "profile" in rows:
            store = to_write(engine, f"http://127.0.0.1:{origin.port}", origin.files)
            for each in prepared:
                warn(f"recording starts of {each.name}")
                record(each.name, store, found.run_startup, timeout, folder)
        starts = _starts(bench, prepared, rows or _ROWS, rtts, rounds)
        opened = _openings(bench, prepared, rtts, rounds, idle) if not rows or "resident" in rows else []
    if plot is not None:
        plots.draw(starts, plot)
    ways = all_ways()
    prices = Prices(price_per_1000_requests, price_per_gb)
    figures = [*starts, *opened]
    report: Report = {
        "caveats": CAVEATS,
        "rows": [row(each, rtts, prices) for each in figures],
        "summary": [
            *beside(starts, [ways[key].name for key in ("blockmap", "resident", "profile")], ways["qemu"].name),
            *(
                sentence
                for key in ("blockmap", "resident", "profile")
                for sentence in against(starts, ways[key].name, ways["local"].name, ways["pull"].name, mbit)
            ),
            *(failure for each in figures for failure in each.failures),
        ],
        "details": [details(each) for each in figures],
        "engine": engine,
        "mbit": mbit,
        "rounds": rounds,
        "prices": {"per_1000_requests": price_per_1000_requests, "per_gb": price_per_gb},
    }
    show(report, as_json)


def _starts(
    bench: Bench, images: Sequence[Prepared], rows: Sequence[str], rtts: Sequence[float], rounds: int
) -> list[ReadyFigures]:
    by_name, ways = {image.name: image for image in images}, all_ways()
    remote = [name for name in rows if ways[name].remote]
    local = [name for name in rows if not ways[name].remote]
    steps = interleave(list(by_name), remote, local, rtts, rounds)
    found: list[tuple[Step, TimedStart]] = []
    for number, step in enumerate(steps, 1):
        taken = start(bench, ways[step.way], by_name[step.image], step.rtt_ms)
        where = "" if step.rtt_ms is None else f" at {step.rtt_ms:g} ms"
        how = taken.failure if taken.ready_s is None else f"ready after {taken.ready_s:.2f} s"
        warn(f"{number}/{len(steps)} {step.image} by {ways[step.way].name}{where}: {how}")
        found.append((step, taken))
    # As the rows were asked for: the steps are shuffled.
    found.sort(key=lambda each: (list(by_name).index(each[0].image), list(rows).index(each[0].way)))
    return of_starts(found, {name: way.name for name, way in ways.items()})


def _openings(
    bench: Bench, images: Sequence[Prepared], rtts: Sequence[float], rounds: int, idle: float
) -> list[ReadyFigures]:
    figures = []
    for seconds in (0.0, idle) if idle else (0.0,):
        way = f"opening after {seconds:g} s idle" if seconds else "opening"
        found: list[Opening] = []
        for number in range(rounds):
            warn(f"{way}: {number + 1}/{rounds}")
            found += openings(bench, images, rtts, seconds)
        figures += of_openings(way, found)
    return figures
