"""The command `blockmap commit`."""

import json
import os
import pwd
import time
from pathlib import Path

import click

from blockmap.cli.freeze import FrozenMoment, moment_of
from blockmap.cli.server import server
from blockmap.commit.config_changes import parse_changes
from blockmap.control.client import Client
from blockmap.control.clone_messages import AwaitPublished, Capture, PublishedAnswer, SettleCaptures
from blockmap.errors import NameMoved, UsageError
from blockmap.format.refs import parse_name
from blockmap.terminal.options import cache_option, json_option, socket_option, store_option
from blockmap.terminal.output import tell, warn

_ASK_SECONDS = 2.0


@click.command()
@click.argument("clone")
@click.argument("name", required=False)
@click.option("-m", "--message", default="", metavar="TEXT", help="Why; `log` shows it.")
@click.option("--author", default="", metavar="TEXT", help="Who; this user by default.")
@click.option(
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help='Change the image\'s configuration, as docker commit does: CMD ["redis-server"], ENV A=1, USER 7, ...',
)
@click.option("--force", is_flag=True, help="Move NAME although it has moved on since CLONE was made of it.")
@click.option(
    "--wait",
    type=click.Choice(["local", "store"]),
    default="store",
    show_default=True,
    help="Until the moment is safe on this host, or until every host can see it.",
)
@click.option("--retry", is_flag=True, help="Publish after all what waits for a decision: as NAME, or with --force.")
@click.option("--drop", is_flag=True, help="Forget what is captured and not published; CLONE keeps what was written.")
@store_option
@cache_option
@socket_option
@json_option
def commit(
    clone: str,
    name: str | None,
    message: str,
    author: str,
    changes: tuple[str, ...],
    force: bool,
    wait: str,
    retry: bool,
    drop: bool,
    store: str | None,
    cache: Path | None,
    socket: Path | None,
    as_json: bool,
) -> None:
    """Make NAME stand for what CLONE is at this moment, also while it is mounted and written to.

    The moment is captured on this host, which takes milliseconds, and then published; should the store be away, it is published
    later, and `clones` shows it until then. The clone goes on above the new version.
    """
    client = server(store, cache, socket)
    if retry or drop:
        _settle(client, clone, name, force, drop)
        return
    if name is None:
        raise UsageError("no NAME is given: it will stand for the new version, for example app:2")
    parse_name(name)
    wanted = Capture(clone, name, message, author or _user(), parse_changes(changes), force)
    began = time.monotonic()
    captured, moment = _capture(client, clone, wanted)
    times: dict[str, object] = {"sync_seconds": moment.sync_seconds, "stall_seconds": moment.stall}
    if wait == "local":
        _tell(
            as_json,
            {"capture": captured, **times},
            f"captured {clone}; it will be {name} when the store has it",
        )
        return
    try:
        done = _published(client, captured)
    except NameMoved as error:
        raise NameMoved(
            f"{error}: what was captured waits for that, see `blockmap commit {clone} NAME --retry`, or --drop"
        ) from error
    seconds = time.monotonic() - began
    about = {"export": done.export, "entry": done.entry, **times, "seconds": seconds}
    _tell(as_json, about, f"{name}  {done.export.partition('@')[2]}  (entry {done.entry} of its name)")


def _capture(client: Client, clone: str, wanted: Capture) -> tuple[int, FrozenMoment]:
    """Captures a clone, its file system frozen where it is mounted; returns the number, and how long that took."""
    with moment_of(client, clone) as moment:
        captured = client.ask(wanted).capture
    return captured, moment


def _published(client: Client, capture: int) -> PublishedAnswer:
    told = ""
    while not (found := client.ask(AwaitPublished(capture, _ASK_SECONDS))).export:
        if found.failure != told:
            told = found.failure
            warn(f"captured, and published as soon as possible (ctrl-C leaves it to the server): {told}")
    return found


def _settle(client: Client, clone: str, name: str | None, force: bool, drop: bool) -> None:
    if drop:
        dropped = client.ask(SettleCaptures(clone, drop=True)).captures
        tell(f"{len(dropped)} captures of {clone} are forgotten; it keeps what was written to it")
        return
    if name is None and not force:
        raise UsageError("say how: --retry with another NAME, or with --force")
    chosen = client.ask(SettleCaptures(clone, name=name, force=force)).captures
    if not chosen:
        tell(f"nothing of {clone} waits for a decision")
        return
    done = _published(client, chosen[0])
    tell(f"{done.export}  (entry {done.entry} of its name)")


def _tell(as_json: bool, about: dict[str, object], text: str) -> None:
    tell(json.dumps(about) if as_json else text)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
