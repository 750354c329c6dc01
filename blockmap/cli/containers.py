"""Commands for containers: ps, logs, stop, kill, exec, rm."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from blockmap.api.containers import ContainerHost
from blockmap.cli.opened import opened
from blockmap.cli.run import need_terminal, words
from blockmap.cli.run_options import RunCommand, program_options
from blockmap.errors import BlockmapError, UsageError
from blockmap.host.run.containers import Execution
from blockmap.host.run.folders import HostContainer
from blockmap.host.run.options import RunOptions, read_environment
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import cache_option, json_option, socket_option, store_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.times import timestamp

_UNITS = (
    (86400 * 14, 86400 * 7, "week"),
    (86400 * 2, 86400, "day"),
    (7200, 3600, "hour"),
    (120, 60, "minute"),
    (0, 1, "second"),
)
"""From how many seconds on a unit is used, its seconds, and its name: as docker ps has it."""
_COMMAND_LENGTH = 30
"""Characters of a command that are shown; --json has all."""


@click.command()
@click.option(
    "-a", "--all", "ended", is_flag=True, help="Those too that have ended, and were run with -d and without --rm."
)
@click.option("-q", "--quiet", is_flag=True, help="Names alone.")
@json_option
def ps(ended: bool, quiet: bool, as_json: bool) -> None:
    """List the containers that run."""
    found = opened(ContainerHost).containers(ended=ended)
    if as_json:
        tell_json([_row(each) for each in found])
        return
    if quiet:
        for each in found:
            tell(each.name)
        return
    # Imported here: what tables need takes 20 ms.
    from rich.table import Table

    from blockmap.terminal.tables import cells, tell_table

    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "IMAGE", "COMMAND"):
        table.add_column(title, overflow="fold")
    for title in ("STATUS", "CREATED", "PORTS"):
        table.add_column(title, no_wrap=True)
    now = time.time()
    for each in found:
        created = f"{_ago(now - each.created)} ago"
        table.add_row(
            *cells(each.name, each.image, _command(each), _status(each, now), created, ", ".join(each.ports) or "-")
        )
    tell_table(table)


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with what it says until it has ended.")
@click.option("-n", "--tail", metavar="LINES", default="all", show_default=True, help="Only the last lines.")
def logs(name: str, follow: bool, tail: str) -> None:
    """Print what the container NAME, which was run with -d, has said."""
    if tail != "all" and not tail.isdecimal():
        raise UsageError(f"--tail {tail}: a number of lines is expected, or all")
    sys.stdout.flush()
    out = sys.stdout.buffer
    for piece in opened(ContainerHost).logs(name, tail=None if tail == "all" else int(tail), follow=follow):
        out.write(piece)
        out.flush()


def stop_containers(names: Sequence[str], seconds: float) -> None:
    """Stops containers, and says of each that it was."""
    host = opened(ContainerHost)
    _each(names, lambda name: host.stop(name, seconds=seconds))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-s", "--signal", metavar="SIGNAL", default="KILL", show_default=True, help="Which signal.")
def kill(names: tuple[str, ...], signal: str) -> None:
    """Send a signal to the programs of containers."""
    host = opened(ContainerHost)
    _each(names, lambda name: host.kill(name, signal))


@click.command(
    name="exec",
    cls=RunCommand,
    context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]},
)
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="CMD...", required=True)
@program_options
def execute(
    name: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    environment: tuple[str, ...],
    env_files: tuple[Path, ...],
    user: str | None,
    workdir: str | None,
) -> None:
    """Run one more program in the container NAME.

    The exit status is the program's, as with run.
    """
    options = RunOptions(
        environment=read_environment(env_files, environment, dict(os.environ)), user=user, directory=workdir
    )
    wanted = Execution(words(command), options.environment, user, workdir, need_terminal(tty))
    click.get_current_context().exit(opened(ContainerHost).execute(name, wanted))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-f", "--force", is_flag=True, help="End a container that runs first.")
@store_option
@cache_option
@socket_option
def rm(names: tuple[str, ...], force: bool, store: str | None, cache: Path | None, socket: Path | None) -> None:
    """Remove containers that have ended, or clones.

    Logs, and what was written to clones, go with them; images stay.
    """
    host = opened(ContainerHost, store, cache, socket)

    def remove(name: str) -> None:
        if os.geteuid() == 0 and host.forget(name, force=force):
            return
        from blockmap.api.clones import CloneHost  # imported here: containers do without

        opened(CloneHost, store, cache, socket).rm(name)

    for name in names:
        remove(name)


def _each(names: Sequence[str], work: Callable[[str], None]) -> None:
    """Does something to each container, and prints its name, as docker does; fails in the end where one failed."""
    failed = False
    for name in names:
        try:
            work(name)
            tell(name)
        except BlockmapError as error:
            warn(str(error))
            failed = True
    if failed:
        click.get_current_context().exit(1)


def _command(container: HostContainer) -> str:
    said = shlex.join(container.command)
    return said if len(said) <= _COMMAND_LENGTH else f"{said[: _COMMAND_LENGTH - 3]}..."


def _status(container: HostContainer, now: float) -> str:
    """Returns what docker ps says of a container."""
    if container.state == "running":
        ready = "" if container.ready_seconds is None else f" (ready after {container.ready_seconds:.1f} s)"
        return f"Up {_ago(now - (container.started or now))}{ready}"
    if container.state == "starting":
        return "Starting"
    if container.ended is None:
        return "Ended unseen"
    return f"Exited ({container.status}) {_ago(now - container.ended)} ago"


def _ago(seconds: float) -> str:
    _, unit, name = next(each for each in _UNITS if seconds >= each[0] or each[0] == 0)
    count = max(int(seconds // unit), 0)
    return f"{count} {name}{'' if count == 1 else 's'}"


def _row(container: HostContainer) -> dict[str, object]:
    times = {name: getattr(container, name) for name in ("created", "started", "ended")}
    return {**asdict(container), **{name: None if at is None else timestamp(at) for name, at in times.items()}}
