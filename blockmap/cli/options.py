"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from blockmap.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])


def store_option(command: Command) -> Command:
    """`--store URL`, from BLOCKMAP_STORE where it is not given."""
    return click.option(
        "--store",
        envvar="BLOCKMAP_STORE",
        metavar="URL",
        help="The store: a directory, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX, or http(s)://HOST/PATH "
        "to read. [env BLOCKMAP_STORE]",
    )(command)


def cache_option(command: Command) -> Command:
    """`--cache DIR`, from BLOCKMAP_CACHE where it is not given."""
    return click.option(
        "--cache",
        envvar="BLOCKMAP_CACHE",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The host's cache. [env BLOCKMAP_CACHE; default /var/cache/blockmap or ~/.cache/blockmap]",
    )(command)


def socket_option(command: Command) -> Command:
    """`--socket PATH`, from BLOCKMAP_SOCKET where it is not given."""
    return click.option(
        "--socket",
        envvar="BLOCKMAP_SOCKET",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="The server's Unix socket. [env BLOCKMAP_SOCKET; default /run/blockmap/nbd.sock or below XDG_RUNTIME_DIR]",
    )(command)


def need_store(url: str | None) -> str:
    """The store's URL; UsageError where there is none."""
    if not url:
        raise UsageError("no store is given: add --store URL (a directory will do), or set BLOCKMAP_STORE")
    return url
