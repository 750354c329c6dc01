"""Clones of a real server become versions, while they are written to, and whatever happens to server and store."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.control.clone_messages import Capture, MakeClone
from blockmap.format import BLOCK
from blockmap.format.refs import parse_reference
from blockmap.store.names import NameReader
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from tests.serve.conftest import BLOCKMAP, Server, bare_server, content
from tests.serve.nbd import Nbd, RefusedError
from tests.waiting import until

SIZE = 8 << 20
DISK = content("disk", 4 << 20) + bytes(4 << 20)


@pytest.fixture
def server(tmp_path: Path, need: Callable[..., None]) -> Iterator[Server]:
    """A server with disk:1 and a clone of it, c."""
    need("nbdkit")
    with bare_server(tmp_path) as made:
        (made.where / "disk.raw").write_bytes(DISK)
        made.run("import", made.where / "disk.raw", "disk:1", "--quiet")
        made.start()
        made.client.ask(MakeClone("disk:1", "c"))
        yield made


def stored(server: Server, name: str) -> bytes:
    repository, _ = server.volume(name)
    return stored_reader(repository, find_version(repository, parse_reference(name)).root)(0, SIZE)


def commit(server: Server, name: str, *options: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(server.run("commit", "c", name, "--json", *options).stdout)
    return found


def test_a_commit_is_seen_by_others_and_the_clone_goes_on(server: Server) -> None:
    expected = bytearray(DISK)
    with Nbd(server.socket, "c") as client:
        for round_ in range(4):
            data = content(f"round {round_}", 3 * BLOCK)
            client.write(round_ * 10 * BLOCK, data)
            expected[round_ * 10 * BLOCK :][:0] = b""
            expected[round_ * 10 * BLOCK : round_ * 10 * BLOCK + len(data)] = data
            done = commit(server, "disk:1", "-m", f"round {round_}")
            assert done["entry"] == round_ + 2
            assert stored(server, "disk:1") == expected
            assert client.read(0, SIZE // 2) == expected[: SIZE // 2], "read through the new version"
            with Nbd(server.socket, "disk:1") as other:
                assert other.read(0, SIZE // 2) == expected[: SIZE // 2]
    said = server.run("log", "disk:1").stdout
    assert "round 3" in said
    (row,) = json.loads(server.run("clones", "--json").stdout)
    assert row["written_bytes"] == 0, "what is published is no layer any more"
    assert len(list((server.where / "state" / "layers").iterdir())) == 1


def test_a_moment_is_one_while_clients_write(server: Server) -> None:
    """A counter goes to two places in lockstep: no version shows the later without the earlier."""
    ended = threading.Event()

    def count() -> None:
        with Nbd(server.socket, "c") as client:
            number = 0
            while not ended.is_set():
                number += 1
                client.write(5 << 20, number.to_bytes(8, "little") * 512)
                client.write(6 << 20, number.to_bytes(8, "little") * 512)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        seen = []
        for number in range(5):
            commit(server, f"moment:{number}")
            data = stored(server, f"moment:{number}")
            first, second = data[5 << 20 :][:BLOCK], data[6 << 20 :][:BLOCK]
            one, two = (int.from_bytes(each[:8], "little") for each in (first, second))
            assert first == one.to_bytes(8, "little") * 512
            assert one - 1 <= two <= one
            seen.append(one)
        assert seen == sorted(seen)
        assert seen[-1] > seen[0]
    finally:
        ended.set()
        thread.join()


def test_what_is_captured_survives_the_server_and_a_store_that_is_away(server: Server) -> None:
    with Nbd(server.socket, "c") as client:
        client.write(0, b"captured" * 512)
        away = server.store.rename(server.where / "away")
        done = commit(server, "disk:1", "--wait", "local")
        assert "capture" in done
        client.write(0, b"later..." * 512)
        until(lambda: "not published yet" in server.said())
        os.kill(server.nbdkit(), 9)
    assert json.loads(server.run("clones", "--json").stdout)[0]["unpublished"] == 1
    refused = server.run("rm", "c", check=False)
    assert refused.returncode == 1
    assert "not published yet" in refused.stderr
    away.rename(server.store)
    server.wait_ready()
    until(lambda: unpublished(server) == 0, lambda: server.run("clones", "--json").stdout + server.said())
    assert stored(server, "disk:1") == b"captured" * 512 + DISK[BLOCK:]
    with Nbd(server.socket, "c") as client:
        assert client.read(0, BLOCK) == b"later..." * 512
        assert client.read(BLOCK, BLOCK) == DISK[BLOCK : 2 * BLOCK]


def test_a_name_that_moved_on_waits_for_a_decision(server: Server) -> None:
    with Nbd(server.socket, "c") as client:
        client.write(0, b"mine" * 1024)
        server.run("import", server.where / "disk.raw", "other:1", "--quiet")
        (server.where / "disk.raw").write_bytes(content("another", SIZE))
        server.run("import", server.where / "disk.raw", "disk:1", "--quiet")
        failed = server.run("commit", "c", "disk:1", check=False)
        assert failed.returncode == 1
        assert "has moved on" in failed.stderr
        assert "--retry" in failed.stderr
        client.write(BLOCK, b"more" * 1024)
        assert json.loads(server.run("clones", "--json").stdout)[0]["unpublished"] == 1
        assert "waits" in server.run("clones").stdout
        server.run("commit", "c", "mine:1", "--retry")
        assert stored(server, "mine:1") == b"mine" * 1024 + DISK[BLOCK:]
        assert commit(server, "mine:2")["entry"] == 1
        assert stored(server, "mine:2") == b"mine" * 1024 + b"more" * 1024 + DISK[2 * BLOCK :]
        failed = server.run("commit", "c", "disk:1", check=False)
        assert failed.returncode == 1
        server.run("commit", "c", "--drop")
        assert "done" if commit(server, "disk:1", "--force")["entry"] == 3 else ""


def test_a_moment_without_changes_is_captured_only_where_it_is_asked_for(server: Server) -> None:
    def capture() -> int:
        return server.client.ask(Capture("c", "every:1", skip_unchanged=True)).capture

    with Nbd(server.socket, "c") as client:
        assert capture() == 0
        client.write(1024, b"freezing and thawing writes that")
        assert capture() == 0
        client.write(BLOCK, b"new")
        server.run("fork", "c", "d")  # what was written before lies in a layer that both have
        assert capture() > 0
        assert capture() == 0, "also while the one before is being published"
        until(lambda: json.loads(server.run("clones", "--json").stdout)[0]["unpublished"] == 0)
        assert capture() == 0
        client.write(BLOCK, b"newer")
        assert capture() > 0
    until(lambda: json.loads(server.run("clones", "--json").stdout)[0]["unpublished"] == 0)
    assert [row["entry"] for row in json.loads(server.run("log", "every:1", "--json").stdout)] == [2, 1]
    assert commit(server, "every:1")["entry"] == 3
    server.run("rm", "d")


def test_what_is_committed_is_signed_with_the_servers_key(server: Server) -> None:
    server.run("key", "create", server.where / "key")
    server.stop()
    server.start("--sign", str(server.where / "key"))
    with Nbd(server.socket, "c") as client:
        client.write(0, b"mine" * 1024)
    commit(server, "signed:1")
    server.stop()
    server.start("--trust", str(server.where / "key.pub"))
    with Nbd(server.socket, "signed:1") as client:
        assert client.read(0, BLOCK) == b"mine" * 1024
    with pytest.raises(RefusedError):
        Nbd(server.socket, "disk:1")


def test_a_fork_is_of_one_moment_and_each_goes_its_own_way(server: Server) -> None:
    with Nbd(server.socket, "c") as client:
        client.write(0, b"one " * 1024)
        server.run("fork", "c", "d", "-n", "3")
        client.write(0, b"two " * 1024)
        with Nbd(server.socket, "d-2") as fork:
            assert fork.read(0, SIZE // 2) == b"one " * 1024 + DISK[BLOCK : SIZE // 2]
            fork.write(BLOCK, b"mine" * 1024)
        with Nbd(server.socket, "d-3") as fork:
            assert fork.read(0, 2 * BLOCK) == b"one " * 1024 + DISK[BLOCK : 2 * BLOCK]
        assert client.read(0, 2 * BLOCK) == b"two " * 1024 + DISK[BLOCK : 2 * BLOCK]
    server.run("fork", "d-2", "e")
    server.run("rm", "d-2", "d-1")
    with Nbd(server.socket, "e") as fork:
        assert fork.read(0, 2 * BLOCK) == b"one " * 1024 + b"mine" * 1024, "what is shared stays for whom it is left"
    assert json.loads(server.run("commit", "d-3", "forked:1", "--json").stdout)["entry"] == 1
    assert stored(server, "forked:1") == b"one " * 1024 + DISK[BLOCK:]
    taken = server.run("fork", "c", "e", check=False)
    assert taken.returncode == 1
    assert "there is a clone e already" in taken.stderr
    assert sorted(row["name"] for row in json.loads(server.run("clones", "--json").stdout)) == ["c", "d-3", "e"]
    server.run("rm", "c", "d-3", "e")
    assert list((server.where / "state" / "layers").iterdir()) == []
    assert list((server.store / "pins").rglob("clone-*")) == []


def test_a_clone_is_put_back_on_a_version(server: Server) -> None:
    with Nbd(server.socket, "c") as client:
        client.write(0, b"one " * 1024)
        commit(server, "disk:1")
        client.write(0, b"two " * 1024)
        used = server.run("rewind", "c", "disk:1@{1}", check=False)
        assert used.returncode == 1
        assert "in use" in used.stderr
    for past, found in (("disk:1", b"one " * 1024), ("disk:1@{1}", DISK[:BLOCK])):
        server.run("rewind", "c", past)
        with Nbd(server.socket, "c") as client:
            assert client.read(0, BLOCK) == found
            client.write(0, b"lost" * 1024)
    (pin,) = (server.store / "pins").rglob("clone-*")
    (row,) = json.loads(server.run("clones", "--json").stdout)
    assert pin.parent.name == row["base"].partition("@sha256:")[2]
    for wrong, said in (("none:1", "no image"), ("c", "is a clone")):
        done = server.run("rewind", "c", wrong, check=False)
        assert done.returncode != 0
        assert said in done.stderr


def test_mistakes_are_explained_and_change_nothing(server: Server) -> None:
    for arguments, said in (
        (("c",), "no NAME"),
        (("none", "x:1"), "is no clone"),
        (("disk:1", "x:1"), "is no clone"),
        (("c", "X:1"), "is not the name of a repository"),
        (("c", "x:1", "--change", "RUN x"), "cannot be changed"),
        (("c", "x:1", "--change", "USER me"), "no configuration"),
        (("c", "--retry"), "say how"),
    ):
        done = server.run("commit", *arguments, check=False)
        assert done.returncode != 0
        assert said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    server.run("commit", "c", "--drop")
    assert [row["unpublished"] for row in json.loads(server.run("clones", "--json").stdout)] == [0]


def collect(server: Server) -> None:
    """Deletes all that nothing needs now."""
    for _ in range(2):
        server.run("gc", "--keep", "0s", "--grace", "0s")


def test_a_clone_reads_on_when_its_version_has_no_name_any_more(server: Server) -> None:
    """Nothing of it was read before, neither by this server nor by the next."""
    with Nbd(server.socket, "c") as client:
        client.write(0, b"mine" * 1024)
        for each in ("second", "third"):
            (server.where / "disk.raw").write_bytes(content(each, SIZE))
            server.run("import", server.where / "disk.raw", "disk:1", "--quiet")
        collect(server)
        assert server.run("show", "disk:1@{2}", check=False).returncode != 0, "nobody has it"
        assert client.read(0, SIZE) == b"mine" * 1024 + DISK[BLOCK:]
    server.stop()
    shutil.rmtree(server.cache)
    server.start()
    with Nbd(server.socket, "c") as client:
        assert client.read(0, SIZE) == b"mine" * 1024 + DISK[BLOCK:]
    commit(server, "mine:1")
    server.run("rm", "c")
    collect(server)
    assert stored(server, "mine:1") == b"mine" * 1024 + DISK[BLOCK:]


def test_a_server_that_is_killed_under_who_commits_loses_nothing(server: Server) -> None:
    """What was written and captured is there; each capture becomes one version, whatever its committer was told."""
    ended, written = threading.Event(), [0]

    def write() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError, RefusedError), Nbd(server.socket, "c") as client:
                while not ended.is_set():
                    client.write(0, (written[0] + 1).to_bytes(8, "little") * (BLOCK // 8))
                    client.flush()
                    written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        until(lambda: written[0] > 0)
        told = [str(number) for number in range(4) if committed_under_a_kill(server, str(number))]
        until(lambda: unpublished(server) == 0, lambda: server.run("clones", "--json").stdout + server.said())
    finally:
        ended.set()
        thread.join()
    last = commit(server, "disk:1", "-m", "last")
    repository, _ = server.volume("disk:1")
    names = NameReader(repository.store)
    history = list(names.history("disk", "1"))
    messages = [entry.message for entry in history]
    assert len(messages) == len(set(messages)) == last["entry"]
    assert set(told) <= set(messages)
    seen = [stored(server, f"disk:1@{{{entry.n}}}")[:8] for entry in reversed(history)][1:]
    counted = [int.from_bytes(each, "little") for each in seen]
    assert counted == sorted(counted)
    assert written[0] <= counted[-1] <= written[0] + 1


def committed_under_a_kill(server: Server, message: str) -> bool:
    """Kills the server as soon as something is captured; returns True if the committer was told that it is published."""
    process = subprocess.Popen(
        [*BLOCKMAP, "commit", "c", "disk:1", "-m", message], env=server.environment, stderr=subprocess.DEVNULL
    )
    until(lambda: process.poll() is not None or unpublished(server) > 0)
    os.kill(server.nbdkit(), 9)
    process.wait()
    server.wait_ready()
    return process.returncode == 0


def unpublished(server: Server) -> int:
    return int(json.loads(server.run("clones", "--json").stdout)[0]["unpublished"])


def fill(path: Path) -> None:
    """Writes a file until the disk is full."""
    with pytest.raises(OSError, match="No space left"):
        path.write_bytes(bytes(64 << 20))


@pytest.mark.root
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_store_that_takes_no_more_gets_it_later(
    tmp_path: Path, need: Callable[..., None], need_root: None, trouble: str
) -> None:
    need("nbdkit")
    (tmp_path / "disk.raw").write_bytes(DISK)
    store = tmp_path / "store"
    store.mkdir()
    with contextlib.ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(store)], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(store)], check=True)
        server = stack.enter_context(bare_server(tmp_path))
        server.run("import", tmp_path / "disk.raw", "disk:1", "--quiet")
        server.start()
        server.client.ask(MakeClone("disk:1", "c"))
        before = sorted(path for path in store.rglob("*") if path.is_file())
        with Nbd(server.socket, "c") as client:
            client.write(0, content("first", 1 << 20))
            if trouble == "full":
                fill(store / ".tmp-filler")
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
            commit(server, "disk:1", "--wait", "local")
            until(lambda: "not published yet" in server.said(), server.said)
            client.write(BLOCK, content("second", BLOCK))
            commit(server, "disk:1", "--wait", "local")
            left = sorted(path for path in store.rglob("*") if path.is_file() and path.name != ".tmp-filler")
            assert left == before, "an attempt takes back what it stored"
            if trouble == "full":
                (store / ".tmp-filler").unlink()
            else:
                subprocess.run(["mount", "-o", "remount,rw", str(store)], check=True)
            assert commit(server, "disk:1")["entry"] == 4
            moment = bytearray(DISK)
            moment[: 1 << 20] = content("first", 1 << 20)
            assert stored(server, "disk:1@{2}") == moment
            moment[BLOCK : 2 * BLOCK] = content("second", BLOCK)
            assert stored(server, "disk:1@{3}") == moment
            assert client.read(0, 2 << 20) == moment[: 2 << 20]


@pytest.mark.root
def test_a_mounted_clone_is_frozen_for_a_moment(tmp_path: Path, need: Callable[..., None], images: Path) -> None:
    """Two files get a counter in lockstep, each synced; the committed file system is clean, and shows one moment."""
    need("nbdkit", "nbdfuse", "losetup", "e2fsck")
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    with bare_server(tmp_path) as server:
        server.run("import", f"oci:{images}/1:1", "small:1", "--platform", "linux/amd64")
        server.start()
        server.client.ask(MakeClone("small:1", "c"))
        mounted = tmp_path / "mnt"
        mounted.mkdir()
        server.run("attach", "c", mounted)
        ended = threading.Event()
        try:

            def count() -> None:
                number = 0
                files = [os.open(mounted / name, os.O_RDWR | os.O_CREAT) for name in ("one", "two")]
                while not ended.is_set():
                    number += 1
                    for fd in files:
                        os.pwrite(fd, f"{number:20}".encode(), 0)
                        os.fsync(fd)
                for fd in files:
                    os.close(fd)

            thread = threading.Thread(target=count)
            thread.start()
            try:
                until(lambda: (mounted / "two").exists())
                done = json.loads(server.run("commit", "c", "moment:1", "--json").stdout)
            finally:
                ended.set()
                thread.join()
            assert 0 < done["stall_seconds"] < 5
        finally:
            server.run("detach", mounted)
        raw = tmp_path / "raw"
        subprocess.run(["nbdcopy", server.uri("moment:1"), str(raw)], check=True)
        checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
        found = []
        for name in ("one", "two"):
            out = subprocess.run(["debugfs", "-R", f"cat /{name}", raw], capture_output=True, text=True, check=True)
            found.append(int(out.stdout or "0"))
        assert found[0] - 1 <= found[1] <= found[0]


def test_one_process_publishes_all_and_is_replaced_when_it_ends(server: Server) -> None:
    def publisher() -> int:
        found = [
            int(each.parent.name)
            for each in Path("/proc").glob("[0-9]*/cmdline")
            if b"blockmap.commit.publisher" in (line := each.read_bytes()) and os.fsencode(server.where) in line
        ]
        assert len(found) == 1
        return found[0]

    with Nbd(server.socket, "c") as client:
        first = publisher()
        for number in range(2):
            client.write(number * BLOCK, content(f"{number}", BLOCK))
            commit(server, "disk:1")
        assert publisher() == first
        os.kill(first, 9)
        client.write(2 * BLOCK, content("2", BLOCK))
        assert commit(server, "disk:1")["entry"] == 4
        assert publisher() != first
    assert stored(server, "disk:1")[: 3 * BLOCK] == b"".join(content(f"{number}", BLOCK) for number in range(3))
