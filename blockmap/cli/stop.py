"""The command `blockmap stop`."""

from pathlib import Path

import click

from blockmap.api.host import Host
from blockmap.cli.exit_codes import NO_SERVER
from blockmap.cli.opened import opened
from blockmap.errors import HostError, NoServer
from blockmap.host.serve.stopping import stop as stop_server
from blockmap.local.paths import default_socket
from blockmap.terminal.options import socket_option
from blockmap.terminal.output import tell, warn


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option(
    "-t",
    "--time",
    "seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="How long a container may take before it is killed.",
)
@click.option("--force", is_flag=True, help="End the server also where something is attached.")
@socket_option
@click.pass_context
def stop(ctx: click.Context, names: tuple[str, ...], seconds: float, force: bool, socket: Path | None) -> None:
    """Stop containers, or without a NAME the server.

    It goes on while something is attached. A container is stopped by its image's StopSignal, and by force where that does not
    end it in time. What containers run on is attached as well. Reads of a device of nbdfuse fail when its server ends; those of
    one of the kernel's own wait for the next. The exit status is 3 where there is no server.
    """
    if names:
        from blockmap.cli.containers import stop_containers  # imported here: the server is ended without

        stop_containers(names, seconds)
        return
    where = (socket or default_socket()).absolute()
    attached = [each for each in opened(Host, socket=where).attachments.list() if each.socket == str(where)]
    if attached and not force:
        named = ", ".join(f"{each.directory} ({each.name})" for each in attached)
        raise HostError(f"still attached: {named}: detach it first, or add --force")
    try:
        pid = stop_server(where)
    except NoServer as error:
        warn(str(error))
        ctx.exit(NO_SERVER)
    tell(f"the server at {where}, process {pid}, has ended")
    for each in attached:
        warn(f"{each.directory} ({each.name}) is still attached: `blockmap detach {each.directory}`")
