"""Commands about names and their history: log (which is history, too), diff, tag, untag."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from blockmap.api.history import GraphVersion, LogEntry
from blockmap.api.store import ImageStore
from blockmap.cli.opened import opened
from blockmap.errors import UsageError
from blockmap.terminal.graph import draw
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import json_option, need_store, sign_option, store_option, trust_option
from blockmap.terminal.output import tell
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.times import moment, timestamp
from blockmap.terminal.units import size
from blockmap.upkeep.differences import Change, FileChange

message_option = click.option("-m", "--message", default="", metavar="TEXT", help="Why; `log` shows it.")


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--graph", is_flag=True, help="Draw which version was made of which; of all names, where none is given.")
@click.option("-n", "count", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@store_option
@json_option
def log(names: tuple[str, ...], graph: bool, store: str | None, count: int, as_json: bool) -> None:
    """Show what each NAME stood for, the newest first.

    With --graph, how versions came from each other. NAME@{3} means what entry 3 made of it, in all commands; NAME@{2026-11-20}
    and NAME@{5 minutes ago} what it was then.
    """
    images = opened(ImageStore, need_store(store))
    if graph:
        _tell_graph(images.graph(names, count=count), as_json)
        return
    if not names:
        raise UsageError("no NAME is given: whose history is to be shown? --graph shows that of all")
    entries = [entry for name in names for entry in islice(images.log(name), count)]
    if as_json:
        tell_json([_row(entry) for entry in entries])
        return
    _tell_entries(entries, len(names) > 1)


def _tell_entries(entries: Sequence[LogEntry], want_names: bool) -> None:
    table = Table(box=None, pad_edge=False)
    if want_names:
        table.add_column("NAME", overflow="fold")
    for title in ("ENTRY", "TIME", "DIGEST", "PARENT", "ADDED"):
        table.add_column(title, justify="right" if title in ("ENTRY", "ADDED") else "left", no_wrap=True)
    signed = any(entry.signed_with for entry in entries)
    if signed:
        table.add_column("SIGNED WITH", no_wrap=True)
    for title in ("HOST", "MESSAGE"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        table.add_row(
            *cells(
                *([entry.name] if want_names else []),
                entry.number,
                moment(entry.time),
                "removed" if entry.digest is None else _short(entry.digest),
                ", ".join(map(_short, entry.parents)) or "-",
                "-" if entry.added_bytes is None else size(entry.added_bytes),
                *([entry.signed_with or "-"] if signed else []),
                entry.host,
                f"{entry.message} ({entry.author})" if entry.author else entry.message,
            )
        )
    tell_table(table)


def _row(entry: LogEntry) -> dict[str, Any]:
    row = asdict(entry)
    return {"entry": row.pop("number"), **row, "time": timestamp(entry.time)}


def _tell_graph(versions: Sequence[GraphVersion], as_json: bool) -> None:
    if as_json:
        tell_json([{**asdict(each), "time": timestamp(each.time)} for each in versions])
        return
    drawn = draw((each.digest, each.parents) for each in versions)
    for (lines, head), each in zip(drawn, versions, strict=True):
        names = [*each.names, *each.past_names]
        said = f" ({each.author})" if each.author else ""
        known = f" ({', '.join(names)})" if names else ""
        tell(*lines, f"{head} {_short(each.digest)}{known}  {moment(each.time)}  {each.message}{said}".rstrip())


@click.command()
@click.argument("old")
@click.argument("new")
@store_option
@trust_option
@click.option("--ranges", is_flag=True, help="List the parts of the volume that differ, not the files.")
@json_option
def diff(old: str, new: str, store: str | None, trust: tuple[str, ...], ranges: bool, as_json: bool) -> None:
    """Show how NEW differs from OLD, file by file.

    Regular files are compared by content, renamed ones too, and the bytes of the volume.
    """
    found = opened(ImageStore, need_store(store), trust=trust).diff(old, new, files=not ranges)
    files = found.files
    if as_json:
        summary = {"differing_bytes": found.differing_bytes, "added_bytes": found.added_bytes}
        what = {"ranges": found.ranges} if files is None else {"files": [_file_row(change) for change in files]}
        tell_json({**summary, **what})
        return
    for change in files or ():
        source = f"/{_shown(change.source)} -> " if change.change is Change.RENAMED else ""
        tell(f"{change.change.value}  {size(change.size):>8}  {source}/{_shown(change.path)}")
    for start, length in found.ranges if ranges else ():
        tell(f"{start:>16}  {length:>12}")
    counted = "" if files is None else f"{len(files):,} files, "
    tell(f"{counted}{size(found.differing_bytes)} of the volume differ, {size(found.added_bytes)} added to the store")


@click.command()
@click.argument("source")
@click.argument("name")
@store_option
@sign_option
@trust_option
@message_option
def tag(source: str, name: str, store: str | None, sign: Path | None, trust: tuple[str, ...], message: str) -> None:
    """Make NAME stand for what SOURCE stands for.

    SOURCE is an image of the store; no data is moved. With --sign, the image is signed as well: name SOURCE by its digest, or
    give the --trust of whoever signed it, unless you trust all who write to the store.
    """
    done = opened(ImageStore, need_store(store), trust=trust, sign=sign).tag(source, name, message=message)
    said = "it stood for it already" if done.entry is None else f"entry {done.entry} of its name"
    tell(f"{done.name}  {done.digest}  ({said})")


@click.command()
@click.argument("name")
@store_option
@sign_option
@message_option
def untag(name: str, store: str | None, sign: Path | None, message: str) -> None:
    """Remove NAME, an image's name. Its history stays, and what it stood for until garbage is collected."""
    done = opened(ImageStore, need_store(store), sign=sign).untag(name, message=message)
    tell(f"{done.name} is removed; it was {done.name}@{{{done.entry - 1}}}")


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _file_row(change: FileChange) -> dict[str, Any]:
    row = {"change": change.change.name.lower(), "path": _shown(change.path), "size": change.size}
    return {**row, "source": _shown(change.source)} if change.change is Change.RENAMED else row


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
