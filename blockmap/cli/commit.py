"""The command `blockmap commit`."""

from dataclasses import asdict
from pathlib import Path

import click

from blockmap.api.clones import CloneHost, Commit
from blockmap.cli.opened import opened
from blockmap.errors import NameMoved, UsageError
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import cache_option, json_option, socket_option, store_option
from blockmap.terminal.output import tell


@click.command()
@click.argument("clone", required=False)
@click.argument("name", required=False)
@click.option(
    "--container",
    metavar="ID",
    help="Instead of CLONE: a container of blockmap run, docker or podman, by ID or name, of an image that the store has.",
)
@click.option("--no-pause", is_flag=True, help="Leave the container running while what it wrote is read.")
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
    clone: str | None,
    name: str | None,
    container: str | None,
    no_pause: bool,
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
    """Make NAME stand for what CLONE is at this moment.

    The moment is captured on this host, which takes milliseconds, and then published; should the store be away, it is published
    later, and `clones` shows it until then. The clone goes on above the new version.

    With --container, NAME stands for the container's image with what the container wrote, which alone is read.
    """
    if container is not None:
        from blockmap.api.container_commits import ContainerCommits  # imported here: commits of clones do without

        if clone is None or name is not None or retry or drop or wait == "local":
            raise UsageError("with --container, one NAME is given, and neither --wait local nor --retry nor --drop")
        done = opened(ContainerCommits, store, cache, socket).commit_container(
            container, clone, message=message, author=author, changes=changes, force=force, pause=not no_pause
        )
        _tell_done(as_json, clone, done)
        return
    if clone is None:
        raise UsageError("no CLONE is given: `blockmap clones` lists them; --container commits a container instead")
    host = opened(CloneHost, store, cache, socket)
    if drop:
        tell(f"{host.drop(clone)} captures of {clone} are forgotten; it keeps what was written to it")
        return
    if retry:
        settled = host.retry(clone, name, force=force)
        said = f"nothing of {clone} waits for a decision"
        tell(said if settled is None else f"{settled.export}  (entry {settled.entry} of its name)")
        return
    if name is None:
        raise UsageError("no NAME is given: it will stand for the new version, for example app:2")
    if wait == "local":
        captured = host.capture(clone, name, message=message, author=author, changes=changes, force=force)
        _tell(
            as_json,
            {
                "capture": captured.number,
                "sync_seconds": captured.sync_seconds,
                "stall_seconds": captured.stall_seconds,
            },
            f"captured {clone}; it will be {name} when the store has it",
        )
        return
    try:
        done = host.commit(clone, name, message=message, author=author, changes=changes, force=force)
    except NameMoved as error:
        raise NameMoved(
            f"{error}: what was captured waits for that, see `blockmap commit {clone} NAME --retry`, or --drop"
        ) from error
    _tell_done(as_json, name, done)


def _tell_done(as_json: bool, name: str, done: Commit) -> None:
    _tell(as_json, asdict(done), f"{name}  {done.export.partition('@')[2]}  (entry {done.entry} of its name)")


def _tell(as_json: bool, about: dict[str, object], text: str) -> None:
    if as_json:
        tell_json(about)
    else:
        tell(text)
