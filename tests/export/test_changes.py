"""What was committed, exported as one more layer, and unpacked by another program."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockmap.errors import ImageError
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import open_writer
from blockmap.upkeep.collect import Collector
from tests.export.committed import commit_changes, volume_of
from tests.export.exported import config_of, export_image, layer_members, manifest_of
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, directory, file, hardlink, layout, symlink
from tests.image.mounted import compare_with_unpacked, mounted, walk

pytestmark = pytest.mark.root

CONFIG = {"history": [{"created_by": "one"}, {"created_by": "nothing", "empty_layer": True}, {"created_by": "two"}]}
LOWER = [
    directory("."),
    directory("etc"),
    file("etc/conf", b"old"),
    file("same-size-and-time", b"abcdef"),
    file("mode", b"1"),
    file("owner", b"1"),
    file("time", b"1"),
    file("attribute", b"1"),
    file("attributes", b"1", xattrs={"user.a": b"1", "user.b": b"2"}),
    file("gone", b"1"),
    directory("tree"),
    *(file(f"tree/{n}/file", b"%d" % n) for n in range(5)),
    directory("becomes-file"),
    file("becomes-file/inside", b"1"),
    file("becomes-directory", b"1"),
    symlink("link", "etc/conf"),
    file("pair", b"pair"),
    hardlink("pair-too", "pair"),
    file("three", b"three"),
    hardlink("three-b", "three"),
    hardlink("three-c", "three"),
    file("apart", b"apart"),
    hardlink("apart-too", "apart"),
    file("lonely", b"lonely"),
    file("renamed", bulk(1, 50_000)),
    directory("made-anew"),
    file("made-anew/old", b"1"),
    file("large", bulk(2, 3 << 20)),
    directory("deep/er/est"),
    file("deep/er/est/file", b"1"),
]
UPPER = [file("etc/upper", b"2"), file(".wh.large")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None], need_root: None) -> tuple[Path, Path]:
    """Returns a store with `base:1`, and the layout that it was imported from."""
    need("umoci")
    work = tmp_path_factory.mktemp("base")
    source = layout(work / "layout", [archive(LOWER), archive(UPPER)], config=CONFIG)
    import_image(work / "store", f"oci:{source}", "base:1", work)
    return work / "store", source


def change(top: Path) -> None:
    (top / "etc" / "conf").write_bytes(b"new")
    times = (top / "same-size-and-time").stat()
    with open(top / "same-size-and-time", "r+b") as out:
        out.write(b"ABCDEF")
    os.utime(top / "same-size-and-time", ns=(times.st_atime_ns, times.st_mtime_ns))
    (top / "mode").chmod(0o4711)
    os.chown(top / "owner", 70_000, 70_001)
    os.utime(top / "time", (5, 1_234_567_890.5))
    os.setxattr(top / "attribute", "user.new", b"new")
    os.removexattr(top / "attributes", "user.a")
    (top / "gone").unlink()
    shutil.rmtree(top / "tree" / "1")
    (top / "tree" / "2" / "file").unlink()
    (top / "tree" / "3" / "another").write_bytes(b"new")
    shutil.rmtree(top / "becomes-file")
    (top / "becomes-file").write_bytes(b"a file now")
    (top / "becomes-directory").unlink()
    (top / "becomes-directory" / "with").mkdir(parents=True)
    (top / "becomes-directory" / "with" / "file").write_bytes(b"2")
    (top / "link").unlink()
    (top / "link").symlink_to("/" + "long/" * 40)
    (top / "pair-too").write_bytes(b"both have changed")
    (top / "three-b").unlink()
    (top / "apart-too").unlink()
    shutil.copy2(top / "apart", top / "apart-too")
    os.link(top / "lonely", top / "deep" / "not-lonely")
    (top / "renamed").rename(top / "deep" / "er" / ("moved" * 30))
    shutil.rmtree(top / "made-anew")
    (top / "made-anew").mkdir(0o700)
    (top / "made-anew" / "new").write_bytes(b"2")
    (top / "deep" / "er" / "est" / "file").write_bytes(b"deep")
    (top / "new").mkdir()
    os.mknod(top / "new" / "device", 0o020640, os.makedev(259, 70_000))
    os.mkfifo(top / "new" / "fifo")
    (top / os.fsdecode(b"new/\xff\nname")).write_bytes(bulk(3, 4097))
    (top / "new" / "large").write_bytes(bulk(4, (20 << 20) + 1))
    with open(top / "new" / "holes", "wb") as out:
        out.seek(5 << 20)
        out.write(bulk(5, 70_000))
        out.truncate(100 << 20)
    os.setxattr(top / "new", "trusted.t", bulk(6, 300))


@pytest.fixture(scope="module")
def changed(base: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the store, with `changed:1`."""
    commit_changes(base[0], "base:1", "changed:1", tmp_path_factory.mktemp("work"), change, '[["Cmd", ["changed"]]]')
    return base[0]


def compare_with_volume(store: Path, name: str, out: Path, work: Path) -> None:
    """Asserts that what umoci unpacks is what the kernel mounts."""
    unpacked = work / "unpacked"
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{out}:1", unpacked], check=True, capture_output=True)
    with volume_of(store, name, work) as top:
        seen = dict(walk(top))
        odd = {path for path, found in seen.items() if found.st_mtime_ns % 10**9}
        assert compare_with_unpacked(top, unpacked, odd_times=odd) > 20
        for path in odd:
            assert os.lstat(os.path.join(os.fsencode(unpacked), path)).st_mtime == int(seen[path].st_mtime), path
    shutil.rmtree(unpacked)


def layers(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(manifest_of(out)[1])["layers"]
    return found


def test_a_commit_is_one_more_layer(base: tuple[Path, Path], changed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export_image(changed, "changed:1", f"oci:{out}:1")
    assert done.was_config is None
    compare_with_volume(changed, "changed:1", out, tmp_path)
    assert layers(out)[:2] == layers(base[1])
    assert len(layers(out)) == 3
    assert [each.why_other for each in done.layers] == ["", "", ""]
    config, before = config_of(out), config_of(base[1])
    assert config["rootfs"]["diff_ids"][:2] == before["rootfs"]["diff_ids"]
    assert config["config"] == {"Cmd": ["changed"]}
    *history, last = config["history"]
    assert history == before["history"]
    assert (last["created_by"], last["comment"], last["author"]) == ("blockmap commit", "why", "who")
    assert config["created"] == last["created"] > "2020-01-01T00:00:00Z"


def test_the_same_commit_is_the_same_image(changed: Path, tmp_path: Path) -> None:
    first, second = (export_image(changed, "changed:1", f"oci:{tmp_path / name}") for name in "ab")
    assert first == second


def test_the_layer_has_what_changed_and_the_directories_above(changed: Path, tmp_path: Path) -> None:
    export_image(changed, "changed:1", f"oci:{tmp_path / 'out'}")
    members = {each.name: each for each in layer_members(tmp_path / "out", 2)}
    assert list(members) == sorted(members, key=os.fsencode)
    for name in (".wh.gone", "tree/.wh.1", "tree/2/.wh.file", "made-anew/.wh.old", ".wh.three-b", ".wh.renamed"):
        assert members.pop(name).size == 0
    assert members["new/holes"].issparse()
    assert members["lonely"].islnk()
    assert members["deep/not-lonely"].isreg()
    assert members["apart"].isreg()
    assert members["apart-too"].isreg()
    assert members["pair-too"].islnk()
    assert "deep/er/est" in members
    for name in ("three", "three-c", "tree/4", "etc/upper", "tree/0/file", "lost+found", "becomes-file/inside"):
        assert name not in members
    assert not any(".wh." in name for name in members)
    assert {each.uname + each.gname for each in members.values()} == {""}


def test_a_commit_of_a_commit_is_one_layer_over_the_image(changed: Path, tmp_path: Path) -> None:
    def more(top: Path) -> None:
        (top / "gone").write_bytes(b"back")
        (top / "new" / "large").unlink()

    commit_changes(changed, "changed:1", "again:1", tmp_path, more)
    export_image(changed, "again:1", f"oci:{tmp_path / 'out'}:1")
    assert len(layers(tmp_path / "out")) == 3
    compare_with_volume(changed, "again:1", tmp_path / "out", tmp_path)


def test_what_changed_nothing_adds_no_layer(base: tuple[Path, Path], tmp_path: Path) -> None:
    commit_changes(base[0], "base:1", "nothing:1", tmp_path, lambda top: None)
    export_image(base[0], "nothing:1", f"oci:{tmp_path / 'out'}")
    assert layers(tmp_path / "out") == layers(base[1])
    assert config_of(tmp_path / "out")["history"][-1]["empty_layer"] is True


def test_what_no_layer_can_hold(base: tuple[Path, Path], tmp_path: Path) -> None:
    def listen(top: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(top / "s"))
        (top / "mode").unlink()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(top / "mode"))

    commit_changes(base[0], "base:1", "socket:1", tmp_path, listen)
    said: list[str] = []
    export_image(base[0], "socket:1", f"oci:{tmp_path / 'out'}", said)
    assert sorted(text.partition(":")[0] for text in said) == ["'mode' is a socket", "'s' is a socket"]
    assert [each.name for each in layer_members(tmp_path / "out", 2)] == [".", ".wh.mode"]

    commit_changes(base[0], "base:1", "whiteout:1", tmp_path, lambda top: (top / "etc" / ".wh.x").touch())
    with pytest.raises(ImageError, match=r"'etc/\.wh\.x' has the name of a whiteout"):
        export_image(base[0], "whiteout:1", f"oci:{tmp_path / 'other'}")


def test_a_commit_whose_base_is_gone_is_one_layer(tmp_path: Path, need: Callable[..., None]) -> None:
    need("umoci")
    store = tmp_path / "store"
    import_image(store, f"oci:{layout(tmp_path / 'i', [archive(LOWER), archive(UPPER)])}", "base:1", tmp_path)
    commit_changes(store, "base:1", "changed:1", tmp_path, change)
    opened, _ = open_writer(str(store))
    NameLog(opened).remove(NameTarget("base", "1"), "")
    collector = Collector(opened, -1, -1, lambda config: ())
    state = collector.state()
    assert collector.condemn(state, collector.plan(state))
    collector.sweep(collector.state())
    said: list[str] = []
    export_image(store, "changed:1", f"oci:{tmp_path / 'out'}:1", said)
    assert "the image below is gone or damaged, and all is written as one layer" in said[0]
    assert len(layers(tmp_path / "out")) == 1
    compare_with_volume(store, "changed:1", tmp_path / "out", tmp_path)


def test_a_disk_image_is_one_layer(tmp_path: Path, need: Callable[..., None]) -> None:
    need("mke2fs", "umoci")
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    (source / "file").write_bytes(bulk(1, 70_000))
    os.link(source / "file", source / "link")
    for kind, size in (("4096", "64M"), ("1024", "8M")):
        disk = tmp_path / f"disk{kind}"
        command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-b", kind, "-d", str(source), str(disk), size]
        subprocess.run(command, check=True, capture_output=True)
        import_image(store, str(disk), f"disk{kind}:1", tmp_path)
    done = export_image(store, "disk4096:1", f"oci:{tmp_path / 'out'}:1")
    assert export_image(store, "disk4096:1", f"oci:{tmp_path / 'again'}:1") == done
    unpacked = tmp_path / "unpacked"
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{tmp_path / 'out'}:1", unpacked], check=True, capture_output=True
    )
    with mounted(tmp_path / "disk4096", tmp_path / "mounted") as top:
        odd = {path for path, found in walk(top) if found.st_mtime_ns % 10**9}
        assert compare_with_unpacked(top, unpacked, odd_times=odd) == 3
    with pytest.raises(ImageError, match="blocks of 1024 bytes"):
        export_image(store, "disk1024:1", f"oci:{tmp_path / 'other'}")
    (tmp_path / "no-fs").write_bytes(bulk(1, 512 * 137))
    import_image(store, str(tmp_path / "no-fs"), "none:1", tmp_path)
    with pytest.raises(ImageError, match="holds no ext4 file system"):
        export_image(store, "none:1", f"oci:{tmp_path / 'other'}")
