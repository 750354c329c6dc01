"""The command `blockmap config`: shows what is set on this host, and where."""

import json
import os

import click
from rich.table import Table

from blockmap.host.serve.nbdkit import plugin_script
from blockmap.local.paths import default_cache, default_socket, default_state
from blockmap.local.settings import ENGINE_VARIABLES, HOST_FILE, NETWORK_VARIABLES, user_file
from blockmap.local.settings_file import KEYS, Value, current
from blockmap.terminal.options import json_option
from blockmap.terminal.output import tell
from blockmap.terminal.tables import cells, tell_table

_DEFAULT = "default"
_SET = "set, and not shown"
_PLACES = {"cache": default_cache, "socket": default_socket, "state": default_state}
"""Settings whose default depends on who asks."""
_SWITCHES = {"learn": True, "hydrate": True}


@click.command()
@json_option
def config(as_json: bool) -> None:
    """Show each setting, its value, and where it comes from.

    An option comes first, then BLOCKMAP_NAME in the environment, then ~/.config/blockmap.toml, then /etc/blockmap.toml. Variables
    of object stores, which may be secret, are listed without their values.
    """
    settings = current()
    rows: dict[str, tuple[Value | None, str]] = {}
    for name in KEYS:
        found = settings.find(name)
        rows[name] = (_default(name), _DEFAULT) if found is None else (found.value, found.origin)
    # The program has put the variables of files into its environment: where one of these is as a file has it, it is that file's.
    variables = {each: "environment" for each in sorted(os.environ) if _is_known(each)}
    variables |= {
        name: found.origin for name, found in settings.variables().items() if os.environ.get(name) == found.value
    }
    states = dict.fromkeys((user_file(), HOST_FILE), "not there")
    states |= dict.fromkeys(settings.unreadable, "may not be read by this user")
    states |= dict.fromkeys((each.path for each in settings.files), "read")
    if as_json:
        tell(
            json.dumps(
                {
                    "settings": {name: {"value": value, "from": origin} for name, (value, origin) in rows.items()},
                    "environment": variables,
                    "files": {str(path): state for path, state in states.items()},
                    "plugin": str(plugin_script()),
                }
            )
        )
        return
    table = Table("SETTING", "VALUE", "FROM", box=None, pad_edge=False)
    for name, (value, origin) in rows.items():
        table.add_row(*cells(name, _shown(name, value), origin))
    for name, origin in variables.items():
        table.add_row(*cells(name, _SET, origin))
    tell_table(table)
    for path, state in states.items():
        tell(f"file      {path}: {state}")
    tell(f"plugin    {plugin_script()}")


def _default(name: str) -> Value | None:
    return str(_PLACES[name]()) if name in _PLACES else _SWITCHES.get(name)


def _shown(name: str, value: Value | None) -> str:
    if value is None:
        return KEYS[name].default
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _is_known(variable: str) -> bool:
    return variable.startswith(ENGINE_VARIABLES) or variable in NETWORK_VARIABLES
