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
import time
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


def exit_on_sigterm() -> None:
    """From now on SIGTERM ends the program as an error does: what it made is removed, what it started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: fail("terminated"))


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


def mmdebstrap(arguments: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Runs mmdebstrap so that what it mounts is seen by nobody else and is gone, as its processes are, when it ends.

    Without namespaces of its own, an interrupted run leaves /dev and the like mounted in the root, and whoever
    removes that root removes through them.
    """
    if shutil.which("mmdebstrap") is None:
        raise ToolError("mmdebstrap is not installed: run tools/setup")
    isolate = ["unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]
    if "/" not in mount_points():
        isolate = []  # in a bare chroot unshare cannot make mounts private; remove_tree still refuses to follow them
    run([*isolate, "mmdebstrap", *arguments], env=env)


def mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def remove_tree(folder: Path) -> None:
    """Removes a folder in which roots were made; ToolError, and nothing is removed, where anything is mounted in it."""
    below = f"{folder.resolve()}/"
    mounted = [point for point in mount_points() if f"{point}/".startswith(below)]
    if mounted:
        raise ToolError(f"{folder} is kept, because of what is mounted in it: {', '.join(mounted)}; unmount that first")
    deadline = time.monotonic() + 5  # processes that are being killed may still create files
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=time.monotonic() < deadline)


def stop(process: subprocess.Popen[bytes] | subprocess.Popen[str], grace_s: float = 10) -> None:
    """Ends a process that this program started: asks first, then kills."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def download_packages(packages: Iterable[str], into: Path, suite: str = "") -> list[Path]:
    """Fetches Debian packages (without those that they depend on) into a folder, without being root.

    They are those of this machine's Debian, or of another release.
    """
    names = list(packages)
    options = ["-o", "APT::Sandbox::User=root"]
    try:
        if suite:
            raise ToolError("this machine has no lists of another release")
        run(["apt-get", "-qq", *options, "download", *names], cwd=into)
    except ToolError:
        # Container images come without package lists; a private copy of the lists needs no root.
        with tempfile.TemporaryDirectory(prefix="blockmap-apt-") as state:
            private = [*options, "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}/cache"]
            if suite:
                sources = Path(state, "sources.list")
                sources.write_text(f"deb http://deb.debian.org/debian {suite} main\n")
                private += ["-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=/dev/null"]
                Path(state, "lists/partial").mkdir(parents=True)
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
