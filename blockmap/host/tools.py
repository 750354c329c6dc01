"""Programs of the distribution that blockmap starts."""

import os
import shutil
import subprocess

from blockmap.errors import HostError

_PACKAGES = {
    "nbdkit": "nbdkit nbdkit-plugin-python",
    "nbdfuse": "nbdfuse",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mount": "mount",
    "umount": "mount",
    "runc": "runc",
}
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"


def find(tool: str) -> str:
    """The path of a program; HostError names the package that has it."""
    path = shutil.which(tool) or shutil.which(tool, path=SEARCH)
    if path is None:
        raise HostError(f"{tool} is needed and is not installed: apt-get install {_PACKAGES.get(tool, tool)}")
    return path


def run(tool: str, *arguments: str) -> str:
    """Runs a program to its end; HostError has what it said."""
    done = subprocess.run([find(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise HostError(f"{tool} {' '.join(arguments)} failed: {said}")
    return done.stdout


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise HostError(f"{what} needs root: run it with sudo")
