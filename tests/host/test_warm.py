"""What a start will read is in the kernel's memory before the program asks, and nothing more."""

import fcntl
import json
import os
import signal
import sqlite3
import stat
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from blockmap.control.messages import Resolve
from blockmap.host.image_file import open_beneath
from blockmap.host.warm.warm import PIECE_BYTES, WarmRange, plan
from tests.host.conftest import CONTENT, Host
from tests.host.standin import Answer, StandIn
from tests.waiting import until

BLOCK = 4096
HEAD = [0, 9, None, 0]
FILE = [[5000, 3, "data/content", 7], [5003, 100, "data/content", 10], [6000, 1, "data/content", 300]]


@pytest.fixture
def stand_in(mounting: Host) -> Iterator[Callable[..., StandIn]]:
    """Makes one in front of the host's server, which its commands then ask."""
    made: list[StandIn] = []
    mounting.serve()

    def make(**answers: Answer) -> StandIn:
        made.append(StandIn(mounting.where / f"front{len(made)}", mounting.socket, {"expect": nothing, **answers}))
        mounting.environment["BLOCKMAP_SOCKET"] = str(made[-1].socket)
        return made[-1]

    yield make
    for each in made:
        each.close()


def nothing(request: dict[str, Any]) -> dict[str, Any]:
    return {}


def readings(*ranges: list[Any]) -> Answer:
    return lambda request: {"profile": 1, "readings": list(ranges), "soon": 0}


def directory(host: Host, name: str = "mnt") -> Path:
    where = host.where / name
    where.mkdir()
    return where


def device_of(host: Host) -> tuple[Path, str]:
    """Folder and path of the one device."""
    database = sqlite3.connect(host.state / "attachments.db")
    try:
        ((folder, path),) = database.execute("SELECT directory, path FROM devices").fetchall()
    finally:
        database.close()
    return Path(folder), path


def read_ahead(device: str) -> int:
    return int(Path("/sys/block", Path(device).name, "queue/read_ahead_kb").read_text())


def is_warming(folder: Path) -> bool:
    fd = os.open(folder / "warming", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def served(host: Host) -> tuple[int, int]:
    """Reads and bytes that the server has answered."""
    sources = [source for export in host.client.status()["reads"] for source in export["sources"].values()]
    return sum(each["reads"] for each in sources), sum(each["bytes"] for each in sources)


def test_a_plan_joins_neighbours_and_keeps_the_order_of_files() -> None:
    assert plan([[9, 1, "b", 4], [50, 2, None, 0], [8, 1, "b", 3], [1, 1, "a", 0], [10, 1, "b", 6]]) == [
        WarmRange("b", 3 * BLOCK, 2 * BLOCK),
        WarmRange("b", 6 * BLOCK, BLOCK),
        WarmRange(None, 50 * BLOCK, 2 * BLOCK),
        WarmRange("a", 0, BLOCK),
    ]
    assert plan([]) == []


def test_a_plan_cuts_what_is_long_and_does_not_put_off_what_is_early() -> None:
    long = plan([[0, 100, "a", 0]])
    assert [each.offset for each in long] == [0, PIECE_BYTES, 2 * PIECE_BYTES, 3 * PIECE_BYTES]
    assert sum(each.length for each in long) == 100 * BLOCK
    late = plan([[0, 1, "a", 0], [0, 5000, "b", 0], [0, 1, "a", 1]])
    assert (late[0], late[-1]) == (WarmRange("a", 0, BLOCK), WarmRange("a", BLOCK, BLOCK))


def test_windows_grow_as_far_as_the_link_brings_what_is_in_them() -> None:
    scattered = [[0, 1, name, at] for at in range(8192) for name in ("a", "b")]
    slow, fast, all_here = plan(scattered), plan(scattered, 4096), plan(scattered, 1 << 20)
    assert sorted(where(slow)) == sorted(where(fast)) == sorted(where(all_here))
    assert len(where(slow)) == 16384
    first_windows = [next(i for i, block in enumerate(where(each)) if block == ("a", 512)) for each in (slow, fast)]
    assert first_windows == [1024, 1024], "what is needed first is not put off"
    assert [max(turns(each)) for each in (slow, fast, all_here)] == [512, 2048, 4096]


def where(pieces: list[WarmRange]) -> list[tuple[str | None, int]]:
    """Blocks, in order."""
    return [(each.path, at // BLOCK) for each in pieces for at in range(each.offset, each.offset + each.length, BLOCK)]


def turns(pieces: list[WarmRange]) -> list[int]:
    """How many blocks of one file come in one go."""
    return [len(list(group)) for _, group in groupby(where(pieces), key=lambda block: block[0])]


@pytest.mark.parametrize(
    "reading",
    [[], [1, 2, "a"], ["1", 2, None, 0], [-1, 2, None, 0], [0, 0, "a", 0], [0, -1, "a", 0], [0, 1, 7, 0],
     [0, 1, "a", None], [0, 1 << 62, "a", 0], [True, 1, None, 0]],
)  # fmt: skip
def test_a_plan_leaves_out_what_makes_no_sense(reading: list[Any]) -> None:
    assert plan([[1, 1, "good", 0], reading]) == [WarmRange("good", 0, BLOCK)]


@pytest.mark.parametrize(
    "reading",
    [[0, (1 << 32) - 1, "a", 0], [0, (1 << 32) - 1, None, 0], [0, 1 << 30, "a", (1 << 40) - (1 << 30)]],
    ids=["file", "device", "end"],
)
def test_a_plan_is_bounded_whatever_the_list_asks_for(reading: list[Any]) -> None:
    tracemalloc.start()
    found = plan([reading] * 1_000_000, 1 << 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1 << 18
    assert peak < 100_000_000
    many = plan(([0, 1, f"{at}", 0] for at in range(1_000_000)), 1 << 10)
    assert len(many) == 1 << 18


@pytest.mark.root
def test_a_list_opens_only_regular_files_of_the_image(
    mounting: Host, stand_in: Callable[..., StandIn], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "data").mkdir(parents=True)
    (tree / "data/content").write_bytes(CONTENT)
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "random", stat.S_IFCHR | 0o666, os.makedev(1, 8))
    os.mknod(tree / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 0))
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENT)
    (tree / "out").symlink_to(outside)
    (tree / "up").symlink_to("../" * 20 + str(outside)[1:])
    mounting.do("import", "--quiet", tree, "odd:1")
    paths = [
        "fifo",
        "random",
        "disk",
        "out",
        "up",
        str(outside),
        "../" * 20 + str(outside)[1:],
        "/proc/self/mem",
        "data",
        "",
    ]
    odd = [[0, 1, path, 0] for path in paths for _ in range(100)]
    stand_in(readings=readings(*odd, [0, len(CONTENT) // BLOCK, "data/content", 0]))
    where, before = directory(mounting), os.stat(outside).st_atime_ns
    mounting.do("attach", "odd:1", where)
    folder, device = device_of(mounting)
    until(lambda: not is_warming(folder))
    assert read_ahead(device) == 128
    warm = served(mounting)
    with open(where / "data/content", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100 * BLOCK, 0) == CONTENT[: 100 * BLOCK]
    assert served(mounting) == warm, "what follows the odd ones was read"
    assert os.stat(outside).st_atime_ns == before
    mounting.do("detach", where)
    assert mounting.leftovers() == []


def test_a_path_does_not_lead_out_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "root/below").mkdir(parents=True)
    (tmp_path / "root/below/file").write_text("in")
    (tmp_path / "outside").write_text("out")
    (tmp_path / "root/link").symlink_to("below/file")
    (tmp_path / "root/folder").symlink_to("below")
    (tmp_path / "root/out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "root/fifo")
    root = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    try:
        fd = open_beneath(root, "below/file")
        assert os.read(fd, 10) == b"in"
        os.close(fd)
        for path in (
            "../outside",
            str(tmp_path / "outside"),
            "link",
            "folder/file",
            "out/outside",
            "fifo",
            "below",
            "absent",
        ):
            with pytest.raises(OSError, match=r"."):
                os.close(open_beneath(root, path))
    finally:
        os.close(root)


@pytest.mark.root
def test_what_was_warmed_is_not_read_again(mounting: Host, stand_in: Callable[..., StandIn]) -> None:
    front = stand_in(readings=readings(HEAD, *FILE))
    where = directory(mounting)
    before = served(mounting)
    mounting.do("attach", "app:1", where)
    folder, device = device_of(mounting)
    until(lambda: not is_warming(folder))
    assert front.ops() == ["expect", "readings"], "what there is to follow, the server knows"
    assert read_ahead(device) == 128
    warm = served(mounting)
    asked = (9 + 104) * BLOCK
    assert warm[1] - before[1] < asked + 40 * BLOCK  # the mount and the path to the file need a few more
    Path("/sys/block", Path(device).name, "queue/read_ahead_kb").write_text("0")
    with open(where / "data/content", "rb", buffering=0) as file, open(device, "rb", buffering=0) as disk:
        for start, blocks, path, at in (HEAD, *FILE):
            if path is None:
                assert len(os.pread(disk.fileno(), blocks * BLOCK, start * BLOCK)) == blocks * BLOCK
            else:
                found = os.pread(file.fileno(), blocks * BLOCK, at * BLOCK)
                assert found == CONTENT[at * BLOCK : (at + blocks) * BLOCK]
        assert served(mounting) == warm
        os.pread(file.fileno(), BLOCK, 200 * BLOCK)  # one that no start had read
        assert served(mounting) > warm
    mounting.do("detach", where)
    assert mounting.leftovers() == []


@pytest.mark.root
def test_nothing_is_read_ahead_until_it_is_through(mounting: Host, stand_in: Callable[..., StandIn]) -> None:
    through = threading.Event()

    def late(request: dict[str, Any]) -> dict[str, Any]:
        through.wait(60)
        return {"profile": 1, "readings": [HEAD], "soon": 0}

    stand_in(readings=late)
    where = directory(mounting)
    mounting.do("attach", "app:1", where)  # returns although the warming has not begun
    folder, device = device_of(mounting)
    assert (read_ahead(device), is_warming(folder)) == (0, True)
    assert (where / "data/content").read_bytes() == CONTENT
    through.set()
    until(lambda: read_ahead(device) == 128)
    mounting.do("detach", where)
    assert mounting.leftovers() == []


@pytest.mark.root
def test_nothing_is_read_ahead_while_a_start_goes_as_its_profile_says(
    mounting: Host, stand_in: Callable[..., StandIn]
) -> None:
    over = threading.Event()
    front = stand_in(readings=readings(HEAD, *FILE), follows=lambda request: {"follows": not over.is_set()})
    where = directory(mounting)
    mounting.do("attach", "app:1", where)
    folder, device = device_of(mounting)
    until(lambda: front.ops().count("follows") > 1)
    assert (read_ahead(device), is_warming(folder)) == (0, True)
    os.sync()
    subprocess.run(["umount", where], check=True)  # whoever holds on does not hold the mount
    subprocess.run(["mount", "-o", "ro", device, where], check=True)
    before = served(mounting)
    with open(where / "data/content", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), BLOCK, 500 * BLOCK) == CONTENT[500 * BLOCK : 501 * BLOCK]
    assert served(mounting)[1] - before[1] < 40 * BLOCK
    over.set()
    until(lambda: not is_warming(folder))
    assert read_ahead(device) == 128
    mounting.do("detach", where)
    assert mounting.leftovers() == []


@pytest.mark.root
@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed"])
def test_what_warms_does_not_hold_the_mount(mounting: Host, stand_in: Callable[..., StandIn], killed: bool) -> None:
    through = threading.Event()

    def late(request: dict[str, Any]) -> dict[str, Any]:
        through.wait(60)
        return {"profile": 1, "readings": [HEAD], "soon": 0}

    stand_in(readings=late)
    where = directory(mounting)
    mounting.do("attach", "app:1", where)
    folder, device = device_of(mounting)
    pid = int((folder / "warming").read_text())
    if killed:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_warming(folder))
        assert read_ahead(device) == 0
    mounting.do("detach", where)
    assert not Path(f"/proc/{pid}/exe").exists()  # of one that has ended and waits for its parent, neither
    assert read_ahead(device) == 128  # the loop device is the next user's
    assert mounting.leftovers() == []
    through.set()


@pytest.mark.root
@pytest.mark.parametrize(
    "answer",
    [
        {"ok": False, "kind": "UsageError", "error": "'readings' is not an operation of this server"},
        {"profile": 0, "readings": [], "soon": 0},
        {"profile": 1, "readings": "nonsense", "soon": 0},
        {"profile": 1, "readings": [[0, 2000, None, 0]], "soon": "nonsense"},
        {"profile": 1, "readings": [7], "soon": 0},
        {"profile": 1},
        {"profile": 1, "readings": [[0, 1, "no/such/file", 0], [1 << 39, 1, None, 0], [0, 1, "e\0tc", 0]], "soon": 0},
    ],
    ids=["old", "none", "text", "soon", "number", "empty", "strange"],
)
def test_a_start_without_what_would_help_works(
    mounting: Host, stand_in: Callable[..., StandIn], answer: dict[str, Any]
) -> None:
    stand_in(readings=lambda request: answer, expect=lambda request: {"ok": False, "error": "not known"})
    where = directory(mounting)
    mounting.do("attach", "app:1", where)
    folder, device = device_of(mounting)
    until(lambda: not is_warming(folder))
    assert read_ahead(device) == 128
    assert (where / "data/content").read_bytes() == CONTENT
    mounting.do("detach", where)
    assert mounting.leftovers() == []


@pytest.mark.root
def test_the_server_is_told_of_new_devices_alone(mounting: Host, stand_in: Callable[..., StandIn]) -> None:
    front = stand_in(readings=readings())
    first, second = directory(mounting, "first"), directory(mounting, "second")
    mounting.do("attach", "app:1", first)
    export = json.loads(mounting.do("status", "--json"))["exports"][0]["export"]
    until(lambda: len(front.asked) == 2)
    assert front.asked[0] == {"v": 1, "op": "expect", "export": export, "new": True, "exact": False, "start": False}
    mounting.do("attach", "app:1", second)
    assert len(front.asked) == 2
    mounting.do("detach", first)
    mounting.do("detach", second)
    for arguments in (["app:1+x", "--label", "x"], ["app:1", "--label", "No!"]):
        assert mounting.run("attach", arguments[0], first, *arguments[1:]).returncode == 2
    assert mounting.leftovers() == []


@pytest.mark.root
def test_a_label_goes_with_the_name(mounting: Host, stand_in: Callable[..., StandIn]) -> None:
    def pinned(request: dict[str, Any]) -> dict[str, Any]:
        name, plus, label = request["export"].partition("+")
        return {"export": mounting.client.ask(Resolve(name)).export + plus + label, "writable": False}

    front = stand_in(readings=readings(), resolve=pinned)
    where = directory(mounting)
    mounting.do("attach", "app:1", where, "--label", "migrate")
    assert front.asked[0]["export"] == "app:1+migrate"
    assert front.asked[1]["export"].endswith("+migrate")
    mounting.do("detach", where)


@pytest.mark.root
def test_a_disk_image_with_small_blocks_is_attached(mounting: Host, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"")
    os.truncate(disk, 64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", disk], check=True)
    mounting.do("import", "--quiet", disk, "disk:1")
    mounting.serve()
    where = directory(mounting)
    mounting.do("attach", "disk:1", where)
    assert (where / "lost+found").is_dir()
    assert os.statvfs(where).f_bsize == 1024
    mounting.do("detach", where)
    assert mounting.leftovers() == []
