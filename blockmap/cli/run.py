"""The command `blockmap run`.

What it imports is time that every start waits for.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockmap.api.host import Host
from blockmap.cli.opened import opened
from blockmap.cli.run_options import RunCommand, program_options
from blockmap.errors import UsageError
from blockmap.host.run import network as networks
from blockmap.host.run.options import RunOptions, parse_network, parse_port, parse_volume, read_environment
from blockmap.host.run.runner import is_terminal
from blockmap.terminal.durations import Duration
from blockmap.terminal.options import (
    cache_option,
    hydrate_option,
    label_option,
    labelled,
    socket_option,
    store_option,
    trust_option,
)
from blockmap.terminal.output import tell, warn
from blockmap.terminal.units import parse_size

if TYPE_CHECKING:
    from blockmap.api.detached import DetachedRun, Versions


@click.command(cls=RunCommand, context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]})
@click.argument("name", metavar="IMAGE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[CMD...]")
@program_options
@click.option("-d", "--detach", is_flag=True, help="Leave it running, and print its name.")
@click.option("--name", "container", metavar="NAME", help="What the container is called; after the image by default.")
@click.option("--rm", "remove", is_flag=True, help="Forget it when it has ended: so anyway, except with -d.")
@click.option(
    "--ready",
    metavar="CONDITION",
    help="With -d, return when it can be used: tcp:PORT, http:PORT[/PATH], text:TEXT or log:REGEX (of what it prints).",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="How long --ready waits.",
)
@click.option(
    "-v", "--volume", "volumes", multiple=True, metavar="SRC:DST[:ro]", help="Show a file or directory of the host."
)
@click.option(
    "--network",
    "--net",
    metavar="NETWORK",
    help="host (the default), none, ns:PATH, or one of its own through pasta or slirp4netns (the default with -p).",
)
@click.option(
    "-p", "--publish", "ports", multiple=True, metavar="HOST:CONTAINER", help="Publish a port of the container."
)
@click.option("-h", "--hostname", metavar="NAME", help="What the container calls its host.")
@click.option("--memory", metavar="SIZE", help="The most memory that it may use, as in 512m.")
@click.option("--cpus", type=float, metavar="NUMBER", help="The most processors that it may use, as in 1.5.")
@click.option("--pids-limit", type=int, metavar="NUMBER", help="The most processes and threads.  [default: 2048]")
@click.option("--read-only", is_flag=True, help="Its root cannot be written.")
@click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's; its arguments follow IMAGE.")
@click.option("--clone", is_flag=True, help="IMAGE is a clone: the program runs on it, and what it writes stays there.")
@click.option(
    "--every",
    type=Duration(),
    help="Make a version of the --clone so often while the program runs, and one at its end.",
)
@click.option("--to", metavar="NAME", help="What the versions of --every are called.")
@click.option("-m", "--message", metavar="TEXT", help="Why, for the versions of --every.")
@label_option
@hydrate_option
@store_option
@trust_option
@cache_option
@socket_option
def run(
    name: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    environment: tuple[str, ...],
    env_files: tuple[Path, ...],
    user: str | None,
    workdir: str | None,
    detach: bool,
    container: str | None,
    remove: bool,
    ready: str | None,
    seconds: float,
    volumes: tuple[str, ...],
    network: str | None,
    ports: tuple[str, ...],
    hostname: str | None,
    memory: str | None,
    cpus: float | None,
    pids_limit: int | None,
    read_only: bool,
    entrypoint: str | None,
    clone: bool,
    every: float | None,
    to: str | None,
    message: str | None,
    label: str | None,
    hydrate: bool | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Run the program of an image, as docker run does.

    It has the host's network. What it writes goes with it, unless it runs on a --clone. CMD takes the place of the image's Cmd,
    after its Entrypoint. The exit status is the program's; 127 where it is not in the image, and 126 where it cannot be
    executed.

    With -d it goes on when this command has ended: see ps, logs, exec and stop.

    With --every 10s --to NAME, NAME is made to stand for what the clone is, every so often, unless nothing was written.
    """
    program, arguments = labelled(name, label), words(command)
    options = RunOptions(
        entrypoint=entrypoint,
        environment=read_environment(env_files, environment, dict(os.environ)),
        user=user,
        directory=workdir,
        hostname=hostname,
        volumes=tuple(map(parse_volume, volumes)),
        network=parse_network(network, bool(ports), networks.installed() if ports else ()),
        ports=tuple(map(parse_port, ports)),
        memory=None if memory is None else parse_size(memory),
        cpus=cpus,
        pids=pids_limit,
        read_only=read_only,
    )
    versions = _versions(every, to, message, clone)
    if detach:
        from blockmap.api.detached import DetachedRun  # imported here, as below: other runs do without

        wanted = DetachedRun(
            program, arguments, options, clone, tty, interactive, not remove, ready, seconds, versions
        )  # fmt: skip
        _detach(opened(Host, store, cache, socket, trust), wanted, hydrate, container)
        return
    if ready is not None:
        raise UsageError("--ready goes with -d: it says when this command returns")
    terminal = need_terminal(tty)
    if versions is None:
        host = opened(Host, store, cache, socket, trust)
        status = host.run(
            program, arguments, options, clone=clone, hydrate=hydrate, terminal=terminal, container=container
        )
    else:
        from blockmap.api.clones import CloneHost

        status = opened(CloneHost, store, cache, socket, trust).run_versions(
            program,
            arguments,
            options,
            to=versions.to,
            every_seconds=versions.every_seconds,
            message=versions.message,
            terminal=terminal,
            container=container,
        )
    click.get_current_context().exit(status)


def words(command: tuple[str, ...]) -> list[str]:
    """Returns the program's arguments: what follows the name, options and all; the first -- only says so once more."""
    return list(command[1:] if command[:1] == ("--",) else command)


def need_terminal(wanted: bool) -> bool:
    """Returns True if standard input and output are a terminal, which the program then has; UsageError where it is asked for and
    they are none."""
    if wanted and not is_terminal():
        raise UsageError("the input or output is no terminal: leave out -t")
    return is_terminal()


def _versions(every: float | None, to: str | None, message: str | None, clone: bool) -> "Versions | None":
    if every is None and to is None:
        if message is not None:
            raise UsageError("-m is the message of --every: for a limit of memory, say --memory")
        return None
    if every is None or to is None or not clone:
        raise UsageError("--every and --to go together, and with --clone: versions are made of a clone")
    from blockmap.api.detached import Versions

    return Versions(to, every, message or "")


def _detach(host: Host, wanted: "DetachedRun", hydrate: bool | None, container: str | None) -> None:
    from blockmap.api.detached import CannotStart

    try:
        tell(host.start(wanted, hydrate=hydrate, container=container))
    except CannotStart as error:
        warn(str(error))
        click.get_current_context().exit(error.status)
