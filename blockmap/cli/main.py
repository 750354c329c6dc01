"""The `blockmap` program."""

import logging
import os
import signal
import sys
from types import FrameType

import click

from blockmap import __version__
from blockmap.cli import host, images
from blockmap.cli.bench.command import bench
from blockmap.cli.profiles import profile
from blockmap.cli.status import status
from blockmap.cli.top import top
from blockmap.cli.traces import trace
from blockmap.errors import BlockmapError, UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="blockmap")
def program() -> None:
    """Container images as network block devices that start before they are pulled."""


for command in (*images.commands, *host.commands, status, top, profile, trace, bench):
    program.add_command(command)


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
