"""The `blockmap` program."""

import logging
import os
import signal
import sys
from importlib import import_module
from types import FrameType

import click

from blockmap import __version__
from blockmap.errors import BlockmapError, UsageError

_COMMANDS = {
    "attach": "blockmap.cli.host:attach",
    "bench": "blockmap.bench.command:bench",
    "create": "blockmap.cli.images:create",
    "detach": "blockmap.cli.host:detach",
    "images": "blockmap.cli.images:images",
    "import": "blockmap.cli.images:import_",
    "profile": "blockmap.cli.profiles:profile",
    "report": "blockmap.report.command:report",
    "run": "blockmap.cli.host:run",
    "serve": "blockmap.cli.serve:serve",
    "show": "blockmap.cli.images:show",
    "status": "blockmap.cli.status:status",
    "top": "blockmap.cli.top:top",
    "trace": "blockmap.cli.traces:trace",
    "verify": "blockmap.cli.images:verify",
}
"""Where each command is: it is imported when it is run, because `attach` and `run` are waited for, and need a tenth of all."""


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="blockmap")
def program() -> None:
    """Container images as network block devices that start before they are pulled."""


def main() -> None:
    """Runs the program; errors become one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(format="blockmap: %(message)s")
    try:
        code = program.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("blockmap: interrupted", file=sys.stderr)
        code = 130
    except UsageError as error:
        print(f"blockmap: {error}", file=sys.stderr)
        code = 2
    except BlockmapError as error:
        print(f"blockmap: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
