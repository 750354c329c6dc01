"""Says how many connections the limits of this host allow a server, and raises the limits that a process may raise itself."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FILES = 3
"""Descriptors of a connection: its socket, and a pipe of nbdkit's own."""
_MAPS = 2
"""Mappings of a thread: its stack, and the guard below it."""
_OWN = 512
"""Threads, and as many descriptors, that a server keeps for all that is no connection: calls of the store, the cache, clients
of its other sockets."""
_OWN_MAPS = 4 * _OWN


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections a server can have at once."""

    connections: int
    limit: str
    """The limit that sets this number, in words."""


def raise_limits() -> None:
    """Raises the limits of descriptors and threads as far as this process may; its children inherit them."""
    for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        _, hard = resource.getrlimit(number)
        resource.setrlimit(number, (hard, hard))


def capacity(threads: int, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Capacity:
    """Returns what a server can take whose connections have a number of threads each."""
    files, processes = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    found = [_allowed(f"{files:,} open files (LimitNOFILE)", files, _OWN, _FILES)]
    if processes != resource.RLIM_INFINITY and os.geteuid() != 0:  # it does not count for root
        found.append(_allowed(f"{processes:,} processes of a user (LimitNPROC)", processes, _OWN, threads))
    maps = _number(proc / "sys/vm/max_map_count")
    if maps is not None:
        found.append(_allowed(f"vm.max_map_count = {maps}", maps, _OWN_MAPS, _MAPS * threads))
    for name, path, running in _tasks(proc, cgroups):
        tasks = _number(path)
        if tasks is not None:
            found.append(_allowed(f"{name} = {tasks}", tasks - running, _OWN, threads))
    return min(found, key=lambda each: each.connections)


def _allowed(name: str, limit: int, own: int, each: int) -> Capacity:
    """Returns what one limit allows, one connection at least; where it is low, the server keeps half of it for itself."""
    return Capacity(max((limit - min(own, limit // 2)) // each, 1), name)


def _tasks(proc: Path, cgroups: Path) -> Iterator[tuple[str, Path, int]]:
    """Yields the limits of threads that processes share: name, file, and how many threads there are already."""
    running = int((proc / "loadavg").read_text().split()[3].partition("/")[2])
    for name in ("threads-max", "pid_max"):
        yield f"kernel.{name}", proc / "sys/kernel" / name, running
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, within = line.split(":", 2)
        if controllers not in ("", "pids"):  # version 2, or 1
            continue
        top = cgroups / controllers
        group = top / within.lstrip("/")
        # A container may see its own group as the top one, whatever its name is outside.
        for each in (group, *group.parents):
            if each.is_relative_to(top):
                yield "pids.max of a control group (TasksMax)", each / "pids.max", _number(each / "pids.current") or 0


def _number(path: Path) -> int | None:
    """Returns the number in a file; None where there is no such file, or no limit in it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
