"""The options of `run` and `exec` that docker has too, and a word on those that it has and `run` does not take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from blockmap.errors import UsageError

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

_PODMAN = "`podman run {} --rootfs DIR:O` on an attached image does"
_SYSTEMD = "systemd does: a unit whose ExecStart is `blockmap run ...`, with {}"
_NOT_TAKEN = {
    ("--restart",): _SYSTEMD.format("Restart=always"),
    ("--mount",): "-v SRC:DST[:ro] does, for directories of the host",
    ("--tmpfs",): "-v /dev/shm/NAME:DST does, which is in memory",
    ("--gpus", "--device", "--privileged", "--cap-add", "--cap-drop", "--security-opt", "--userns", "--group-add", "--sysctl",
     "--ulimit", "--shm-size", "--volumes-from", "--add-host", "--dns", "--pid", "--ipc", "--uts", "--init", "--cpuset-cpus",
     "--cpu-shares", "-c", "--memory-swap", "--log-driver", "--log-opt", "--health-cmd", "--pull", "--annotation"): _PODMAN,
    ("--link", "--ip", "--mac-address", "--network-alias"): "`podman run --network NAME --rootfs DIR:O` on an attached image does",
    ("-P", "--publish-all", "--expose"): "-p HOST:CONTAINER does, port by port",
    ("--platform",): "`import --platform` does: an image of the store is of one platform",
    ("--stop-signal",): "the image's StopSignal holds; `commit --change` sets it in a clone's version",
    ("--stop-timeout",): "`blockmap stop -t SECONDS NAME` does",
    ("--cidfile",): "-d prints the container's name, which --name chooses",
    ("-a", "--attach"): "a program's output is this command's, or with -d in `blockmap logs NAME`",
    ("-l", "--label-file"): "--label says which of the image's workloads it is, which is learnt apart",
    ("--detach-keys",): "-d detaches from the beginning",
    ("--runtime",): "runc runs it; `ctr run --rootfs DIR` takes another on an attached image",
}  # fmt: skip
_WHO = {flag: what for flags, what in _NOT_TAKEN.items() for flag in flags}


class RunCommand(click.Command):
    """A command that says of an option which docker has and it does not what takes its place."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            what = _WHO.get(error.option_name)
            if what is None:
                raise
            said = what.format(error.option_name)
            raise UsageError(f"{self.name} takes no {error.option_name}: {said}") from error


def program_options(command: _Decorated) -> _Decorated:
    """Adds what says how a program differs: environment, user, directory, terminal."""
    for option in (
        click.option("-w", "--workdir", metavar="DIR", help="Where it starts."),
        click.option("-u", "--user", metavar="USER[:GROUP]", help="Who it is: names of the image, or numbers."),
        click.option(
            "--env-file", "env_files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
            help="Take variables from a file, one a line.",
        ),
        click.option(
            "-e", "--env", "environment", multiple=True, metavar="NAME[=VALUE]",
            help="Set a variable; without a value, to that which it has here.",
        ),
        click.option("-t", "--tty", is_flag=True, help="It has a terminal: so anyway, where this command has one."),
        click.option("-i", "--interactive", is_flag=True, help="It has this command's input: so anyway, except with -d."),
    ):  # fmt: skip
        command = option(command)
    return command
