"""Runs the command `blockmap report`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from blockmap import durable
from blockmap.control.client import Client
from blockmap.errors import BlockmapError, HostError, UsageError
from blockmap.local.paths import default_cache, default_socket, traces_folder
from blockmap.report import sources
from blockmap.report.data import ReportedStart, ReportRun, cover, find_pauses
from blockmap.store.opening import location, open_store
from blockmap.store.repository import Repository
from blockmap.terminal.options import cache_option, socket_option, store_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.units import size

_MOST = 2


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="NAME|TRACE...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html", help="REPO.html by default."
)
@click.option("--label", metavar="LABEL", help="Only traces of this workload.")
@click.option("--profile", "number", type=click.IntRange(min=1), metavar="N", help="The profile to compare with; by default "
              "the one that the start replayed, else the newest.")  # fmt: skip
@store_option
@cache_option
@socket_option
def report(
    words: tuple[str, ...],
    output: Path | None,
    label: str | None,
    number: int | None,
    store: str | None,
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Draw what a start read, when, and where it waited: one HTML page that opens anywhere.

    NAME is the latest start of an image on this host, given twice its latest two; a TRACE is a file. Two starts are drawn side
    by side. Needs a store, or a server that answers, to tell files.
    """
    render = _renderer()
    if len(words) > _MOST:
        raise UsageError(f"{len(words)} starts do not fit on a page: name one or two")
    client = Client((socket or default_socket()).absolute())
    served = _served(client)
    url = location(store) if store else served
    repository = None if url is None else Repository(open_store(url)[0])
    if repository is None:
        warn("without --store, and with no server that answers, the report names no files")
    folder = traces_folder(cache or default_cache())
    starts = []
    traces = sources.find_traces(words, folder, label, repository)
    for number_of_start, trace in enumerate(traces, 1):
        run = sources.load_run(trace, repository, warn)
        if len(traces) > 1:
            run = replace(run, title=f"start {number_of_start}: {run.title}")
        starts.append(_start(run, repository, client if served == url else None, number))
    path = output or Path(f"{starts[0].run.head.repo.replace('/', '-').replace(':', '-')}.html")
    page = render(starts).encode()
    durable.replace(path, page)
    tell(f"{path}: {size(len(page))}")


def _renderer() -> Callable[[Sequence[ReportedStart]], str]:
    try:
        from blockmap.report.page import render
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "bokeh":
            raise
        raise HostError(
            "blockmap report needs bokeh, which is not installed: pip install '.[report]' in a checkout of blockmap"
        ) from None
    return render


def _served(client: Client) -> str | None:
    """Returns the store of the server that answers, if one does."""
    try:
        return client.status()["store"]
    except HostError:
        return None


def _start(run: ReportRun, repository: Repository | None, client: Client | None, number: int | None) -> ReportedStart:
    calls = "no server of this store answers" if client is None else sources.server_calls(client, run)
    known = None if isinstance(calls, str) else calls
    pauses = find_pauses(run, known)
    found: Any = "The store is not known."
    if repository is not None:
        try:
            found = sources.find_profile(run, repository, number)
        except BlockmapError as error:
            found = str(error)
    note = found if isinstance(found, str) else _note(run, found)
    coverage = None if isinstance(found, str) else cover(run, found.blocks)
    return ReportedStart(run, pauses, known or (), "" if known is not None else str(calls), coverage, note)


def _note(run: ReportRun, found: sources.Profiled) -> str:
    made = found.profile
    text = f"Profile {made.n}, learnt from {made.starts} {'start' if made.starts == 1 else 'starts'}."
    if found.replayed:
        return (
            f"{text} This start replayed it. Where the replay filled the kernel's cache, its own reads count as covered, so more "
            "may be wasted than is shown."
        )
    if made.time * 1_000_000 > run.head.started_us:
        return f"{text} It is younger than this start and may have learnt from it, so that it covers it is no surprise."
    return f"{text} This start did not replay it."
