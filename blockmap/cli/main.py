"""The `blockmap` program."""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any

import click

from blockmap import __version__
from blockmap.errors import BlockmapError, UsageError
from blockmap.local.settings import export_variables
from blockmap.terminal.output import open_streams, show_warnings, warn

_COMMANDS = {
    "attach": "blockmap.cli.attach:attach",
    "bench": "blockmap.bench.command:bench",
    "clone": "blockmap.cli.clones:clone",
    "clones": "blockmap.cli.clones:clones",
    "commit": "blockmap.cli.commit:commit",
    "config": "blockmap.cli.config:config",
    "create": "blockmap.cli.images:create",
    "detach": "blockmap.cli.attach:detach",
    "devices": "blockmap.cli.devices:devices",
    "diff": "blockmap.cli.history:diff",
    "doctor": "blockmap.cli.doctor:doctor",
    "exec": "blockmap.cli.containers:execute",
    "export": "blockmap.cli.export:export",
    "fork": "blockmap.cli.clones:fork",
    "fsck": "blockmap.cli.fsck:fsck",
    "gc": "blockmap.cli.garbage:gc",
    "help": "blockmap.cli.help:help_",
    "history": "blockmap.cli.history:log",
    "images": "blockmap.cli.image_list:images",
    "import": "blockmap.cli.imports:import_",
    "key": "blockmap.cli.keys:key",
    "kill": "blockmap.cli.containers:kill",
    "log": "blockmap.cli.history:log",
    "logs": "blockmap.cli.containers:logs",
    "profile": "blockmap.cli.profiles:profile",
    "ps": "blockmap.cli.containers:ps",
    "registry": "blockmap.cli.registry:registry",
    "report": "blockmap.report.command:report",
    "rewind": "blockmap.cli.clones:rewind",
    "rm": "blockmap.cli.containers:rm",
    "run": "blockmap.cli.run:run",
    "serve": "blockmap.cli.serve:serve",
    "show": "blockmap.cli.images:show",
    "status": "blockmap.cli.status:status",
    "stop": "blockmap.cli.stop:stop",
    "tag": "blockmap.cli.history:tag",
    "top": "blockmap.cli.top:top",
    "trace": "blockmap.cli.traces:trace",
    "untag": "blockmap.cli.history:untag",
    "verify": "blockmap.cli.images:verify",
    "version": "blockmap.cli.version:version",
}
"""Where each command is: it is imported when it is run, because `attach` and `run` are waited for, and need a tenth of all."""

_ELSEWHERE = {
    "inspect": "show",
    "list": "images",
    "ls": "images",
    "mount": "attach",
    "pull": "import",
    "push": "export",
    "rmi": "untag",
    "umount": "detach",
}
"""What other programs call our commands."""


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        if "logging" in sys.modules:  # 6 ms, which a start need not wait for
            show_warnings()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches  # nobody else needs it

            meant = [_ELSEWHERE[name]] if name in _ELSEWHERE else get_close_matches(name, _COMMANDS)
            raise UsageError(
                f"there is no {name!r}: "
                + (f"did you mean {' or '.join(meant)}?" if meant else "see `blockmap --help`")
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="blockmap")
def program() -> None:
    """Container images as network block devices that start before they are pulled."""
    export_variables()


def main() -> None:
    """Runs the program; errors become one line on standard error and an exit code."""
    open_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup(1) has it
            signal.signal(number, _interrupt)
    if "_BLOCKMAP_COMPLETE" in os.environ:  # a shell asks what a line could go on with
        import_module("blockmap.cli.completion").register()
    code = _run(lambda: program.main(standalone_mode=False))
    sys.exit(_run(sys.stdout.flush) or code)


def _run(work: Callable[[], Any]) -> Any:
    """Returns what `work` returns, or the exit code of its error, which is told."""
    try:
        return work()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        warn("interrupted")
        return 130
    except UsageError as error:
        warn(str(error))
        return 2
    except BlockmapError as error:
        warn(str(error))
        return 1
    except BrokenPipeError:
        return 1
    except PermissionError as error:
        warn(f"this user may not use {error.filename}: run it with sudo, or name another place")
        return 1


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
