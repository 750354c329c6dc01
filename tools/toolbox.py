"""What the programs in tools/ share: a cache folder, commands, packages of the distribution.

Standard library only: these programs run before anything of the project is installed.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

CHECKOUT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1


class ToolError(Exception):
    """Something that a person has to put right; the message says what."""


def fail(error: object) -> NoReturn:
    program = Path(sys.argv[0]).name
    raise SystemExit(f"{program}: {error}")


def cache_folder(name: str) -> Path:
    """A folder of this user in which what takes long to make is kept; deleting it is always safe."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "blockmap-tools" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Runs a command quietly and returns its output; ToolError with all that it printed where it fails."""
    if shutil.which(str(command[0])) is None:
        raise ToolError(f"{command[0]} is not installed: run tools/setup")
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        line = " ".join(map(str, command))
        raise ToolError(f"{line}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def end_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """In a child, before exec: the kernel signals it when the thread that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)


def stop(process: subprocess.Popen[bytes] | subprocess.Popen[str], grace_s: float = 10) -> None:
    """Ends a process that this program started: asks first, then kills."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def download_packages(packages: Iterable[str], into: Path) -> list[Path]:
    """Fetches Debian packages (without those that they depend on) into a folder, without being root."""
    names = list(packages)
    options = ["-o", "APT::Sandbox::User=root"]
    try:
        run(["apt-get", "-qq", *options, "download", *names], cwd=into)
    except ToolError:
        # Container images come without package lists; a private copy of the lists needs no root.
        with tempfile.TemporaryDirectory(prefix="blockmap-apt-") as state:
            private = [*options, "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}/cache"]
            run(["apt-get", "-qq", *private, "update"])
            run(["apt-get", "-qq", *private, "download", *names], cwd=into)
    return sorted(into.glob("*.deb"))


def apt_acquire_options() -> list[str]:
    """This machine's settings for downloads (proxies and the like), as lines of apt configuration."""
    lines = run(["apt-config", "dump"]).splitlines()
    return [line for line in lines if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")]


def apt_sources(suite: str) -> list[Path]:
    """This machine's lists of package sources that name a Debian release; none means the public mirror."""
    word = re.compile(rf"(?<![\w-]){re.escape(suite)}(?![\w-])")
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    usable = [file for file in files if file.suffix in (".list", ".sources") and file.is_file()]
    return [file for file in usable if word.search(file.read_text())]
