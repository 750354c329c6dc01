"""Mounts where a process sees it: this one, or another that has a mount namespace or a root directory of its own."""

import ctypes
import json
import os
from collections.abc import Callable
from contextlib import ExitStack

from blockmap.errors import HostError
from blockmap.host.devices import mounts

_NEW_NAMESPACE = 0x20000
"""CLONE_NEWNS of setns(2), which Python has from 3.12 on."""
_MOST_BYTES = 4096


class MountNamespace:
    """The directories and mounts that this process sees."""

    descriptors: tuple[int, ...] = ()
    """What a child has to keep open for `path` to lead there."""

    def path(self, where: str) -> str:
        """Returns a path by which this process reaches a directory of the namespace."""
        return where

    def sources(self) -> dict[str, str]:
        """Returns what is mounted, topmost, by directory."""
        return mounts.sources()

    def source(self, where: str) -> str | None:
        """Returns what is mounted at a directory, topmost; None where nothing is."""
        return self.sources().get(where)

    def mount(self, device: str, where: str, kind: str, flags: int, options: str) -> None:
        """Mounts with mount(2); HostError, whose cause is the OSError."""
        mounts.mount(device, where, kind, flags, options)

    def take_off(self, where: str, *, lazily: bool = False) -> None:
        """Unmounts with umount2(2); HostError."""
        mounts.take_off(where, lazily=lazily)


OWN = MountNamespace()


class PeerNamespace(MountNamespace):
    """The directories and mounts that another process sees, also when that process has ended."""

    def __init__(self, pid: int, stack: ExitStack) -> None:
        """`stack` closes what this opens; OSError where the process has gone."""
        proc = f"/proc/{pid}"
        self._namespace, self._root, self._table = (
            os.open(f"{proc}/{name}", flags | os.O_CLOEXEC)
            for name, flags in (("ns/mnt", os.O_RDONLY), ("root", os.O_PATH), ("mountinfo", os.O_RDONLY))
        )
        for fd in (self._namespace, self._root, self._table):
            stack.callback(os.close, fd)
        self.descriptors = (self._root,)

    def path(self, where: str) -> str:
        return f"/proc/self/fd/{self._root}{where}"

    def sources(self) -> dict[str, str]:
        os.lseek(self._table, 0, os.SEEK_SET)
        with open(self._table, "rb", closefd=False) as table:
            return mounts.parse_sources(table.read())

    def mount(self, device: str, where: str, kind: str, flags: int, options: str) -> None:
        self._inside(lambda: mounts.mount(device, where, kind, flags, options))

    def take_off(self, where: str, *, lazily: bool = False) -> None:
        self._inside(lambda: mounts.take_off(where, lazily=lazily))

    def _inside(self, work: Callable[[], None]) -> None:
        """Has a child of this process enter the namespace and do some work there: who has entered one cannot come back to a
        root of before."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._be(work, writing)
        os.close(writing)
        with open(reading, "rb") as said:
            failed = said.read()
        _, status = os.waitpid(child, 0)
        if failed:
            code, text = json.loads(failed)
            raise HostError(text) from OSError(code, text)
        if status:
            raise HostError(f"the process that works in another mount namespace was killed (status {status})")

    def _be(self, work: Callable[[], None], writing: int) -> None:
        """Runs the child; does not return."""
        done = 1
        try:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(self._namespace, _NEW_NAMESPACE):
                    raise OSError(code := ctypes.get_errno(), f"cannot enter its mount namespace: {os.strerror(code)}")
                os.fchdir(self._root)
                os.chroot(".")
                work()
                done = 0
            except (HostError, OSError) as error:
                cause = error.__cause__ if isinstance(error, HostError) else error
                code = getattr(cause, "errno", 0)
                os.write(writing, json.dumps([code, str(error)]).encode()[:_MOST_BYTES])
        finally:
            os._exit(done)


def namespace_of(pid: int, stack: ExitStack) -> MountNamespace:
    """Returns what a process sees, which mostly is what this one does; OSError where it has gone."""
    if _identity(pid) == _identity(os.getpid()):
        return OWN
    return PeerNamespace(pid, stack)


def _identity(pid: int) -> list[tuple[int, int]]:
    found = (os.stat(f"/proc/{pid}/{name}") for name in ("ns/mnt", "root"))
    return [(each.st_dev, each.st_ino) for each in found]
