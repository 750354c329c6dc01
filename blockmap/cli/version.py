"""The command `blockmap version`."""

import platform

import click

import blockmap
from blockmap.errors import HostError
from blockmap.host.serve import nbdkit
from blockmap.store.opening import VERSION
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import json_option
from blockmap.terminal.output import tell

_PLUGIN_API = 2
"""`API_VERSION` of the plugin, which is nbdkit's for Python; only nbdkit can import the module that has it."""


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Show the versions of blockmap and of what it works with."""
    try:
        major, minor = nbdkit.version()
        own: str | None = f"{major}.{minor}"
    except HostError:
        own = None
    found = {
        "blockmap": blockmap.__version__,
        "python": platform.python_version(),
        "nbdkit": own,
        "plugin_api": _PLUGIN_API,
        "store_format": VERSION,
        "kernel": platform.release(),
    }
    if as_json:
        tell_json(found)
        return
    for name, value in found.items():
        tell(f"{name.replace('_', ' '):<13} {'not installed' if value is None else value}")
