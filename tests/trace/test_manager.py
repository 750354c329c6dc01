"""When a trace begins and ends, who is in it, and what counts as evidence."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.format.trace import DECLARED, EXACT, NEW, End, TraceHead
from blockmap.trace.manager import TraceManager
from blockmap.trace.start_trace import Limits
from tests.trace.starting import COPY, EXPORT, MOUNT, Clock, Connection, StandingVolume, ranges, stored
from tests.waiting import until

LIMITS = Limits(look_s=3600.0)
"""Nobody looks but the test."""


class Host:
    """Starts, and what they said was evidence."""

    def __init__(self, folder: Path, limits: Limits = LIMITS) -> None:
        self.folder = folder
        self.clock = Clock()
        self.evidence: list[tuple[TraceHead, Path]] = []
        self.starts = TraceManager(folder, lambda head, path: self.evidence.append((head, path)), limits, self.clock)

    def connect(
        self, label: str = "default", volume: StandingVolume | None = None, *, is_local: bool = True
    ) -> Connection:
        connection = Connection(volume or StandingVolume(), label, is_local=is_local)
        self.starts.join(connection)
        return connection

    def run(
        self, reads: list[tuple[int, int]], label: str = "default", name: str = EXPORT, failed: bool = False
    ) -> TraceHead:
        """A whole start; what its trace says."""
        connection = self.connect(label, StandingVolume(name))
        connection.read_all(reads)
        if failed:
            self.starts.ready(name, label, failed=True)
        self.starts.leave(connection)
        return self.newest

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.trace"))

    @property
    def newest(self) -> TraceHead:
        """Returns the head of the trace that ended last."""
        told = next(each for each in self.starts.traces() if each["state"] != "running")
        return stored(Path(str(told["path"]))).head


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "traces")
    yield host
    host.starts.close()
    assert not [each for each in threading.enumerate() if each.name == "traces"]


def is_bare(connection: Connection) -> bool:
    return connection.read == connection.volume.read


def test_connections_that_come_while_it_lasts_are_one_start(host: Host) -> None:
    volume = StandingVolume()
    one, two = host.connect(volume=volume), host.connect(volume=volume)
    one.read_all([(0, 1)])
    three, other = host.connect(volume=StandingVolume()), host.connect("migrate", volume)
    for number, each in enumerate((two, three, other, one)):
        each.read_all([(number, 10)])
    for each in (one, two, three, other):
        host.starts.leave(each)
    found = {trace.head.label: ranges(trace) for trace in map(stored, host.files)}
    assert found == {"default": [(0, 1), (0, 10), (1, 10), (3, 10)], "migrate": [(2, 10)]}
    assert [each["state"] for each in host.starts.traces()] == ["closed", "closed"]
    assert host.starts.status() == {"running": 0, "begun": 2, "ended": 2, "learnable": 0, "failed": 0}


def test_no_read_no_trace(host: Host) -> None:
    host.starts.leave(host.connect())
    assert host.files == host.starts.traces() == []
    connection = host.connect()
    host.clock.forward(100)
    host.starts.look()
    connection.read_all([(5, 1)])
    host.starts.leave(connection)
    (trace,) = map(stored, host.files)
    assert trace.reads["time_us"].tolist() == [0], "it began when somebody read"


def test_times_are_since_the_open(host: Host) -> None:
    connection = host.connect()
    host.clock.forward(2)
    connection.read_all([(5, 1)])
    host.starts.leave(connection)
    (trace,) = map(stored, host.files)
    assert trace.reads["time_us"].tolist() == [2_000_000]


def test_quiet(host: Host) -> None:
    connection = host.connect()
    connection.read_all([(0, 4096)])
    host.clock.forward(4)
    connection.read_all([(4096, 4096)])
    host.starts.look()
    for _ in range(4):
        host.clock.forward(1)
        connection.read_all([(4096, 4096)])  # nothing new
        host.starts.look()
        assert not is_bare(connection)
    host.clock.forward(1)
    host.starts.look()
    assert is_bare(connection)
    assert host.newest.end == End.QUIET
    assert len(stored(host.files[0]).reads) == 6


def test_a_start_that_waits_for_the_store_is_not_quiet(host: Host) -> None:
    connection = host.connect()
    connection.read_all([(0, 4096)])
    connection.volume.waiting = 1
    for _ in range(10):
        host.clock.forward(3)
        host.starts.look()
    assert not is_bare(connection)
    connection.volume.waiting = 0
    host.clock.forward(5)
    host.starts.look()
    assert host.newest.end == End.QUIET


def test_long(host: Host) -> None:
    connection = host.connect()
    for second in range(60):
        connection.read_all([(second * 4096, 4096)])
        host.starts.look()
        assert not is_bare(connection)
        host.clock.forward(1)
    host.starts.look()
    assert (is_bare(connection), host.newest.end) == (True, End.LONG)


def test_full(tmp_path: Path) -> None:
    host = Host(tmp_path, Limits(look_s=3600, records=20))
    connection = host.connect()
    connection.read_all(MOUNT[:19])
    host.starts.look()
    assert not is_bare(connection)
    connection.read_all(MOUNT[19:] * 2)
    host.starts.look()
    assert (is_bare(connection), host.newest.end) == (True, End.FULL)
    assert ranges(stored(host.files[0])) == MOUNT[:20]
    host.starts.close()


def test_a_thread_looks_while_a_trace_runs_and_no_longer(tmp_path: Path) -> None:
    host = Host(tmp_path, Limits(look_s=0.001))

    def looking() -> bool:
        return any(each.name == "traces" for each in threading.enumerate())

    connection = host.connect()
    assert not looking()
    for _ in range(3):
        connection.read_all([(0, 4096)])
        assert looking()
        host.clock.forward(5)
        until(lambda: not looking())
        assert host.newest.end == End.QUIET
        host.starts.leave(connection)
        connection = host.connect()
    host.starts.close()


def test_ready(host: Host) -> None:
    assert host.starts.ready(EXPORT, "default") is None
    connection = host.connect()
    assert host.starts.ready(EXPORT, "default") is None
    connection.read_all([(0, 4096)])
    host.clock.forward(1.5)
    assert host.starts.ready(EXPORT, "migrate") is None
    assert host.starts.ready(EXPORT, "default") == host.files[0]
    assert (host.newest.end, host.newest.ready_ms, is_bare(connection)) == (End.READY, 1500, True)
    assert host.starts.ready(EXPORT, "default") is None


def test_ready_after_a_trace_was_quiet(host: Host) -> None:
    connection = host.connect()
    connection.read_all([(0, 4096)])
    host.clock.forward(6)
    host.starts.look()
    host.clock.forward(3)
    assert host.starts.ready(EXPORT, "default") == host.files[0]
    assert (host.newest.end, host.newest.ready_ms) == (End.QUIET, 9000)
    assert host.starts.ready(EXPORT, "default") is None
    host.starts.leave(connection)
    assert host.run(MOUNT).end == End.CLOSED
    assert host.starts.ready(EXPORT, "default") is None, "what was closed did not become ready"


def test_what_is_said_to_be_a_start_is_evidence(host: Host) -> None:
    host.starts.expect(EXPORT, "default", exact=True, start=True)
    assert host.run([(0, 1)], "migrate").flags == DECLARED, "another label"
    host.starts.leave(host.connect())  # who looks does not take it
    assert host.run([(0, 1)]).flags == NEW | EXACT | DECLARED
    assert host.run([(0, 1)]).flags == 0, "once is enough"
    host.starts.expect(EXPORT, "default", exact=False, start=True)
    host.clock.forward(29)
    assert host.run([(0, 1)]).flags == NEW | DECLARED
    host.starts.expect(EXPORT, "default", exact=False, start=True)
    host.clock.forward(30)
    assert host.run([(0, 1)]).flags == 0, "too late"
    assert [head.flags for head, _ in host.evidence] == [NEW | EXACT | DECLARED, NEW | DECLARED]
    assert host.starts.status()["learnable"] == 2


def test_what_nobody_said_is_a_start_teaches_nobody(host: Host) -> None:
    host.starts.expect(EXPORT, "default", exact=False, start=False)
    assert host.run(MOUNT).flags == NEW
    host.starts.expect(EXPORT, "migrate", exact=False, start=False)
    assert host.run(MOUNT, "migrate").flags == NEW, "who attaches says it, whatever the label"
    host.clock.forward(61)
    assert host.run(MOUNT).flags == NEW, "a bare client"
    assert host.evidence == []


def test_a_label_says_that_it_is_a_start(host: Host) -> None:
    assert host.run(COPY, "migrate").flags == DECLARED
    host.clock.forward(61)
    assert host.run(MOUNT, "migrate").flags == NEW | DECLARED
    assert [path for _, path in host.evidence] == [Path(str(host.starts.traces()[0]["path"]))]
    host.clock.forward(59)
    assert host.run(MOUNT, "other").flags == DECLARED, "its pages may be in the kernel's cache"
    other = EXPORT.replace("sha256:", "sha256:00")[: len(EXPORT)]
    assert host.run(MOUNT, "migrate", name=other).flags == NEW | DECLARED, "another version"
    host.clock.forward(61)
    assert host.run(MOUNT, "migrate").flags == NEW | DECLARED


@pytest.mark.parametrize("is_expected", [True, False])
def test_a_client_of_another_host_teaches_nobody(host: Host, is_expected: bool) -> None:
    if is_expected:
        host.starts.expect(EXPORT, "migrate", exact=False, start=True)
    connection = host.connect("migrate", is_local=False)
    connection.read_all(MOUNT)
    host.starts.leave(connection)
    assert host.newest.flags == NEW
    host.clock.forward(61)
    own, foreign = host.connect("migrate"), host.connect("migrate", is_local=False)
    own.read_all(MOUNT)
    foreign.read_all([(1 << 30, 4096)])
    host.starts.leave(foreign)
    host.starts.leave(own)
    assert host.newest.flags == NEW, "nor does it add anything to what one of this host teaches"
    assert host.evidence == []


def test_a_start_that_failed_teaches_nobody(host: Host) -> None:
    host.starts.expect(EXPORT, "default", exact=False, start=True)
    head = host.run(MOUNT, failed=True)
    assert (head.end, head.flags, head.ready_ms) == (End.FAILED, NEW | DECLARED, 0)
    assert host.evidence == []
    connection = host.connect()
    connection.read_all([(0, 4096)])
    host.clock.forward(6)
    host.starts.look()
    assert host.newest.end == End.QUIET
    assert host.starts.ready(EXPORT, "default", failed=True) == host.files[-1]
    assert (host.newest.end, host.newest.ready_ms) == (End.FAILED, 0)
    assert host.starts.ready(EXPORT, "default") is None, "it did"
    host.starts.leave(connection)


def test_another_trace_that_ends_meanwhile_counts_too(host: Host) -> None:
    one, two = host.connect(), host.connect("migrate")
    one.read_all(MOUNT)
    two.read_all(MOUNT)
    host.clock.forward(1)
    host.starts.leave(one)
    assert host.newest.flags == NEW
    host.starts.leave(two)
    assert host.newest.flags == DECLARED


def test_a_server_that_stops_gives_no_evidence(host: Host) -> None:
    host.starts.expect(EXPORT, "default", exact=True, start=True)
    connection = host.connect()
    connection.read_all(MOUNT)
    assert stored(host.files[0]).head.flags == EXACT, "not as long as it runs"
    host.starts.close()
    assert (host.newest.end, host.newest.flags, is_bare(connection)) == (End.OPEN, EXACT | DECLARED, True)
    assert host.evidence == []
    assert ranges(stored(host.files[0])) == MOUNT


def test_the_profile_is_what_the_start_had_in_the_end(host: Host) -> None:
    connection = host.connect()
    connection.read_all(MOUNT)
    connection.start.profile = 7
    host.starts.leave(connection)
    assert host.newest.profile == 7


def test_a_folder_that_cannot_be_written(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.folder.write_text("in the way")
    for _ in range(2):
        connection = host.connect()
        connection.read_all(MOUNT)
        assert is_bare(connection)
        host.starts.leave(connection)
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    os.unlink(host.folder)
    host.run(MOUNT, "migrate")
    assert host.starts.status() == {"running": 0, "begun": 1, "ended": 1, "learnable": 1, "failed": 2}


def test_the_oldest_traces_go(tmp_path: Path) -> None:
    host = Host(tmp_path, Limits(look_s=0.001, files=3))
    for number in range(5):
        (tmp_path / f"{number:016d}-0.trace").write_bytes(b"")
    connection = host.connect()
    connection.read_all(MOUNT)
    until(lambda: len(host.files) == 3)
    assert sorted(path.name[:16] for path in host.files)[:2] == [f"{3:016d}", f"{4:016d}"]
    host.starts.close()


def test_many_threads_begin_one_trace(host: Host) -> None:
    for _ in range(20):
        volume = StandingVolume()
        connections = [host.connect(volume=volume) for _ in range(4)]
        start = threading.Barrier(8)

        def read(connection: Connection, number: int, start: threading.Barrier = start) -> None:
            start.wait()
            connection.read_all([(number, 1), (100 + number, 1)])

        threads = [threading.Thread(target=read, args=(connections[n % 4], n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for connection in connections:
            host.starts.leave(connection)
        newest = stored(Path(str(host.starts.traces()[0]["path"])))
        assert sorted(newest.reads["offset"].tolist()) == [*range(8), *range(100, 108)]
    assert host.starts.status()["begun"] == 20
