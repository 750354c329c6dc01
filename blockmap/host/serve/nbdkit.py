"""Says which nbdkit this host has, and how it is started with this Python."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.local.settings import ENGINE_VARIABLES, NETWORK_VARIABLES

ABORTS_BELOW = (1, 34)
"""nbdkit 1.32.4 and 1.32.5 end for all clients when one hangs up with replies pending."""
_MEMORY = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "OPENBLAS_NUM_THREADS": "1",
}
"""Chunks come and go: memory that is given back at each is cleared by the kernel for the next (a tenth of what 64 readers
get over a fast link). numpy's BLAS has nothing to do here, and begins with threads that spin."""
_KEPT = ("HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", *NETWORK_VARIABLES)


def version() -> tuple[int, int]:
    """Returns nbdkit's major and minor version; HostError where it is not installed."""
    text = tools.run("nbdkit", "--version")
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None:
        raise HostError(f"nbdkit says that its version is {text.strip()!r}, which is not understood")
    return int(found[1]), int(found[2])


def check_python() -> None:
    """Raises HostError where nbdkit's Python is not the one of this environment: its packages would not load there."""
    done = subprocess.run(
        [tools.find("nbdkit"), "python", "--dump-plugin"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    found = re.search(r"^python_version=(\d+)\.(\d+)", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise HostError("nbdkit has no Python plugin: apt-get install nbdkit-plugin-python")
    if (int(found[1]), int(found[2])) != sys.version_info[:2]:
        raise HostError(
            f"nbdkit's Python is {found[1]}.{found[2]}, and blockmap runs on {own_python()} from {sys.prefix}: install blockmap "
            "into a virtual environment made with /usr/bin/python3 -m venv"
        )


def own_python() -> str:
    """Returns the version of this environment's Python, as 3.11."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def plugin_script() -> Path:
    """Returns the file that nbdkit's Python plugin runs; HostError where it is not installed."""
    spec = find_spec("nbdplugin")
    if spec is None or spec.origin is None:
        raise HostError("the package nbdplugin is not installed beside blockmap: install blockmap again")
    return Path(spec.origin).with_name("plugin.py")


def environment() -> dict[str, str]:
    """Returns a clean environment, in which nbdkit's Python finds this one's packages, and the store's engine its settings."""
    kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(ENGINE_VARIABLES)}
    return {**kept, "PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1", **_MEMORY}


_WORKERS = 8
"""Requests of one connection that are served at once, each in a thread that nbdkit makes when the connection is opened: cached
reads are answered while fewer than these wait for the store. More threads hinder each other: cached reads at depth 16 reach
0.60 of nbdkit's file plugin with 16, 0.64 to 0.74 with 8."""
THREADS = _WORKERS + 1
"""Threads of a connection."""


def command(
    store: str,
    cache: Path,
    cache_bytes: int | None,
    state: Path,
    outages: Sequence[str],
    control_fd: int,
    learn: bool,
    trust: Sequence[str],
    hydrate: bool,
) -> list[str]:
    """Returns the command that runs nbdkit in the foreground with the plugin; its sockets come by socket activation."""
    arguments = [
        tools.find("nbdkit"), "-f", "--exit-with-parent", "-t", str(_WORKERS), "python", str(plugin_script()),
        f"store={store}", f"cache={cache}", f"state={state}", f"control_fd={control_fd}",
        f"learn={'on' if learn else 'off'}", f"hydrate={'on' if hydrate else 'off'}", *(f"outage={each}" for each in outages),
        *(f"trust={key}" for key in trust),
    ]  # fmt: skip
    return arguments if cache_bytes is None else [*arguments, f"cache_bytes={cache_bytes}"]
