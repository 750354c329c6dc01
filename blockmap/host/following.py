"""Keeps a mount on the newest version of its name. A process of its own does it:

    python -m blockmap.host.following STATE SOCKET NAME DIR

It asks the server what the name stands for, and ends when nothing is attached there any more. Where it fails, what is mounted
stays, and it tries again.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from blockmap.control.client import Client
from blockmap.control.messages import Resolve, Stands
from blockmap.errors import BlockmapError
from blockmap.host.attachments import Attachments
from blockmap.host.devices.kinds import HostDevices

_LOOK_SECONDS = 1.0
"""Seconds between two questions to the server, which asks the store each time: two small requests."""


def follow(
    attachments: Attachments, client: Client, name: str, where: str, say: Callable[[str], None], look_seconds: float
) -> None:
    """Attaches the newest version of a name at a directory whenever the name has moved, until nothing is attached there."""
    failed, is_left = "", False
    while (attached := attachments.at(where)) is not None:
        try:
            (export,) = client.ask(Stands([name])).exports
            if export is not None and export != attached.export.partition("+")[0]:
                attachments.replace(client, client.ask(Resolve(name)).export, name, where)
                say(f"{name} has moved: {export} is at {where}")
                is_left = True
            is_left = is_left and attachments.tidy()
            failed = ""
        except BlockmapError as error:
            if str(error) != failed:
                failed = str(error)
                say(f"{name} is not followed at this moment: {failed}")
        time.sleep(look_seconds)


def _main(state: str, nbd_socket: str, name: str, where: str) -> None:
    def say(text: str) -> None:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)

    client = Client(Path(nbd_socket))
    follow(Attachments(Path(state), HostDevices(Path(state)), say), client, name, where, say, _LOOK_SECONDS)


if __name__ == "__main__":
    _main(*sys.argv[1:])
