"""The command `blockmap serve`."""

import grp
from pathlib import Path

import click

from blockmap.errors import UsageError
from blockmap.host.attachments import Attachments
from blockmap.host.devices.kinds import HostDevices
from blockmap.host.serve.supervisor import Supervisor
from blockmap.local.paths import default_cache, default_socket, default_state, own
from blockmap.local.settings import setting
from blockmap.origin.outage_policy import parse_option
from blockmap.origin.records import open_served
from blockmap.server.opener import ANSWER_SECONDS
from blockmap.store.key_files import read_signer, read_trusted
from blockmap.store.opening import location
from blockmap.terminal.options import cache_option, need_store, sign_option, socket_option, store_option, trust_option
from blockmap.terminal.output import tell_log


@click.command()
@store_option
@trust_option
@sign_option
@cache_option
@socket_option
@click.option(
    "--listen",
    default=lambda: setting("listen"),
    metavar="HOST:PORT",
    help="Also serve on TCP, without authentication: clones can be written to.",
)
@click.option(
    "--metrics",
    default=lambda: setting("metrics"),
    metavar="PATH|HOST:PORT",
    help="Also answer Prometheus, on a Unix socket or TCP.",
)
@click.option(
    "--cache-size",
    default=lambda: setting("cache_size"),
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="Of the cache; 20 GB or a quarter of the free disk by default.",
)
@click.option(
    "--outage",
    "outages",
    multiple=True,
    default=lambda: setting("outage"),
    metavar="[EXPORT=]wait=SECONDS|fail",
    help="While the store is away, reads that need it wait, then fail, or fail at once; wait=60 by default. Once for all "
    "exports, and once for each that differs.",
)
@click.option(
    "--learn/--no-learn",
    default=lambda: setting("learn") is not False,
    help="Publish what starts read, so that the next ones, on any host, need not wait for it; --learn by default.",
)
@click.option(
    "--hydrate/--no-hydrate",
    default=lambda: setting("hydrate") is not False,
    help="Bring the rest of an image while its start goes on missing, as far as the link has bytes to spare, or where starts "
    "read most of it; without, only what is read, or known to be, unless `attach --hydrate` asks for all. --hydrate by default.",
)
@click.option(
    "--group",
    default=lambda: setting("group"),
    metavar="NAME",
    help="Let members of this group use status, top and images, which change nothing. [env BLOCKMAP_GROUP]",
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
    group: str | None,
    idle_exit: float | None,
) -> None:
    """Serve the store's images and this host's clones over NBD."""
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
        Attachments(default_state(), HostDevices(default_state()), tell_log).clean(where)

    Supervisor(
        url,
        directory,
        cache_size,
        default_state().absolute(),
        outages,
        where,
        listen,
        idle_exit,
        tell_log,
        _pass_on,
        take_over,
        metrics,
        learn,
        trusted,
        hydrate,
        None if sign is None else sign.absolute(),
        None if group is None else _group_number(group),
    ).run()


def _group_number(name: str) -> int:
    """Returns the number of a group; UsageError."""
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(
            f"there is no group {name!r}: make it with groupadd --system {name}, or name another"
        ) from None


def _pass_on(line: bytes) -> None:
    tell_log(line.rstrip(b"\n").decode(errors="backslashreplace"))
