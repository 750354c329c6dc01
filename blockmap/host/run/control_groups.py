"""Says what control groups of this host a container can have, for limits and for what it may do with devices."""

import os
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.devices import mounts
from blockmap.host.run.options import RunOptions


def supervised(options: RunOptions) -> bool:
    """Returns True if containers can have control groups; HostError where there are none at all, or none for a limit of the
    options."""
    found = mounts.cgroups()
    if not found:
        raise HostError(
            "runc needs control groups, and none are mounted: mount -t cgroup2 none /sys/fs/cgroup, or use "
            "`blockmap attach` and chroot"
        )
    writable = not any(os.statvfs(each).f_flag & os.ST_RDONLY for each in found)
    wanted = [
        ("--memory", "memory", options.memory),
        ("--cpus", "cpu", options.cpus),
        ("--pids-limit", "pids", options.pids),
    ]
    for option, controller, limit in wanted:
        if limit is None:
            continue
        if not writable:
            raise HostError(f"{option} needs control groups that can be written, and {found[0]} is mounted read-only")
        if not any(_has(each, controller) for each in found):
            raise HostError(
                f"{option} needs the control group of {controller}, which this host does not have: see /proc/cgroups, and "
                f"mount it, or leave out {option}"
            )
    return writable


def _has(mounted: Path, controller: str) -> bool:
    """Returns True if a mounted hierarchy limits something: version 2 lists what it does, version 1 is called so."""
    try:
        return controller in (mounted / "cgroup.controllers").read_text().split()
    except OSError:
        return controller in mounted.name.split(",")
