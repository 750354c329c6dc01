"""Commands about traces, which servers keep of every start: list, show, export."""

import json
from pathlib import Path

import click
from rich.table import Table

from blockmap.cli.profiles import item_rows, item_table
from blockmap.format.trace import DECLARED, EXACT, Trace
from blockmap.learn.first_touches import first_touches
from blockmap.learn.local_files import TraceFolder, load_trace
from blockmap.learn.stored_index import index_of
from blockmap.local.paths import default_cache, traces_folder
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.terminal.machine import digest, tell_json, timestamp
from blockmap.terminal.options import cache_option, json_option, need_store, store_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.units import size


@click.group()
def trace() -> None:
    """What each start on this host read, and when."""


@trace.command("list")
@cache_option
@json_option
def list_(cache: Path | None, as_json: bool) -> None:
    """List the traces on this host, oldest first."""
    rows = [{"trace": path.stem, **_about(own)} for path, own in _folder(cache).all()]
    if as_json:
        tell_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("TRACE", "STARTED", "IMAGE", "VERSION", "READS", "SIZE", "END", "READY", "NEW", "START", "PROFILE"):
        table.add_column(title, overflow="fold")
    for row in rows:
        ready = f"{row['ready_ms']} ms" if row["ready_ms"] else "-"
        values = (
            row["trace"], row["started"], f"{row['repo']}+{row['label']}", str(row["version"])[len("sha256:") :][:12],
            row["reads"], size(float(str(row["bytes"]))), row["end"], ready, "yes" if row["new"] else "no",
            "yes" if row["declared"] else "no", row["profile"] or "-",
        )  # fmt: skip
        table.add_row(*cells(*values))
    tell_table(table)


@trace.command()
@click.argument("name", metavar="TRACE")
@store_option
@cache_option
@click.option("--files", is_flag=True, help="List which files were read first, in which order; asks the store.")
@json_option
def show(name: str, store: str | None, cache: Path | None, files: bool, as_json: bool) -> None:
    """Show what TRACE is about, and what was read."""
    own = load_trace(_folder(cache).find(name))
    about = _about(own)
    items = []
    if files:
        repository = Repository(open_store(need_store(store))[0])
        items = first_touches(own, index_of(repository, repository.version(own.head.version).root))
    if as_json:
        tell_json({**about, "items": item_rows(items, 1)} if files else about)
        return
    for key, value in about.items():
        tell(f"{key:<10}  {'-' if value is None else value}")
    if files:
        tell_table(item_table(items, 1))


@trace.command()
@click.argument("name", metavar="TRACE")
@cache_option
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values instead of a JSON object a line.")
def export(name: str, cache: Path | None, as_csv: bool) -> None:
    """Print the reads of TRACE, a line each.

    A line has microseconds since the open, offset and length in bytes.
    """
    own = load_trace(_folder(cache).find(name))
    columns = ("time_us", "offset", "length")
    rows = zip(*(own.reads[column].tolist() for column in columns), strict=True)
    if as_csv:
        tell(",".join(columns), *(",".join(map(str, row)) for row in rows))
    else:
        tell(*(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))


def _folder(cache: Path | None) -> TraceFolder:
    return TraceFolder(traces_folder(cache or default_cache()), warn)


def _about(own: Trace) -> dict[str, object]:
    head = own.head
    return {
        "repo": head.repo,
        "label": head.label,
        "version": digest(head.version),
        "started": timestamp(head.started_us / 1e6),
        "reads": len(own.reads),
        "bytes": int(own.reads["length"].sum(dtype="int64")),
        "seconds": int(own.reads["time_us"][-1]) / 1e6 if len(own.reads) else 0.0,
        "end": head.end.name.lower(),
        "ready_ms": head.ready_ms or None,
        "new": head.is_new,
        "declared": bool(head.flags & DECLARED),
        "exact": bool(head.flags & EXACT),
        "profile": head.profile or None,
    }
