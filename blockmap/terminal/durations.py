"""Takes times as people type them: 24h, 30d, 90m, 5s."""

import re
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[float]):
    """A time like 24h, 30d, 90m, 5s; in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch("([0-9]{1,9})([smhd])", value)
        if found is None:
            self.fail(f"{value!r} is no time: a number and s, m, h or d are expected, for example 24h", param, ctx)
        return float(int(found[1]) * _UNITS[found[2]])
