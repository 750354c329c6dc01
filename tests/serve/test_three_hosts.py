"""Three hosts that commit to one name, while garbage is collected: no update is lost, and the history is one line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockmap.format import BLOCK
from blockmap.format.refs import parse_reference
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from tests.conftest import CHECKOUT
from tests.faults.links import netshape
from tests.serve.conftest import Server, content
from tests.store import servers

HOSTS = ("one", "two", "three")
DISK = bytes(8 * BLOCK) + content("disk", 1 << 20)


def start(url: str, who: str, block: int, moves: int, where: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.serve.committer", url, "disk:1", who, str(block), str(moves)]
    with open(where / f"{who}.err", "w") as err:
        return subprocess.Popen(
            [*command, str(where / who)], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=err, text=True
        )


def insisted(host: Server, *arguments: str) -> None:
    """Runs a command, again where the link broke."""
    for _ in range(3):
        done = host.run(*arguments, check=False)
        if done.returncode == 0:
            return
        print(done.stderr)
    host.run(*arguments)


def race(url: str, where: Path, moves: int, keep: str, grace: str) -> dict[str, float]:
    """Lets each host commit `moves` times to disk:1; checks what became of it."""
    made = Server(where / "maker", url)
    (where / "disk").write_bytes(DISK)
    made.run("import", where / "disk", "disk:1", "--quiet")
    began = time.monotonic()
    processes = [start(url, who, block, moves, where) for block, who in enumerate(HOSTS)]
    try:
        collections = deleted = 0
        while any(process.poll() is None for process in processes):
            done = made.run("gc", "--keep", keep, "--grace", grace, "--json", check=False)
            if done.returncode == 0:
                said = json.loads(done.stdout)
                deleted += said.get("deleted_objects", 0)
                collections += "deleted_objects" in said
            else:
                print(done.stderr)
        said = [process.communicate()[0] for process in processes]
        for who, process in zip(HOSTS, processes, strict=True):
            assert process.returncode == 0, (where / f"{who}.err").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    seconds = time.monotonic() - began
    found = [json.loads(each) for each in said]
    store = open_store(url)[0]
    entries = {entry.n: entry for entry in NameReader(store).history("disk", "1") if not entry.is_fence}
    line = sorted((*move, f"{who} {number}") for who, each in zip(HOSTS, found, strict=True)
                  for number, move in enumerate(each["made"], 1))  # fmt: skip
    assert len(line) == len(HOSTS) * moves
    assert [n for n, *_ in line] == sorted(entries)[1:], "what was made stands, and nothing else"
    first = entries[min(entries)].version
    assert first is not None
    below = f"disk@sha256:{first.hex()}"
    for n, parent, export, message in line:
        assert (parent, message) == (below, entries[n].message)
        below = export
    told = [text for each in found for text in each["told"]]
    assert all("moved" in text for text in told)
    repository = Repository(store)
    newest = find_version(repository, parse_reference("disk:1"))
    assert newest.pinned == below
    data = stored_reader(repository, newest.root)(0, len(DISK))
    assert data[len(HOSTS) * BLOCK :] == DISK[len(HOSTS) * BLOCK :]
    for block in range(len(HOSTS)):
        assert data[block * BLOCK : (block + 1) * BLOCK] == moves.to_bytes(8, "little") * (BLOCK // 8)
    for _ in range(3):
        insisted(made, "gc", "--keep", "0s", "--grace", "0s")
    insisted(made, "fsck", "--read", "--keep", "0s")
    return {
        "moves": len(line), "told": len(told), "seconds": round(seconds, 1), "collections": collections, "deleted": deleted,
        "fences": max(entries) - len(entries),
    }  # fmt: skip


def test_three_hosts_commit_to_one_name(tmp_path: Path) -> None:
    print(race(str(tmp_path / "store"), tmp_path, 5, "0s", "0s"))


@pytest.mark.long
def test_three_hosts_commit_to_one_name_a_hundred_times_each(
    seaweedfs: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a link of 20 ms that resets a request in a hundred."""
    servers.use(seaweedfs, monkeypatch)
    with netshape(seaweedfs.port, "--fail-rate", "0.01", "--fail-mode", "reset") as (port, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        found = race(seaweedfs.url(), tmp_path, 100, "10s", "4s")
    print(found)
    assert found["told"]
    assert found["collections"] > 2
