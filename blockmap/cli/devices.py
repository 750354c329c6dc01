"""The command `blockmap devices`."""

import click

from blockmap.host import tools
from blockmap.host.manager.manager import DeviceManager
from blockmap.local.paths import default_state
from blockmap.terminal.output import tell_log


@click.command()
@click.option("--idle-exit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", hidden=True)
def devices(idle_exit: float | None) -> None:
    """Attach and detach for the other commands, which start it.

    As a service of the host, it is there before the first of them. Devices outlive it.
    """
    tools.need_root("devices")
    DeviceManager(default_state(), idle_exit, tell_log).run()
