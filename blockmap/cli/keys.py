"""The commands about keys: key create, key show, key list."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from blockmap.format.signature import PublicKey
from blockmap.store import key_files
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import json_option, sign_option, trust_option
from blockmap.terminal.output import tell
from blockmap.terminal.tables import cells, tell_table


@click.group()
def key() -> None:
    """Keys that sign images, and that hosts trust."""


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
def create(file: Path) -> None:
    """Make a pair of keys, FILE and FILE.pub.

    The private one, FILE, is for import --sign; the public one, FILE.pub, for --trust.
    """
    made = key_files.create(file).public
    tell(f"key       {made.id}")
    tell(f"private   {file}, which only its owner can read: keep it where images are imported")
    tell(f"public    {key_files.public_path(file)}: give it to hosts, for --trust")
    tell(str(made))


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Show the public keys in FILE, each with its id.

    Where FILE is a private key, that is its public one.
    """
    for each in key_files.read_public(file):
        tell(f"{each}  # {each.id}")


@key.command("list")
@sign_option
@trust_option
@json_option
def list_(sign: Path | None, trust: tuple[str, ...], as_json: bool) -> None:
    """List the keys that are in use here.

    They are the one that imports sign with, and those that are trusted.
    """
    own = None if sign is None else key_files.read_signer(sign).public
    trusted: Sequence[PublicKey] = key_files.read_trusted(trust)
    found = dict.fromkeys([*([] if own is None else [own]), *trusted])
    rows = [{"key": each.id, "public": str(each), "signs": each == own, "trusted": each in trusted} for each in found]
    if as_json:
        tell_json(rows)
        return
    if not rows:
        tell("no key is in use: imports are not signed, and nothing need be signed to be opened")
        return
    table = Table("KEY", "SIGNS", "TRUSTED", "PUBLIC KEY", box=None, pad_edge=False)
    for each in found:
        table.add_row(*cells(each.id, "yes" if each == own else "no", "yes" if each in trusted else "no", each))
    tell_table(table)
