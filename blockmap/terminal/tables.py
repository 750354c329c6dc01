"""Prints tables; apart from `output`, since rich takes some 20 ms to import, which a start need not wait for."""

from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from blockmap.terminal.output import printable

_UNBOUNDED = 10_000
"""Columns: wider than any table."""
_GAP = 2
"""Between two columns without a box."""
_FOLDED = 20
"""A name is not folded narrower than that for the sake of figures; repositories and tags have some 10 to 40 characters."""


def cells(*values: object) -> list[Text]:
    """Returns a row of a table, in which nothing is taken for markup."""
    return [Text(printable(str(value))) for value in values]


def tell_table(table: Table) -> None:
    """Prints a table; a pipe gets every cell in one piece. OutputFailed."""
    console = Console()
    if not console.is_terminal:
        console.width = _UNBOUNDED
    console.print(Fitted(table))


@dataclass(frozen=True, slots=True)
class Fitted:
    """Shows a table without those of its columns of figures, from the right, for which a window is too narrow.

    Columns that fold, which name things, stay; no value is cut off.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self.table.columns
        while sum(map(_least_width, columns)) + _GAP * (len(columns) - 1) > options.max_width:
            figures = [column for column in columns if column.no_wrap]
            if not figures:
                break
            columns.remove(figures[-1])
        for column in columns:
            column.overflow = "fold"
        yield self.table


def _least_width(column: Column) -> int:
    """Returns how narrow a column may become."""
    longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    return longest if column.no_wrap else min(longest, _FOLDED)
