"""Checks all that is needed before anything is built, measures, and prints; what is cut off prints what it has."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from blockmap.bench import show
from blockmap.bench.coldstart import plot as plots
from blockmap.bench.coldstart.engine import ENGINES, to_write
from blockmap.bench.coldstart.images import ImageForm, prepare
from blockmap.bench.coldstart.link import Shape
from blockmap.bench.coldstart.measurement import Measured, StartPlan, measure, ready_figures, summed_up
from blockmap.bench.coldstart.opening import OPENER
from blockmap.bench.coldstart.origin import serving
from blockmap.bench.coldstart.prerequisites import find_prerequisites, measurable, need_image, need_origin
from blockmap.bench.coldstart.price_list import Prices
from blockmap.bench.coldstart.processes import calm
from blockmap.bench.coldstart.recording import record
from blockmap.bench.coldstart.timed_start import Bench
from blockmap.bench.coldstart.ways import all_ways
from blockmap.errors import HostError, UsageError
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
    """From the request to open until IMAGE's program is ready.

    IMAGE is NAME:VERSION of the corpus. Rows whose programs are missing are left out, unless --row names them. Ctrl-C, or a
    timeout(1), ends the measurement with a table of the starts until then.
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
    need_origin(engine)
    ways = all_ways()
    chosen, notes = measurable(ways, rows)
    for note in notes:
        warn(note)
    layouts = {image: need_image(found, image) for image in images}
    forms = {form for name in chosen for form in ways[name].forms}
    plan = StartPlan({name: ways[name] for name in chosen}, rtts, rounds, mbit, idle, _opens(rows, chosen, notes))
    results, prices = Measured(), Prices(price_per_1000_requests, price_per_gb)
    with calm() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockmap-bench-", dir=work)))
        origin = stack.enter_context(serving(folder, engine))
        bench = Bench(folder, origin, engine, Shape(found.netshape, mbit), found.run_startup, timeout)
        warn(f"preparing {', '.join(images)}")
        prepared = [prepare(image, layout, origin, engine, folder, forms) for image, layout in layouts.items()]
        if ImageForm.PROFILE in forms:
            store = to_write(engine, f"http://127.0.0.1:{origin.port}", origin.files)
            for each in prepared:
                warn(f"recording starts of {each.name}")
                record(each.name, store, found.run_startup, timeout, folder)
        try:
            measure(bench, prepared, plan, results)
        finally:
            if results.starts:  # before all is taken apart: whoever cuts off a benchmark may not wait for that
                figures = ready_figures(plan, results, images)
                show(summed_up(plan, results, figures, prices, notes) | {"engine": engine}, as_json)
                if plot is not None:
                    plots.draw(figures, plot)


def _opens(rows: Sequence[str], chosen: Sequence[str], notes: list[str]) -> bool:
    """Returns True if opening alone is to be timed; adds a note where that cannot be."""
    if "resident" not in chosen:
        return False
    missing = tools.missing([OPENER])
    if missing and rows:
        raise HostError(f"opening alone, which belongs to the row resident, needs: apt-get install {' '.join(missing)}")
    notes += [f"opening alone is left out: apt-get install {' '.join(missing)}"] if missing else []
    return not missing
