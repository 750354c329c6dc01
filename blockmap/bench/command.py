"""The `bench` group."""

import click

from blockmap.bench.attach import attach
from blockmap.bench.clone import clone
from blockmap.bench.coldstart.command import coldstart
from blockmap.bench.commit.command import commit
from blockmap.bench.dedup import dedup
from blockmap.bench.hooks import hooks_
from blockmap.bench.imports import import_
from blockmap.bench.record import record
from blockmap.bench.warm import warm
from blockmap.bench.write import write


@click.group()
def bench() -> None:
    """Measure, beside a peer in the same run."""


for _command in (warm, write, attach, clone, record, import_, dedup, hooks_, coldstart, commit):
    bench.add_command(_command)
