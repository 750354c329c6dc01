"""The command `blockmap status`: shows what the server did since it started, and what is attached."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from blockmap.api.host import Attachment, Host
from blockmap.cli.exit_codes import NO_SERVER
from blockmap.cli.figures import Export, exports, faults, prefetches, remote
from blockmap.cli.opened import opened
from blockmap.control.client import Client
from blockmap.control.messages import ServerStatus
from blockmap.errors import HostError, NoServer
from blockmap.format.refs import short_export
from blockmap.local.paths import server_socket
from blockmap.terminal.machine import tell_json, timestamp
from blockmap.terminal.options import json_option, socket_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.units import duration, share, size

_CLOSED_SHOWN = 10


@click.command()
@socket_option
@json_option
def status(socket: Path | None, as_json: bool) -> None:
    """Show what the server does, and what is attached.

    What is attached is listed from disk, also where no server answers; then the exit status is 3.
    """
    where = (socket or server_socket()).absolute()
    answer: ServerStatus | None = None
    try:
        answer = Client(where).full_status()
    except NoServer as error:
        warn(str(error))
    attached = _attached(where)
    if as_json:
        rows = [asdict(each) for each in attached]
        tell_json({"running": answer is not None, **({} if answer is None else _machine(answer)), "attached": rows})
    else:
        if answer is not None:
            _tell(answer)
        if attached:
            _tell_attached(attached)
    if answer is None:
        click.get_current_context().exit(NO_SERVER)


def _attached(socket: Path) -> list[Attachment]:
    try:
        return opened(Host, socket=socket).attached()
    except PermissionError:
        return []  # a member of the server's group
    except HostError as error:
        warn(str(error))
        return []


def _machine(answer: ServerStatus) -> dict[str, object]:
    return {**answer, "started": timestamp(answer["started"])}


def _tell(answer: ServerStatus) -> None:
    cache, calls, traces, learn = answer["cache"], remote(answer), answer["traces"], answer["learn"]
    supervisor = answer["supervisor"]
    tell(
        f"server    process {supervisor['pid']} (its nbdkit: {answer['pid']}), up {_time(answer['seconds'])}",
        f"store     {answer['store']}",
    )
    if supervisor["idle_seconds"] is not None:
        tell(
            f"end       by itself, {_time(supervisor['idle_seconds'])} after its last use; `blockmap stop` ends it now"
        )
    if supervisor["log"] is not None:
        tell(f"log       {supervisor['log']}")
    if answer["trust"]:
        tell(f"trust     opens only what is signed with {' or '.join(answer['trust'])}")
    tell(
        f"cache     {size(cache['bytes'])} of {size(cache['cap_bytes'])}",
        f"fetched   {size(calls.bytes)} in {calls.count:,} request{'' if calls.count == 1 else 's'}",
        f"latency   {duration(calls.latency_s(0.5))} (p50), {duration(calls.latency_s(0.99))} (p99)",
    )
    for line in prefetches(answer):
        tell(f"prefetch  {line}")
    tell(f"starts    {traces['begun']:,} recorded, {learn['runs'] - learn['failures']:,} learnt from")
    for line in faults(answer):
        tell(f"faults    {line}")
    found = exports(answer)
    closed = [each for each in found if each.size is None]
    listed = [*(each for each in found if each.size is not None), *closed[-_CLOSED_SHOWN:]]
    if listed:
        tell_table(_table(listed))
    if len(closed) > _CLOSED_SHOWN:
        tell(f"and {len(closed) - _CLOSED_SHOWN} that were closed before: --json shows them")


def _table(listed: Sequence[Export]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("EXPORT", overflow="fold")
    for title in ("SIZE", "CONN", "READS", "BYTES", "HITS", "P50", "P99", "WAIT", "ERR"):
        table.add_column(title, justify="right", no_wrap=True)
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
    return table


def _tell_attached(attached: Sequence[Attachment]) -> None:
    mounts = Table(box=None, pad_edge=False)
    followed, moved = any(each.is_followed for each in attached), any(each.has_moved for each in attached)
    titles = [
        "ATTACHED AT",
        "NAME",
        "DEVICE",
        *(["FOLLOWED"] if followed else []),
        *(["NAME HAS MOVED TO"] if moved else []),
    ]
    for title in titles:
        mounts.add_column(title, overflow="fold")
    for each in attached:
        follows = ["yes" if each.is_followed else "-"] if followed else []
        newest = [short_export(each.newest or "nothing") if each.has_moved else "-"] if moved else []
        mounts.add_row(*cells(each.directory, each.name, each.device, *follows, *newest))
    tell_table(mounts)


def _time(seconds: float) -> str:
    """Formats a time for people: 45 s, 12 min, 3 h, 5 days."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
