"""The command `blockmap help`."""

import click
from rich.table import Table

from blockmap.cli.exit_codes import EXIT_CODES
from blockmap.errors import UsageError
from blockmap.terminal.output import tell
from blockmap.terminal.tables import cells, tell_table

_TOPIC = "exit-codes"


@click.command("help")
@click.argument("words", nargs=-1, metavar="[COMMAND...]")
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of COMMAND, or of exit-codes."""
    if words == (_TOPIC,):
        table = Table("STATUS", box=None, pad_edge=False)
        table.add_column("MEANS", overflow="fold")
        for code, meaning in EXIT_CODES:
            table.add_row(*cells(code, meaning))
        tell_table(table)
        return
    at = ctx.parent
    assert at is not None
    for word in words:
        group = at.command
        command = group.get_command(at, word) if isinstance(group, click.Group) else None
        if command is None:
            raise UsageError(
                f"there is no command {' '.join(words)}: see `blockmap --help`, or `blockmap help {_TOPIC}`"
            )
        at = click.Context(command, info_name=word, parent=at)
    tell(*at.get_help().split("\n"))
