"""The `bench` group."""

import click

from blockmap.cli.bench.coldstart.command import coldstart
from blockmap.cli.bench.dedup import dedup
from blockmap.cli.bench.hooks import hooks_
from blockmap.cli.bench.imports import import_
from blockmap.cli.bench.record import record
from blockmap.cli.bench.warm import warm


@click.group()
def bench() -> None:
    """Measure, beside a peer in the same run."""


for _command in (warm, record, import_, dedup, hooks_, coldstart):
    bench.add_command(_command)
