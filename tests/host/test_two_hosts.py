"""What one host commits, another runs at once: two hosts with caches, states and servers of their own, and one store."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.format import keys
from tests.host.conftest import Host
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.root


@pytest.fixture
def hosts(mounting: Host, tmp_path: Path, need: Callable[..., None]) -> Iterator[tuple[Host, Host]]:
    need("runc")
    (tmp_path / "other").mkdir()
    other = Host(tmp_path / "other")
    other.store = mounting.store
    other.environment["BLOCKMAP_STORE"] = str(mounting.store)
    mounting.serve()
    other.serve()
    try:
        yield mounting, other
    finally:
        other.end()


def test_a_container_that_was_changed_and_committed_starts_on_another_host(hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    assert there.do("run", "app:1", "--", "cat", "/etc/version") == "1", "it knows the name, as it was"
    here.do("clone", "app:1", "web")
    for number in range(2, 4):
        here.do("run", "--clone", "web", "--", "sh", "-c", f"echo changed {number} >/etc/version; rm -f /data/content")
        done = json.loads(here.do("commit", "web", "app:1", "--json"))
        assert done["entry"] == number
        moved = (here.store / keys.entry("app", "1", number)).stat().st_mtime
        process = there.start("run", "app:1", "--", "sh", "-c", "cat /etc/version; ls /data")
        assert process.stdout is not None
        assert process.stdout.readline() == f"changed {number}\n"
        seconds = time.time() - moved
        print(f"from the name's move to the first output on the other host: {seconds:.3f} s")
        assert process.communicate(timeout=LIMIT_S) == ("", "")
        # A second on a quiet machine; what is asked for here is that nothing waits for a listing or a time to pass.
        assert seconds < 10
    (row,) = json.loads(there.do("log", "app:1", "-n", "1", "--json"))
    assert row["parents"], "a commit has its base as its parent"
    assert (here.leftovers(), there.leftovers()) == ([], [])
