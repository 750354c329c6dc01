"""Begins and ends the processes that keep mounts on the newest versions of their names, one for each directory.

What such a process says is in a file beside its lock.
"""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from blockmap.host import background


def begin(state: Path, nbd_socket: Path, name: str, where: str) -> None:
    """Starts to follow the name of what was just attached at a directory; OSError."""
    path = _file(state, where)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lock = background.lock(path)
    try:
        command = [sys.executable, "-m", "blockmap.host.following", str(state), str(nbd_socket), name, where]
        with open(path.with_suffix(".log"), "wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, pass_fds=[lock]
            )  # fmt: skip
        background.note_pid(lock, process.pid)
    finally:
        os.close(lock)


def end(state: Path, where: str) -> None:
    """Ends the process that follows a name for a directory, if there is one; HostError."""
    path = _file(state, where)
    with background.ended(path, f"follows a name for {where}"):
        path.with_suffix(".log").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def is_followed(state: Path, where: str) -> bool:
    """Returns True if a process follows a name for a directory."""
    return background.is_running(_file(state, where))


def _file(state: Path, where: str) -> Path:
    """Returns the file whose lock is held while a name is followed for a directory."""
    return state / "following" / sha256(os.fsencode(where)).hexdigest()[:16]
