"""nbd-tester-client, the nbd project's own tests of servers, on a clone."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.control.clone_messages import MakeClone
from tests.serve.conftest import bare_server

pytestmark = pytest.mark.long

TOOL = Path(__file__).resolve().parents[2] / "tools" / "nbd-tester"
TRACES = "integrity-test.tr", "integrityhuge-test.tr"
SIZE = 256 << 20
CASES = [
    ["-o"],  # a request that is too large
    ["-w"],
    ["-w", "-f"],
    ["-h"],  # from two clients
    # Not with -l: it has overlapping requests under way at once, and wants them done in order, which no protocol promises.
    *(["-i", "-t", trace] for trace in TRACES),
]


@pytest.fixture(scope="module")
def tester() -> Path:
    """The folder with the program and its traces."""
    done = subprocess.run([TOOL], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nbd-tester-client cannot be built: {done.stderr.strip()}")
    return Path(done.stdout.strip())


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_clone_passes(case: list[str], tester: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdkit")
    with bare_server(tmp_path) as server:
        (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
        server.run("import", tmp_path / "disk.raw", "zeros:1", "--quiet")
        server.start()
        server.client.ask(MakeClone("zeros:1", "c", SIZE))
        options = [str(tester / each) if each in TRACES else each for each in case]
        command = [str(tester / "nbd-tester-client"), "-u", str(server.socket), "-N", "c", *options]
        with open(tmp_path / "said", "w+b") as said:  # tens of megabytes of progress
            status = subprocess.run(command, stdout=said, stderr=said, timeout=120, check=False).returncode
            said.seek(max(0, said.tell() - 2000))
            assert status == 0, said.read().decode(errors="replace")
