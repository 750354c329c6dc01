"""The command `blockmap status`: shows what the server did since it started, and what is attached."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from blockmap.api.host import Attachment, Host
from blockmap.cli.figures import background, exports, remote
from blockmap.cli.opened import opened
from blockmap.control.client import Client
from blockmap.control.messages import ServerStatus
from blockmap.errors import HostError
from blockmap.format.refs import short_export
from blockmap.local.paths import default_socket
from blockmap.terminal.options import json_option, socket_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.units import duration, share, size

_CLOSED_SHOWN = 10


@click.command()
@socket_option
@json_option
def status(socket: Path | None, as_json: bool) -> None:
    """Show what the server does, and what is attached."""
    answer = Client((socket or default_socket()).absolute()).full_status()
    try:
        attached = opened(Host, socket=socket).attached()
    except HostError as error:
        warn(str(error))
        attached = []
    if as_json:
        tell(json.dumps({**answer, "attached": [asdict(each) for each in attached]}))
        return
    _tell(answer, attached)


def _tell(answer: ServerStatus, attached: Sequence[Attachment]) -> None:
    fetch, cache, calls = answer["fetch"], answer["cache"], remote(answer)
    traces, learn = answer["traces"], answer["learn"]
    tell(f"server    process {answer['pid']}, up {answer['seconds']:.0f} s, store {answer['store']}")
    if answer["trust"]:
        tell(f"trust     opens only what is signed with {' or '.join(answer['trust'])}")
    tell(
        f"cache     {size(cache['bytes'])} of {size(cache['cap_bytes'])}, {cache['slots']:,} chunks and nodes, "
        f"{cache['evicted']:,} evicted, {cache['damaged']:,} found damaged, {cache['lost']:,} lost"
    )
    if cache["missing"]:
        tell("          its directory is gone, and cannot be made again: reads go on without a cache")
    elif cache["replaced"]:
        tell(f"          its directory was removed or replaced {cache['replaced']:,} times: it began anew, empty")
    tell(
        f"fetched   {size(fetch['bytes'])} in {fetch['requests']:,} requests, {fetch['chunks']:,} chunks, "
        f"{fetch['damaged']:,} damaged on arrival, {fetch['failed_reads']:,} failed"
    )
    tell(
        f"remote    {calls.count:,} requests, {size(calls.bytes)}, {calls.errors:,} errors, "
        f"p50 {duration(calls.latency_s(0.5))}, p99 {duration(calls.latency_s(0.99))}"
    )
    for line in background(answer):
        tell(f"ahead     {line}")
    tell(
        f"starts    {traces['running']:,} under way, {traces['begun']:,} recorded, {traces['learnable']:,} to learn from, "
        f"learnt {learn['runs'] - learn['failures']:,} times, {learn['failures']:,} failed"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("EXPORT", overflow="fold")
    for title in ("SIZE", "CONNECTIONS", "READS", "BYTES", "HITS", "P50", "P99", "WAITING", "ERRORS"):
        table.add_column(title, justify="right", no_wrap=True)
    found = exports(answer)
    closed = [each for each in found if each.size is None]
    listed = [*(each for each in found if each.size is not None), *closed[-_CLOSED_SHOWN:]]
    for each in listed:
        reads = each.reads
        table.add_row(
            *cells(short_export(each.name)),
            "closed" if each.size is None else size(each.size),
            str(each.connections),
            f"{reads.count:,}",
            size(reads.bytes),
            share(reads.hit_ratio),
            duration(reads.latency_s(0.5)),
            duration(reads.latency_s(0.99)),
            str(each.waiting),
            f"{reads.errors:,}",
        )
    if listed:
        tell_table(table)
    if len(closed) > _CLOSED_SHOWN:
        tell(f"and {len(closed) - _CLOSED_SHOWN} that were closed before: --json shows them")
    if attached:
        _tell_attached(attached)


def _tell_attached(attached: Sequence[Attachment]) -> None:
    mounts = Table("ATTACHED AT", "NAME", "DEVICE", box=None, pad_edge=False)
    followed, moved = any(each.is_followed for each in attached), any(each.has_moved for each in attached)
    for title in (*(["FOLLOWED"] if followed else []), *(["NAME HAS MOVED TO"] if moved else [])):
        mounts.add_column(title)
    for each in attached:
        follows = ["yes" if each.is_followed else "-"] if followed else []
        newest = [short_export(each.newest or "nothing") if each.has_moved else "-"] if moved else []
        mounts.add_row(*cells(each.directory, each.name, each.device, *follows, *newest))
    tell_table(mounts)
