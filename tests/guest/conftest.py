"""Runs scripts in the QEMU guest."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LIMIT_S = 300.0  # emulated in software, on a busy machine

Guest = Callable[..., str]


@pytest.fixture(scope="session")
def guest(need: Callable[..., None]) -> Guest:
    """guest(script, set={...}, add=[...], options=[...]) runs a shell script, which must succeed, and returns its output."""
    need("qemu-system-x86_64", "nbd-client", "busybox", "mke2fs")

    def run(
        script: str,
        set: Mapping[str, object] | None = None,
        add: Sequence[str | Path] = (),
        options: Sequence[str] = (),
    ) -> str:
        command: list[str] = [str(CHECKOUT / "tools" / "guest"), f"--time-limit={LIMIT_S}", *options]
        command += [f"--set={name}={value}" for name, value in (set or {}).items()]
        command += [f"--add={path}" for path in add]
        done = subprocess.run([*command, "-"], input=script, capture_output=True, text=True, timeout=2 * LIMIT_S)
        assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
