"""The command `blockmap serve`."""

from datetime import datetime
from pathlib import Path

import click

from blockmap.cli.opened import state
from blockmap.host.attachments import Attachments
from blockmap.host.devices.kinds import HostDevices
from blockmap.host.serve.supervisor import Supervisor
from blockmap.local.paths import default_cache, default_socket, own
from blockmap.origin.outage_policy import parse_option
from blockmap.origin.records import open_served
from blockmap.server.opener import ANSWER_SECONDS
from blockmap.store.key_files import read_signer, read_trusted
from blockmap.store.opening import location
from blockmap.terminal.options import cache_option, need_store, sign_option, socket_option, store_option, trust_option
from blockmap.terminal.output import warn


@click.command()
@store_option
@trust_option
@sign_option
@cache_option
@socket_option
@click.option(
    "--listen", metavar="HOST:PORT", help="Also serve on TCP, without authentication: clones can be written to."
)
@click.option("--metrics", metavar="PATH|HOST:PORT", help="Also answer Prometheus, on a Unix socket or TCP.")
@click.option(
    "--cache-size",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="Of the cache; 20 GB or a quarter of the free disk by default.",
)
@click.option(
    "--outage",
    "outages",
    multiple=True,
    metavar="[EXPORT=]wait=SECONDS|fail",
    help="While the store is away, reads that need it wait, then fail, or fail at once; wait=60 by default. Once for all "
    "exports, and once for each that differs.",
)
@click.option(
    "--learn/--no-learn",
    default=True,
    show_default=True,
    help="Publish what starts read, so that the next ones, on any host, need not wait for it.",
)
@click.option(
    "--hydrate/--no-hydrate",
    default=True,
    show_default=True,
    help="Bring the rest of an image while its start goes on missing, as far as the link has bytes to spare, or where starts "
    "read most of it; without, only what is read, or known to be, unless `attach --hydrate` asks for all.",
)
@click.option("--idle-exit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", hidden=True)
def serve(
    store: str | None,
    trust: tuple[str, ...],
    sign: Path | None,
    cache: Path | None,
    socket: Path | None,
    listen: str | None,
    metrics: str | None,
    cache_size: int | None,
    outages: tuple[str, ...],
    learn: bool,
    hydrate: bool,
    idle_exit: float | None,
) -> None:
    """Serve every image of the store, and the clones of this host, over NBD."""
    for each in outages:
        parse_option(each)
    trusted = list(map(str, read_trusted(trust)))
    if sign is not None:
        read_signer(sign)  # what is wrong with it is said now, not at the first commit
    url = location(need_store(store))
    directory = own((cache or default_cache()).absolute())
    open_served(url, directory, ANSWER_SECONDS)
    where = (socket or default_socket()).absolute()

    def take_over() -> None:
        Attachments(state(), HostDevices(state()), _log).clean(where)

    Supervisor(
        url,
        directory,
        cache_size,
        state().absolute(),
        outages,
        where,
        listen,
        idle_exit,
        _log,
        _pass_on,
        take_over,
        metrics,
        learn,
        trusted,
        hydrate,
        None if sign is None else sign.absolute(),
    ).run()


def _log(text: str) -> None:
    warn(text, before=f"{datetime.now():%Y-%m-%d %H:%M:%S} ")


def _pass_on(line: bytes) -> None:
    warn(line.rstrip(b"\n").decode(errors="backslashreplace"), before="")
