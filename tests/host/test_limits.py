"""How many connections the limits of a host allow."""

import resource
from pathlib import Path

import pytest

from blockmap.host.serve.limits import Capacity, capacity

THREADS = 17


class Machine:
    """A host with made-up limits, in files as the kernel shows them."""

    def __init__(self, where: Path) -> None:
        self.proc, self.cgroups = where / "proc", where / "cgroup"
        self.set(self.proc / "loadavg", "0.10 0.20 0.30 2/1000 4711")
        self.set(self.proc / "sys/kernel/threads-max", "1000000")
        self.set(self.proc / "sys/kernel/pid_max", "1000000")
        self.set(self.proc / "sys/vm/max_map_count", "10000000")
        self.set(self.proc / "self/cgroup", "0::/")

    def set(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def capacity(self) -> Capacity:
        return capacity(THREADS, self.proc, self.cgroups)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr("resource.getrlimit", lambda number: (1_000_000, 1_000_000))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return Machine(tmp_path)


def test_this_host_takes_some() -> None:
    assert capacity(THREADS).connections >= 1


def test_descriptors(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for files, connections in ((3512, 1000), (1024, 170), (300, 50), (4, 1)):
        monkeypatch.setattr("resource.getrlimit", lambda number, files=files: (files, files))
        assert machine.capacity() == Capacity(connections, f"{files:,} open files (LimitNOFILE)")


def test_processes_of_a_user_who_is_not_root(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(number: int) -> tuple[int, int]:
        return (2212, 2212) if number == resource.RLIMIT_NPROC else (1_000_000, 1_000_000)

    monkeypatch.setattr("resource.getrlimit", of)
    assert machine.capacity().connections > 100
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert machine.capacity() == Capacity(100, "2,212 processes of a user (LimitNPROC)")


@pytest.mark.parametrize("name", ["threads-max", "pid_max"])
def test_threads_of_the_system(machine: Machine, name: str) -> None:
    machine.set(machine.proc / "sys/kernel" / name, str(1000 + 512 + 200 * THREADS + 5))
    assert machine.capacity() == Capacity(200, f"kernel.{name} = 4917")


def test_mappings(machine: Machine) -> None:
    machine.set(machine.proc / "sys/vm/max_map_count", "65530")
    assert machine.capacity() == Capacity(1867, "vm.max_map_count = 65530")


@pytest.mark.parametrize(
    ("line", "folder"),
    [("0::/a/b", ""), ("4:pids:/a/b", "pids"), ("0::/elsewhere/a", "")],
    ids=["v2", "v1", "container"],
)
def test_control_groups(machine: Machine, line: str, folder: str) -> None:
    """The smallest limit counts of a group and of those above it, which a container may see as the only ones."""
    top = machine.cgroups / folder
    machine.set(machine.proc / "self/cgroup", f"7:cpu,cpuacct:/x\n{line}")
    machine.set(top / "pids.max", str(512 + 90 + 100 * THREADS))
    machine.set(top / "pids.current", "90")
    machine.set(top / "a/pids.max", "max")
    assert machine.capacity() == Capacity(100, "pids.max of a control group (TasksMax) = 2302")
    machine.set(top / "a/b/pids.max", str(512 + 50 * THREADS))
    assert machine.capacity().connections == (100 if "elsewhere" in line else 50)
