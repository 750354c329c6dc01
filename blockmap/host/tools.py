"""Finds and runs programs of the distribution that blockmap needs."""

import os
import shutil
import subprocess
from collections.abc import Iterable

from blockmap.errors import HostError

_PACKAGES = {
    "nbdkit": "nbdkit nbdkit-plugin-python",
    "nbdfuse": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "umount": "mount",
    "mkfs.ext4": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "pasta": "passt",
    "unshare": "util-linux",
}
"""Packages that are not named after their program; the same in Debian 12 and 13."""
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"


def find(tool: str) -> str:
    """Returns the path of a program; HostError names the package that has it."""
    path = _which(tool)
    if path is None:
        raise HostError(f"{tool} is needed and is not installed: apt-get install {package(tool)}")
    return path


def missing(tools: Iterable[str]) -> list[str]:
    """Returns the packages, sorted, of those programs that are not installed."""
    return sorted({package(tool) for tool in tools if _which(tool) is None})


def run(tool: str, *arguments: str) -> str:
    """Runs a program to its end, and returns its output; HostError has what it printed."""
    done = subprocess.run([find(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise HostError(f"{tool} {' '.join(arguments)} failed: {said}")
    return done.stdout


def is_chroot() -> bool:
    """Returns True if this process's root is not that of its mount name space, which a program gets that joins it; HostError."""
    inner = os.stat("/")
    outer = run("nsenter", "--mount=/proc/self/ns/mnt", "stat", "--format", "%d:%i", "/")
    return outer.strip() != f"{inner.st_dev}:{inner.st_ino}"


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise HostError(f"{what} needs root: run it with sudo")


def _which(tool: str) -> str | None:
    return shutil.which(tool) or shutil.which(tool, path=SEARCH)


def package(tool: str) -> str:
    """Returns the packages that have a program, separated by spaces."""
    return _PACKAGES.get(tool, tool)
