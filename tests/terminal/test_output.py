"""What is printed, whatever it holds and wherever it goes."""

import pytest
from rich.table import Table

from blockmap.terminal.output import printable, tell, warn
from blockmap.terminal.tables import cells, tell_table

HOSTILE = "a\x1b]0;owned\x07b\nc\r\t\x00\x7f\x9b\u202e\udc80d"
SHOWN = r"a\x1b]0;owned\x07b\nc\r\t\x00\x7f\x9b\u202e\udc80d"


def test_what_is_visible_stays() -> None:
    for text in ("", "redis:7", "größe 大 é", "[bold]x[/bold] \\n"):
        assert printable(text) == text


def test_nothing_else_reaches_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert printable(HOSTILE) == SHOWN
    tell(HOSTILE, "next")
    warn(HOSTILE + "\n")
    assert capfd.readouterr() == (f"{SHOWN}\nnext\n", "blockmap: " + SHOWN.replace(r"\n", " / ") + "\n")


def test_cells_of_tables_are_as_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    table = Table("[red]NAME", box=None, pad_edge=False)
    table.add_row(*cells(HOSTILE))
    table.add_row(*cells("[bold]x[/bold]"))
    tell_table(table)
    assert capfd.readouterr().out.split("\n")[1:3] == [SHOWN.ljust(len(SHOWN)), "[bold]x[/bold]".ljust(len(SHOWN))]
