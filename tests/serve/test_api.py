"""The Python API, with a real server and real clients, as scripts use it; what needs root is in tests/host."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import blockmap
from blockmap.api.clones import Commit
from blockmap.api.store import ImageStore
from blockmap.errors import AlreadyExists, HostError, NameMoved, NotFound, UsageError
from blockmap.format import BLOCK
from tests.serve.conftest import Server, bare_server, content
from tests.serve.nbd import Nbd

DISK = content("disk", 1 << 20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Iterator[Server]:
    """A server with disk:1."""
    need("nbdkit")
    with bare_server(tmp_path_factory.mktemp("api")) as made:
        (made.where / "disk.raw").write_bytes(DISK)
        made.run("import", made.where / "disk.raw", "disk:1", "--quiet")
        made.start()
        yield made


@pytest.fixture
def images(server: Server) -> Iterator[ImageStore]:
    opened = blockmap.open(str(server.store), cache=server.cache, socket=server.socket, state=server.where / "state")
    yield opened
    for each in opened.clones():
        opened.drop(each.name)
        opened.rm(each.name)


def write(server: Server, clone: str, block: int, text: bytes) -> None:
    with Nbd(server.socket, clone) as client:
        client.write(block * BLOCK, text * (BLOCK // len(text)))


def test_a_sandbox_is_made_committed_forked_and_put_back(server: Server, images: ImageStore) -> None:
    images.clone("disk:1", "box", size=2 << 20)
    (box,) = images.clones()
    assert (box.name, box.origin, box.size, box.written_bytes, box.unpublished) == ("box", "disk:1", 2 << 20, 0, 0)
    write(server, "box", 0, b"one.")
    first = images.commit("box", "team/app:1", message="first", author="me")
    write(server, "box", 3, b"two.")
    images.fork("box", ["try-1", "try-2"])
    second = images.commit("box", "team/app:1", message="second")
    assert (first.entry, second.entry) == (1, 2)
    assert second.seconds > 0
    newest, oldest = images.log("team/app:1")
    assert (newest.number, newest.message, oldest.author, oldest.name) == (2, "second", "me", "team/app:1")
    assert newest.parents == (oldest.digest,)
    assert second.export == f"team/app@{newest.digest}"
    assert images.diff("team/app:1@{1}", "team/app:1").ranges == [(3 * BLOCK, BLOCK)]
    with Nbd(server.socket, "try-2") as client:
        assert client.read(3 * BLOCK, 4) == b"two."
    assert images.rewind("try-2", "team/app:1@{1}") == first.export
    with Nbd(server.socket, "try-2") as client:
        assert client.read(0, 4) == b"one."
        assert client.read(3 * BLOCK, BLOCK) == DISK[3 * BLOCK : 4 * BLOCK]
    assert images.tag("team/app:1@{1}", "team/app:stable").entry == 1
    assert images.tag("team/app:1@{1}", "team/app:stable").entry is None
    assert {each.name for each in images.images()} == {"disk:1", "team/app:1", "team/app:stable"}
    graph = images.graph(["team/app:1"])
    assert [each.names or each.past_names for each in graph] == [["team/app:1"], ["team/app:1@{1}"], []]
    assert graph[2].parents == ()
    assert images.untag("team/app:stable").entry == 2
    assert [each.digest is None for each in images.log("team/app:stable")] == [True, False]


def test_errors_are_the_packages_own_and_nothing_has_changed(server: Server, images: ImageStore) -> None:
    images.clone("disk:1", "box")
    for wrong, error in (
        (lambda: images.clone("disk:1", "box"), AlreadyExists),
        (lambda: images.clone("disk:9", "other"), NotFound),
        (lambda: images.clone("disk:1", "O/ther"), UsageError),
        (lambda: images.rm("none"), NotFound),
        (lambda: images.fork("none", ["a"]), UsageError),
        (lambda: images.fork("box", ["a", "box"]), AlreadyExists),
        (lambda: images.rewind("box", "none:1"), NotFound),
        (lambda: images.commit("box", "X"), UsageError),
        (lambda: images.commit("none", "x:1"), UsageError),
        (lambda: images.retry("box"), UsageError),
        (lambda: images.diff("disk:1", "none:1"), NotFound),
        (lambda: images.tag("none:1", "x:1"), NotFound),
        (lambda: images.untag("none:1"), NotFound),
        (lambda: list(images.log("none:1")), NotFound),
        (lambda: images.graph(["none:1"]), NotFound),
        (lambda: images.detach(server.where), (UsageError, HostError)),
    ):
        with pytest.raises(error):
            wrong()
    assert [each.name for each in images.clones()] == ["box"]
    assert images.retry("box", "x:1") is None
    assert images.drop("box") == 0
    with pytest.raises(UsageError, match="no store is given"):
        blockmap.open(None, socket=server.where / "nowhere").clone("disk:1", "x")
    with pytest.raises(UsageError, match="no store is given"):
        blockmap.open(None).images()


def test_a_name_that_moved_waits_for_the_script_to_decide(server: Server, images: ImageStore) -> None:
    images.tag("disk:1", "live:1")
    images.clone("live:1", "box")
    images.clone("live:1", "other")
    write(server, "other", 0, b"else")
    assert images.commit("other", "live:1").entry == 2
    write(server, "box", 0, b"mine")
    with pytest.raises(NameMoved, match="has moved on"):
        images.commit("box", "live:1")
    box = next(each for each in images.clones() if each.name == "box")
    assert (box.unpublished, box.has_origin_moved, "moved on" in box.conflict) == (1, True, True)
    settled = images.retry("box", "live:mine")
    assert settled is not None
    assert settled.entry == 1


def test_committers_at_one_clone_go_one_after_the_other(server: Server, images: ImageStore) -> None:
    images.clone("disk:1", "box")
    done: list[Commit] = []

    def commit(number: int) -> None:
        write(server, "box", number, b"%04d" % number)
        done.append(images.commit("box", "many:1", message=str(number)))

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.entry for each in done) == [1, 2, 3, 4]
    entries = list(images.log("many:1"))
    assert {entry.message for entry in entries} == set("0123")
    chain = [entry.digest for entry in entries]
    assert [entry.parents[0] for entry in entries[:-1]] == chain[1:]
    with Nbd(server.socket, "many:1") as client:
        assert all(client.read(number * BLOCK, 4) == b"%04d" % number for number in range(4))


def test_importing_it_costs_the_commands_nothing() -> None:
    def loaded(code: str) -> set[str]:
        command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert not {each for each in loaded("import blockmap") if each.startswith("blockmap.")}
    heavy = {"obstore", "numpy", "sortedcontainers", "rich", "click", "cryptography"}
    assert not heavy & loaded("from blockmap.api.host import Host")
    assert "obstore" not in loaded("from blockmap.api.clones import CloneHost")
    with pytest.raises(AttributeError, match="no attribute 'opened'"):
        blockmap.opened  # noqa: B018
