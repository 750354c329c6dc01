"""Commands about names and their history: log, diff, tag, untag."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from blockmap.errors import BlockmapError, ImageError
from blockmap.format import BLOCK
from blockmap.format.entry import Entry
from blockmap.format.refs import parse_name, parse_reference
from blockmap.format.version import Version
from blockmap.publish.reliance import tag_version
from blockmap.store.base import Reader
from blockmap.store.key_files import read_signer, read_trusted
from blockmap.store.names import NameLog, NameReader, NameTarget
from blockmap.store.opening import open_store, open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version, no_image
from blockmap.store.signing import Trust
from blockmap.terminal.options import json_option, need_store, sign_option, store_option, trust_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.units import size
from blockmap.upkeep.differences import Change, FileChange, compare_files, compare_trees

message_option = click.option("-m", "--message", default="", metavar="TEXT", help="Why; `log` shows it.")


@dataclass(frozen=True, slots=True)
class _Step:
    """An entry of a name's history."""

    entry: Entry
    version: Version | None
    added_bytes: int | None
    """What the version adds to the store beside its parent, or beside what the name stood for before; None if unknown."""

    def row(self) -> dict[str, Any]:
        """Returns the step for machines."""
        version = self.version
        return {
            "entry": self.entry.n,
            "time": _time(self.entry).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "host": self.entry.host,
            "digest": None if self.entry.version is None else f"sha256:{self.entry.version.hex()}",
            "parents": [f"sha256:{parent.hex()}" for parent in (version.parents if version else ())],
            "author": version.author if version else "",
            "message": self.message,
            "added_bytes": self.added_bytes,
            "signed_with": self.signer,
        }

    @property
    def signer(self) -> str | None:
        """Returns the id of the key that the entry says it is signed with."""
        return None if self.entry.signature is None else self.entry.signature.key

    @property
    def message(self) -> str:
        return self.entry.message or (self.version.message if self.version else "")


@click.command()
@click.argument("name")
@store_option
@click.option("-n", "count", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many entries.")
@json_option
def log(name: str, store: str | None, count: int, as_json: bool) -> None:
    """Show what NAME stood for, the newest first.

    NAME@{3} means what entry 3 made of it, in all commands; NAME@{2026-11-20} and NAME@{5 minutes ago} what it was then.
    """
    opened, _ = open_store(need_store(store))
    steps = list(islice(_steps(opened, name), count))
    if as_json:
        tell(json.dumps([step.row() for step in steps]))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("ENTRY", "TIME", "DIGEST", "PARENT", "ADDED"):
        table.add_column(title, justify="right" if title in ("ENTRY", "ADDED") else "left", no_wrap=True)
    signed = any(step.signer for step in steps)
    if signed:
        table.add_column("SIGNED WITH", no_wrap=True)
    for title in ("HOST", "MESSAGE"):
        table.add_column(title, overflow="fold")
    for step in steps:
        version = step.version
        said = f"{step.message} ({version.author})" if version and version.author else step.message
        table.add_row(
            *cells(
                step.entry.n,
                _time(step.entry).strftime("%Y-%m-%d %H:%M:%S"),
                "removed" if step.entry.version is None else step.entry.version.hex()[:12],
                ", ".join(parent.hex()[:12] for parent in version.parents) or "-" if version else "-",
                "-" if step.added_bytes is None else size(step.added_bytes),
                *([step.signer or "-"] if signed else []),
                step.entry.host,
                said,
            )
        )
    tell_table(table)


def _steps(store: Reader, name: str) -> Iterator[_Step]:
    """Yields the history of a name; what cannot be read of a version is left out, and said."""
    repo, tag = parse_name(name)
    repository = Repository(store)
    history = (entry for entry in NameReader(store).history(repo, tag) if not entry.is_fence)
    newer = next(history, None)
    if newer is None:
        raise no_image(parse_reference(name), store)
    while newer is not None:
        older = next(history, None)
        version, added = None, None
        try:
            if newer.version is not None:
                version = repository.version(newer.version, newer.number)
                added = _added(repository, version, older)
        except BlockmapError as error:
            warn(f"entry {newer.n}: {error}")
        yield _Step(newer, version, added)
        newer = older


def _added(repository: Repository, version: Version, before: Entry | None) -> int | None:
    if version.parents:
        base = repository.version(version.parents[0])
    elif before is not None and before.version is not None:
        base = repository.version(before.version, before.number)
    else:
        return None
    return compare_trees(repository, base.root, version.root).added_bytes


@click.command()
@click.argument("old")
@click.argument("new")
@store_option
@trust_option
@click.option("--ranges", is_flag=True, help="List the parts of the volume that differ, not the files.")
@json_option
def diff(old: str, new: str, store: str | None, trust: tuple[str, ...], ranges: bool, as_json: bool) -> None:
    """Show how NEW differs from OLD: regular files by content, renamed ones too, and bytes of the volume."""
    trusted = Trust(read_trusted(trust))
    opened, _ = open_store(need_store(store))
    repository = Repository(opened, trusted)
    left, right = (find_version(repository, parse_reference(name)).root for name in (old, new))
    trees = compare_trees(repository, left, right)
    places = [(start * BLOCK, (end - start) * BLOCK) for start, end in trees.ranges]
    files: list[FileChange] | None = None
    if not ranges:
        try:
            files = compare_files(repository, left, right, trees)
        except ImageError as error:
            warn(f"the files are not compared: {error}")
    if as_json:
        summary = {"differing_bytes": trees.blocks * BLOCK, "added_bytes": trees.added_bytes}
        what = {"ranges": places} if files is None else {"files": [_file_row(change) for change in files]}
        tell(json.dumps({**summary, **what}))
        return
    for change in files or ():
        source = f"/{_shown(change.source)} -> " if change.change is Change.RENAMED else ""
        tell(f"{change.change.value}  {size(change.size):>8}  {source}/{_shown(change.path)}")
    for start, length in places if ranges else ():
        tell(f"{start:>16}  {length:>12}")
    counted = "" if files is None else f"{len(files):,} files, "
    tell(f"{counted}{size(trees.blocks * BLOCK)} of the volume differ, {size(trees.added_bytes)} added to the store")


@click.command()
@click.argument("source")
@click.argument("name")
@store_option
@sign_option
@trust_option
@message_option
def tag(source: str, name: str, store: str | None, sign: Path | None, trust: tuple[str, ...], message: str) -> None:
    """Make NAME stand for what SOURCE stands for, an image of the store; moves no data.

    With --sign, the image is signed as well: name SOURCE by its digest, or give the --trust of whoever signed it, unless you
    trust all who write to the store.
    """
    target = NameTarget(*parse_name(name))
    trusted, signer = Trust(read_trusted(trust)), None if sign is None else read_signer(sign)
    opened, _ = open_writer(need_store(store))
    draft, entry = tag_version(opened, parse_reference(source), target, message, trusted, signer)
    version = draft.version
    assert version is not None
    tell(
        f"{target}  sha256:{version.hex()}  ({f'entry {entry.n} of its name' if entry else 'it stood for it already'})"
    )


@click.command()
@click.argument("name")
@store_option
@sign_option
@message_option
def untag(name: str, store: str | None, sign: Path | None, message: str) -> None:
    """Remove NAME, an image's name. Its history stays, and what it stood for until garbage is collected."""
    target, signer = NameTarget(*parse_name(name)), None if sign is None else read_signer(sign)
    entry = NameLog(open_writer(need_store(store))[0], signer=signer).remove(target, message)
    tell(f"{target} is removed; it was {target}@{{{entry.n - 1}}}")


def _time(entry: Entry) -> datetime:
    return datetime.fromtimestamp(entry.time, UTC)


def _file_row(change: FileChange) -> dict[str, Any]:
    row = {"change": change.change.name.lower(), "path": _shown(change.path), "size": change.size}
    return {**row, "source": _shown(change.source)} if change.change is Change.RENAMED else row


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
