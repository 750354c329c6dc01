"""A docker engine of a test's own."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import until


@contextmanager
def dockerd(own: Path) -> Iterator[tuple[str, Callable[..., str]]]:
    """Runs an engine that keeps everything in a folder; yields its address, and what runs docker's client with it."""
    own.mkdir()
    places = ("--data-root", own / "data", "--exec-root", own / "exec", "--pidfile", own / "pid")
    address = f"unix://{own}/socket"
    with open(own / "log", "wb") as log:
        engine = subprocess.Popen(
            ["dockerd", "--iptables=false", "--bridge=none", "-H", address, *places], stdout=log, stderr=log
        )

    def run(*arguments: str | Path) -> str:
        command = ["docker", "-H", address, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answers() -> bool:
        assert engine.poll() is None, (own / "log").read_text()
        return subprocess.run(["docker", "-H", address, "info"], capture_output=True, check=False).returncode == 0

    try:
        until(answers)
        yield address, run
    finally:
        engine.terminate()
        engine.wait(60)
