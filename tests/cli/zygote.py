"""A process that has imported all commands, and forks for each that is run: some 30 ms instead of a second.

Requests and answers are JSON, one a line, on its standard input and output. What a command finds as its streams, each request says.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

CLOSED, GONE = "closed", "gone"
"""Instead of the path of a stream: none, and a pipe whose reader has gone."""
_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    """The exit status, minus a signal; -9 where it did not end in time."""
    out: str
    err: str


class Zygote:
    """The test's end of it."""

    def __init__(self, environment: Mapping[str, str], where: Path) -> None:
        self._where = where
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}, cwd=where,
        )  # fmt: skip

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        arguments: Sequence[str],
        *,
        out: str = "",
        err: str = "",
        inn: str = os.devnull,
        uid: int = 0,
        environment: Mapping[str, str | None] | None = None,
    ) -> Ended:
        """Runs a command; streams are paths, CLOSED or GONE, and files of its own where they are empty."""
        files = [self._where / "out", self._where / "err"]
        for each in files:
            each.write_text("")
            each.chmod(0o666)
        request = {
            "arguments": list(arguments), "streams": [inn, out or str(files[0]), err or str(files[1])], "uid": uid,
            "environment": dict(environment or {}),
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Ended(code, *(each.read_text() for each in files))


def _serve() -> None:
    from blockmap.cli import main

    for place in main._COMMANDS.values():
        __import__(place.partition(":")[0])
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be(request, main.main)
        fd = os.pidfd_open(pid)
        if not select.select([fd], [], [], _LIMIT_S)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(fd)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _be(request: dict[str, Any], main: Any) -> None:
    """Is the command: what Python itself does for a program that begins and ends is done here."""
    code = 1
    try:
        os.setsid()
        for fd, path in enumerate(request["streams"]):
            os.close(fd)
            if path == GONE:
                reading, writing = os.pipe()  # the lowest numbers: one is `fd`
                os.close(reading)
                os.dup2(writing, fd)
            elif path != CLOSED:
                os.dup2(opened := os.open(path, os.O_RDWR | os.O_NOCTTY), fd)
                os.set_inheritable(fd, True)
                if opened != fd:
                    os.close(opened)
        closed = [path == CLOSED for path in request["streams"]]
        sys.stdin = None if closed[0] else os.fdopen(0, closefd=False)  # type: ignore[assignment]
        sys.stdout = None if closed[1] else os.fdopen(1, "w", closefd=False)  # type: ignore[assignment]
        sys.stderr = None if closed[2] else os.fdopen(2, "w", closefd=False)  # type: ignore[assignment]
        for name, value in request["environment"].items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if request["uid"]:
            os.setgroups([])
            os.setgid(request["uid"])
            os.setuid(request["uid"])
        sys.argv = ["blockmap", *request["arguments"]]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
