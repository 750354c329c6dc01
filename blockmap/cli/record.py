"""`blockmap profile record`: run, record and build in one go."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from blockmap.api.host import Host
from blockmap.cli.opened import opened
from blockmap.cli.run import words
from blockmap.errors import HostError, UsageError
from blockmap.format.refs import parse_reference
from blockmap.host import tools
from blockmap.host.run import runner
from blockmap.host.run.options import RunOptions
from blockmap.host.run.readiness import parse_readiness
from blockmap.host.run.recording import Recording
from blockmap.terminal.options import cache_option, label_option, labelled, socket_option, store_option, trust_option
from blockmap.terminal.output import warn

_PIECE_BYTES = 1 << 16


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's; its arguments follow --.")
@click.option(
    "--ready",
    default="exit",
    metavar="CONDITION",
    help="When the program can be used: tcp:PORT, http:PORT[/PATH], http:URL, text:TEXT or log:REGEX (of what it prints), or "
    "exit (when it has ended well), which is the default.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="How long it may take.",
)
@label_option
@store_option
@trust_option
@cache_option
@socket_option
def record(
    name: str,
    command: tuple[str, ...],
    entrypoint: str | None,
    ready: str,
    seconds: float,
    label: str | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    socket: Path | None,
) -> None:
    """Run the image NAME until it is ready, and learn what it read.

    It is stopped then; from one that is never ready, nothing is learnt. The image must not be attached: reads that the kernel
    answers from memory would not be seen.
    """
    tools.need_root("record")
    wanted = labelled(name, label)
    readiness = parse_readiness(ready)
    if readiness.holds():
        raise UsageError(f"{ready} holds before the program has started: end what answers there, or choose another")
    host = opened(Host, store, cache, socket, trust)
    client = host.server()
    recording = Recording(client, readiness, seconds, warn)
    program = runner.Program(wanted, words(command), RunOptions(entrypoint=entrypoint))
    with _heard(readiness.hear):
        code = runner.run(client, host.devices, host.state, program, [recording], exact=True)
    if recording.trace is None:
        raise HostError("the server has recorded nothing of this start: its log says why")
    if recording.ready_seconds is None:
        why = f"the program ended with status {code}, and {ready} did not hold before"
        if recording.stopped:
            why = f"{ready} did not hold within {seconds:g} s: --ready says when the program can be used"
        raise HostError(f"{why}; nothing is learnt, and what it read until then is in {recording.trace}")
    warn(f"ready after {recording.ready_seconds:.2f} s, recorded in {recording.trace}")
    _build(wanted, client.status()["store"], trust, recording.trace)


def _build(wanted: str, store: str, trust: tuple[str, ...], trace: str) -> None:
    reference = parse_reference(wanted)
    label = ["--label", reference.label] if reference.label else []
    name = wanted.partition("+")[0]
    trusted = [word for each in trust for word in ("--trust", each)]
    arguments = ["profile", "build", "--store", store, *trusted, *label, name, trace]
    done = subprocess.run([sys.executable, "-m", "blockmap.cli.main", *arguments], check=False)
    if done.returncode:
        raise HostError(
            f"the profile could not be built; the trace is kept: once the cause is mended, blockmap {' '.join(arguments)}"
        )


@contextlib.contextmanager
def _heard(hear: Callable[[bytes], None]) -> Iterator[None]:
    """Reads what is written to standard output and standard error, by children too, and passes it on."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        for fd in (1, 2):
            kept = os.dup(fd)
            reading, writing = os.pipe()
            os.dup2(writing, fd)
            os.close(writing)
            pump = threading.Thread(target=_pump, args=(reading, kept, hear), daemon=True)
            pump.start()
            stack.callback(_restore, fd, kept, pump)
        yield


def _pump(reading: int, out: int, hear: Callable[[bytes], None]) -> None:
    with open(reading, "rb", buffering=0) as said:
        while piece := said.read(_PIECE_BYTES):
            hear(piece)
            with contextlib.suppress(OSError):
                os.write(out, piece)


def _restore(fd: int, kept: int, pump: threading.Thread) -> None:
    os.dup2(kept, fd)
    pump.join(1)  # a process of the container that outlives it would hold the pipe
    os.close(kept)
