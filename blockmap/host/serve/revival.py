"""Starts a server again that was killed, as it had been started: for whoever has devices of it.

A server that nobody else would start again notes its command and environment beside its socket, for its user alone, and removes
that when it ends in order. systemd starts its own again.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blockmap.host.serve.listening import is_owned

_BEGIN_SECONDS = 10.0
_POLL_SECONDS = 0.01


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
    """Starts the server of a socket again if it was killed, and waits until it has begun; does nothing where one is there or about
    to be, or ended in order."""
    try:
        with open(_note(nbd_socket)) as note:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_owned(nbd_socket) or os.fstat(note.fileno()).st_uid != os.geteuid():
                return  # if it is another user's: that one wants a program run
            how = json.load(note)
            log = nbd_socket.with_name(nbd_socket.name + ".log")
            with open(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as out:
                process = subprocess.Popen(
                    how["command"], env=how["environment"], cwd=how["directory"],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
            say(f"the server at {nbd_socket} was killed: it is started again (log: {log})")
            end = time.monotonic() + _BEGIN_SECONDS
            while not is_owned(nbd_socket) and process.poll() is None and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
    except (FileNotFoundError, BlockingIOError):
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"the server at {nbd_socket} was killed, and cannot be started again: {error}")


def _note(nbd_socket: Path) -> Path:
    return nbd_socket.with_name(nbd_socket.name + ".start")
