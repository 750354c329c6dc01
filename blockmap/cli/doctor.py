"""The command `blockmap doctor`."""

from pathlib import Path

import click

from blockmap.host.doctor.examine import examine
from blockmap.host.doctor.finding import Examined, Finding, State
from blockmap.local.paths import default_cache, default_state, server_socket
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import cache_option, json_option, socket_option, store_option
from blockmap.terminal.output import tell

_INDENT = 27


@click.command()
@store_option
@cache_option
@socket_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, store: str | None, cache: Path | None, socket: Path | None, as_json: bool) -> None:
    """Check this host, its server and its store, and say what to do.

    Nothing is changed but an object of the store, which is made and deleted. Neither root nor a server nor a store is needed: what
    cannot be looked at is said. The exit status is 1 if there is a fault; warnings are none.
    """
    subject = Examined(
        store or None,
        (cache or default_cache()).absolute(),
        (socket or server_socket()).absolute(),
        default_state().absolute(),
    )
    found: dict[str, Finding] = {}
    for name, finding in examine(subject):
        found[name] = finding
        if not as_json:
            _tell(name, finding)
    faults = sum(finding.state is State.FAULT for finding in found.values())
    if as_json:
        rows = [
            {"name": name, "state": each.state.value, "found": each.found, "action": each.action or None}
            for name, each in found.items()
        ]
        tell_json({"ok": not faults, "checks": rows})
    else:
        warnings = sum(finding.state is State.WARNING for finding in found.values())
        tell(f"{faults} fault{'' if faults == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}")
    ctx.exit(1 if faults else 0)


def _tell(name: str, finding: Finding) -> None:
    tell(f"{finding.state.value:<8}  {name:<15}  {finding.found}")
    if finding.action:
        tell(f"{'':<{_INDENT}}{finding.action}")
