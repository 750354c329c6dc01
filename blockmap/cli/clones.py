"""Commands for clones: clone, clones, fork, rewind."""

from dataclasses import asdict
from pathlib import Path

import click

from blockmap.api.clones import CloneHost
from blockmap.cli.opened import opened
from blockmap.format.refs import short_export
from blockmap.terminal.machine import tell_json, timestamp
from blockmap.terminal.options import cache_option, json_option, socket_option, store_option, trust_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.units import parse_size


@click.command()
@click.argument("name")
@click.argument("clone_name", metavar="CLONE")
@click.option(
    "--size",
    metavar="SIZE",
    help="A larger one than the image's, as in 40G; resize2fs in the mounted clone then makes its file system larger.",
)
@store_option
@trust_option
@cache_option
@socket_option
def clone(
    name: str,
    clone_name: str,
    size: str | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Make CLONE, a writable clone of the image NAME.

    It takes no time, and no room but for what is written. `attach CLONE DIR` mounts it; any NBD client can write to the export
    CLONE. It stays, also while the server restarts, until `rm CLONE`.
    """
    wanted = None if size is None else parse_size(size)
    opened(CloneHost, store, cache, socket, trust).clone(name, clone_name, size=wanted)
    tell(f"{clone_name} is a clone of {name}")


@click.command()
@socket_option
@json_option
def clones(socket: Path | None, as_json: bool) -> None:
    """List this host's clones, and those whose image has moved.

    What an image stands for by now is known where a server answers.
    """
    found = opened(CloneHost, socket=socket).clones()
    if as_json:
        tell_json([{**asdict(each), "created": timestamp(each.created)} for each in found])
        return
    # Imported here: what tables need takes 20 ms, which `clone` does without.
    from rich.table import Table

    from blockmap.terminal.tables import cells, tell_table
    from blockmap.terminal.times import moment
    from blockmap.terminal.units import size

    table = Table(box=None, pad_edge=False)
    for title in ("CLONE", "IMAGE"):
        table.add_column(title, overflow="fold")
    for title in ("DIGEST", "CREATED", "WRITTEN", "VOLUME", "UNPUBLISHED", "IN USE BY"):
        table.add_column(title, justify="right" if title in ("WRITTEN", "VOLUME") else "left", no_wrap=True)
    moved = any(each.has_origin_moved for each in found)
    if moved:
        table.add_column("IMAGE IS NOW", overflow="fold")
    for each in found:
        newest = [short_export(each.origin_now or "") if each.has_origin_moved else "-"] if moved else []
        digest = each.base.partition("@sha256:")[2][:12]
        unpublished = f"{each.unpublished}{', waits for you' if each.conflict else ''}" if each.unpublished else "-"
        sizes = size(each.written_bytes), size(each.size)
        about = each.name, each.origin, digest, moment(each.created), *sizes, unpublished, each.in_use_by or "-"
        table.add_row(*cells(*about, *newest))
        if each.conflict:
            warn(f"{each.name}: {each.conflict}")
    tell_table(table)


@click.command()
@click.argument("clone_name", metavar="CLONE")
@click.argument("new")
@click.option("-n", "count", type=click.IntRange(1, 1000), help="So many, called NEW-1, NEW-2, and so on.")
@store_option
@cache_option
@socket_option
def fork(
    clone_name: str, new: str, count: int | None, store: str | None, cache: Path | None, socket: Path | None
) -> None:
    """Make NEW, a clone of what CLONE is at this moment.

    It may be mounted and written to meanwhile. With -n, all are of one moment. What was written before is shared by all of
    them; nothing is copied or published.
    """
    names = [new] if count is None else [f"{new}-{number}" for number in range(1, count + 1)]
    opened(CloneHost, store, cache, socket).fork(clone_name, names)
    tell(f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}: forked from {clone_name}")


@click.command()
@click.argument("clone_name", metavar="CLONE")
@click.argument("name")
@store_option
@cache_option
@socket_option
def rewind(clone_name: str, name: str, store: str | None, cache: Path | None, socket: Path | None) -> None:
    """Put CLONE on the version NAME, and forget what was written.

    Nobody may use it meanwhile. NAME is any version: repo:tag, repo:tag@{3}, repo:tag@{5 minutes ago}, repo@sha256:DIGEST.
    """
    tell(f"{clone_name} is {opened(CloneHost, store, cache, socket).rewind(clone_name, name)}")
