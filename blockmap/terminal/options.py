"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from blockmap.errors import UsageError
from blockmap.local.paths import need_store as need_store  # commands take it with the option
from blockmap.local.settings import setting

Command = TypeVar("Command", bound=Callable[..., Any])

_MAX_SIZE_GIB = 64
"""Twice the largest images of machine learning; a blob of 64 MB can unpack to as much."""


def store_option(command: Command) -> Command:
    """Adds `--store URL`, with the setting `store` as its default."""
    return click.option(
        "--store",
        default=lambda: setting("store"),
        metavar="URL",
        help="The store: a directory, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX, or http(s)://HOST/PATH "
        "to read. [env BLOCKMAP_STORE]",
    )(command)


def sign_option(command: Command) -> Command:
    """Adds `--sign KEYFILE`, with the setting `sign` as its default."""
    return click.option(
        "--sign",
        default=lambda: setting("sign"),
        type=click.Path(path_type=Path),
        metavar="KEYFILE",
        help="Sign what is written with this private key, which `blockmap key create` makes. [env BLOCKMAP_SIGN]",
    )(command)


def trust_option(command: Command) -> Command:
    """Adds `--trust KEY`, with the setting `trust` as its default."""
    return click.option(
        "--trust",
        default=lambda: setting("trust"),
        multiple=True,
        metavar="KEY",
        help="Open only what is signed with this key: ed25519:..., or a file of such keys. Once for each of several. [env "
        "BLOCKMAP_TRUST, with spaces between them]",
    )(command)


def cache_option(command: Command) -> Command:
    """Adds `--cache DIR`, with the setting `cache` as its default."""
    return click.option(
        "--cache",
        default=lambda: setting("cache"),
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The host's cache. [env BLOCKMAP_CACHE; default /var/cache/blockmap or ~/.cache/blockmap]",
    )(command)


def socket_option(command: Command) -> Command:
    """Adds `--socket PATH`, with the setting `socket` as its default."""
    return click.option(
        "--socket",
        default=lambda: setting("socket"),
        type=click.Path(readable=False, path_type=Path),  # whoever may not use it is told so by what connects
        metavar="PATH",
        help="The server's Unix socket. [env BLOCKMAP_SOCKET; default /run/blockmap/nbd.sock or below XDG_RUNTIME_DIR]",
    )(command)


def json_option(command: Command) -> Command:
    """Adds `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def max_size_option(command: Command) -> Command:
    """Adds `--max-size GIB`."""
    return click.option(
        "--max-size",
        metavar="GIB",
        type=click.FloatRange(min=0, min_open=True),
        default=_MAX_SIZE_GIB,
        show_default=True,
        help="What the image may unpack to, in GiB.",
    )(command)


def label_option(command: Command) -> Command:
    """Adds `--label LABEL`."""
    return click.option(
        "--label",
        metavar="LABEL",
        help="Which of the image's workloads it is: what its starts read is learnt, and brought ahead, by label.",
    )(command)


def hydrate_option(command: Command) -> Command:
    """Adds `--hydrate/--no-hydrate`, None where neither is given."""
    return click.option(
        "--hydrate/--no-hydrate",
        default=None,
        help="Bring the rest of the image as well, after what its start reads, at half of the link's rate; or nothing but what "
        "is read, or known to be. By default, what the link can spare brings the rest while reads go on missing.",
    )(command)


def labelled(name: str, label: str | None) -> str:
    """Returns the export name of an image's workload. Raises UsageError."""
    if label is None:
        return name
    if "+" in name:
        raise UsageError(f"{name} has a label already: leave out --label {label}, or what follows the +")
    from blockmap.format.refs import parse_reference  # 3 ms, which a start without a label need not wait for

    return str(parse_reference(f"{name}+{label}"))
