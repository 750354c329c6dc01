"""Starts a server again that was killed, as it had been started: for whoever has devices of it.

A server that nobody else would start again notes its command and environment beside its socket, for its user alone, and removes
that when it ends in order. systemd starts its own again.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from blockmap.host.serve.listening import is_owned


@contextlib.contextmanager
def noted(nbd_socket: Path) -> Iterator[None]:
    """Keeps a note of how this process was started while it serves; OSError where it cannot be written."""
    if os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        yield
        return
    note = _note(nbd_socket)
    command = [
        word.decode(errors="surrogateescape") for word in Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    ]
    content = json.dumps({"command": command, "environment": dict(os.environ), "directory": os.getcwd()})
    note.unlink(missing_ok=True)
    with open(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(content)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def revive(nbd_socket: Path, say: Callable[[str], None]) -> None:
    """Starts the server of a socket again if it was killed; does nothing where one is there, or ended in order."""
    if is_owned(nbd_socket):
        return
    try:
        with open(_note(nbd_socket)) as note:
            if os.fstat(note.fileno()).st_uid != os.geteuid():
                return  # another user wants a program run
            how = json.load(note)
        command, environment, directory = how["command"], how["environment"], how["directory"]
        log = nbd_socket.with_name(nbd_socket.name + ".log")
        with open(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as out:
            subprocess.Popen(
                command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            say(f"the server at {nbd_socket} was killed, and cannot be started again: {error}")
        return
    say(f"the server at {nbd_socket} was killed: it is started again (log: {log})")


def _note(nbd_socket: Path) -> Path:
    return nbd_socket.with_name(nbd_socket.name + ".start")
