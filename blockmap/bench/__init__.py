"""`blockmap bench`: figures with their caveats, spread, and a peer measured in the same run.

Imports all of blockmap. Each benchmark returns one JSON-able report; printing it for a person or a machine happens here.
"""

import json
from typing import Any

from rich.table import Table

from blockmap.terminal.output import tell
from blockmap.terminal.tables import cells, tell_table

Report = dict[str, Any]
"""`caveats`: list of str; `rows`: list of flat dicts with equal keys; anything else is for machines."""


def show(report: Report, as_json: bool) -> None:
    """Prints a report: caveats first, then the rows."""
    if as_json:
        tell(*json.dumps(report, indent=1).split("\n"))
        return
    tell(*(f"- {caveat}" for caveat in report["caveats"]))
    rows: list[dict[str, Any]] = report["rows"]
    table = Table(*rows[0]) if rows else Table()
    for row in rows:
        table.add_row(*cells(*map(_text, row.values())))
    tell_table(table)
    if summary := report.get("summary"):
        tell(*summary)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
