"""What people get wrong, through the program: exit code, one clear line, no traceback, a store that is as it was."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.format import keys
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from tests.image.builder import bulk, docker_archive, import_image, listing
from tests.image.layouts import Member, archive, directory, file, hardlink, layout, symlink

GOOD = [directory("etc"), file("etc/hostname", b"tiny\n"), file("program", bulk(1, 100_000))]


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the program in an empty folder, with nothing of blockmap's in the environment."""
    here = tmp_path / "here"
    here.mkdir()
    checkout = Path(__file__).parents[2]

    def call(*arguments: object, **environment: str) -> Done:
        clean = {name: value for name, value in os.environ.items() if name not in ("BLOCKMAP_STORE", "BLOCKMAP_CACHE")}
        done = subprocess.run(
            [sys.executable, "-m", "blockmap.cli.main", *map(str, arguments)],
            cwd=here,
            env={
                **clean,
                "PYTHONPATH": str(checkout),
                "TMPDIR": str(tmp_path),
                "BLOCKMAP_CACHE": str(tmp_path / "cache"),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert list(here.iterdir()) == [], "a failed command makes nothing where it runs"
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the image good:1."""
    where = tmp_path / "store"
    import_image(where, f"oci:{layout(tmp_path / 'good', [archive(GOOD)])}", "good:1", tmp_path)
    return where


def test_warnings_say_who_warns(run: Run, store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    source = f"oci:{layout(tmp_path / 'more', [archive(GOOD)])}"
    done = run("import", source, "more:1", "--store", store, "--cache", tmp_path / "file", "--quiet")
    assert done.code == 0, done.err
    assert "cannot be written" in done.err
    assert all(line.startswith("blockmap: ") for line in done.err.splitlines()), done.err


def test_what_a_layer_loses_is_said(run: Run, store: Path, tmp_path: Path) -> None:
    odd = [file("mac", b"x", xattrs={"com.apple.provenance": b"1"}), file("old", b"x", mtime="-62135596800")]
    image = layout(tmp_path / "odd", [archive(odd)])
    done = run("import", f"oci:{image}", "odd:1", "--store", store, "--quiet")
    assert done.code == 0, done.err
    assert "'mac' loses attributes that Linux does not know, such as 'com.apple.provenance'" in done.err
    assert "'old' has a time that ext4 cannot hold" in done.err
    assert all(line.startswith("blockmap: layer sha256:") for line in done.err.splitlines()), done.err
    checked = run("verify", "odd:1", "--against", f"oci:{image}", "--store", store)
    assert (checked.code, checked.err) == (0, "")


def refused(done: Done, *said: str, code: int = 1) -> None:
    """One line that says what happened, by the program's name."""
    assert done.code == code, done
    assert done.err.startswith("blockmap: "), done.err
    assert done.err.count("\n") == 1, done.err
    for words in said:
        assert words in done.err
    assert done.out == ""


# --- sources


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (file("../outside", b"x"), "climbs out"),
        (file("a/../../outside", b"x"), "climbs out"),
        (hardlink("link", "/../../etc/passwd"), "climbs out"),
        (hardlink("link", "/etc/no-such-file"), "does not exist"),
        (hardlink("link", "etc"), "hard link to the directory"),
        (file("program/inside", b"x"), "not a directory"),
        (file("n" * 300, b"x"), "nnn"),
        (symlink("etc/link", "t" * 5000), "target"),
        (file(".wh...", b""), "whiteout"),
        (Member(b"sparse", b"S", b"x"), "sparse"),
    ],
)
def test_a_hostile_layer(run: Run, store: Path, tmp_path: Path, member: Member, said: str) -> None:
    before = listing(store)
    image = layout(tmp_path / "bad", [archive([*GOOD, member])])
    refused(run("import", f"oci:{image}", "bad:1", "--store", store, "--quiet"), said)
    assert listing(store) == before


def test_an_image_that_unpacks_to_more_than_the_limit(run: Run, store: Path, tmp_path: Path) -> None:
    before = listing(store)
    image = layout(tmp_path / "big", [archive([file("zeros", bytes(5 << 20))])])
    command = ("import", f"oci:{image}", "big:1", "--store", store, "--quiet", "--max-size")
    refused(run(*command, "0.004"), "unpacks to more than 0.004 GiB: raise the limit by --max-size")
    assert listing(store) == before
    assert run(*command, "0.006").code == 0


def test_symlinks_as_directories_stay_inside(run: Run, store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [
        symlink("absolute", str(outside)),
        file("absolute/one", b"1"),
        symlink("climbing", "../../../../../.." + str(outside)),
        file("climbing/two", b"2"),
        symlink("loop", "loop-too"),
    ]
    image = layout(tmp_path / "image", [archive(members)])
    done = run("import", f"oci:{image}", "inside:1", "--store", store, "--quiet")
    assert done.code == 0, done.err
    assert list(outside.iterdir()) == []
    opened, _ = open_store(str(store))
    entry = NameReader(opened).newest("inside", "1")
    assert entry is not None
    assert entry.version is not None
    repository = Repository(opened)
    root = repository.version(entry.version).root
    paths = {found.path.decode() for found in repository.file_map(root.digest)}
    assert paths == {f"{outside}/one"[1:], f"{outside}/two"[1:]}
    Ext4Reader(stored_reader(repository, root))
    loop = layout(tmp_path / "loop", [archive([*members, symlink("loop-too", "loop"), file("loop/x", b"")])])
    refused(run("import", f"oci:{loop}", "loop:1", "--store", store, "--quiet"), "symlinks")


@pytest.mark.parametrize(("size", "said"), [(300 << 30, "pieces"), (2 << 40, "too big"), ((1 << 62) + 1, "too big")])
def test_an_image_too_big_for_its_volume(run: Run, store: Path, tmp_path: Path, size: int, said: str) -> None:
    """By what a header states: at once, before any content came."""
    before = listing(store)
    header = tarfile.TarInfo("var/huge")
    header.size = size
    whole = archive(GOOD).rstrip(b"\0")
    layer = whole + bytes(-len(whole) % 512) + header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)
    image = layout(tmp_path / "bad", [layer])
    command = ("import", f"oci:{image}", "bad:1", "--store", store, "--quiet")
    refused(run(*command), "unpacks to more than 64 GiB")
    refused(run(*command, "--max-size", "1e10"), "var/huge", said)
    assert listing(store) == before


def test_a_truncated_archive(run: Run, store: Path, tmp_path: Path) -> None:
    before = listing(store)
    saved = docker_archive(tmp_path / "saved.tar", [archive(GOOD)])
    whole = saved.read_bytes()
    for length in (0, 100, 512, len(whole) // 2, len(whole) - 12_000):
        saved.write_bytes(whole[:length])
        refused(run("import", f"docker-archive:{saved}", "bad:1", "--store", store), "saved.tar")
    assert listing(store) == before


def test_a_layer_with_another_digest(run: Run, store: Path, tmp_path: Path) -> None:
    before = listing(store)
    image = layout(tmp_path / "bad", [archive([*GOOD, file("own")])], spoil=lambda blob: blob[:4] + b"\1" + blob[5:])
    refused(run("import", f"oci:{image}", "bad:1", "--store", store, "--quiet"), "is damaged", "is expected", "get it")
    assert listing(store) == before


@pytest.mark.parametrize("spoil", [lambda blob: blob[:-9], lambda blob: b"not gzip at all", lambda blob: b""])
def test_a_layer_that_is_cut_off(run: Run, store: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    before = listing(store)
    image = layout(tmp_path / "bad", [archive(GOOD)], spoil=spoil)
    refused(run("import", f"oci:{image}", "bad:1", "--store", store, "--quiet"), "truncated", "get it again")
    assert listing(store) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda image: (image / "index.json").write_text("{"),
        lambda image: (image / "index.json").write_text("[]"),
        lambda image: (image / "index.json").write_text('{"manifests": [{}]}'),
        lambda image: (image / "index.json").write_text('{"manifests": [7]}'),
        lambda image: (image / "index.json").write_text('{"manifests": {"a": 1}}'),
        lambda image: (image / "index.json").write_text('{"manifests": [{"digest": "sha256:../../x", "size": 1}]}'),
        lambda image: (image / "index.json").unlink(),
        lambda image: (image / "oci-layout").unlink(),
        lambda image: shutil.rmtree(image / "blobs"),
        lambda image: [blob.write_bytes(b"{}") for blob in (image / "blobs" / "sha256").iterdir()],
    ],
)
def test_a_damaged_layout(run: Run, store: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    before = listing(store)
    image = layout(tmp_path / "bad", [archive(GOOD)])
    damage(image)
    done = run("import", f"oci:{image}", "bad:1", "--store", store, "--quiet")
    assert done.code in (1, 2)
    assert done.err.startswith("blockmap: ")
    assert listing(store) == before


@pytest.mark.parametrize(
    "manifest", [b"{", b"{}", b"[7]", b"[]", b'[{"Config": 7, "Layers": [7]}]', b'[{"RepoTags": 7}]']
)
def test_a_docker_archive_with_a_damaged_manifest(run: Run, store: Path, tmp_path: Path, manifest: bytes) -> None:
    saved = tmp_path / "saved.tar"
    saved.write_bytes(archive([file("manifest.json", manifest)]))
    done = run("import", f"docker-archive:{saved}", "bad:1", "--store", store)
    assert done.code in (1, 2)
    assert done.err.startswith("blockmap: ")


def test_an_image_for_another_platform(run: Run, store: Path, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [archive(GOOD)])
    index = json.loads((image / "index.json").read_text())
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "s390x"}
    data = json.dumps(index).encode()
    digest = hashlib.sha256(data).hexdigest()
    (image / "blobs" / "sha256" / digest).write_bytes(data)
    nested = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": f"sha256:{digest}",
        "size": len(data),
        "annotations": {"org.opencontainers.image.ref.name": "1"},
    }
    (image / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [nested]}))
    refused(run("import", f"oci:{image}:1", "bad:1", "--store", store), "linux/s390x", "--platform")
    done = run("import", f"oci:{image}:1", "other:1", "--store", store, "--platform", "linux/s390x", "--quiet")
    assert done.code == 0, done.err
    refused(run("import", f"oci:{image}:1", "bad:1", "--store", store, "--platform", "s390x"), "s390x", code=2)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("http://example.org/image", 2),
        ("containers-storage:file", 2),
        ("oci-archive:", 2),
        ("docker:", 2),
        ("docker://", 2),
        ("docker-daemon:", 2),
        ("oci:", 2),
        ("docker-archive:", 2),
        ("/dev/null", 2),
        ("oci:no/such/folder", 1),
        ("docker-archive:no-such-file.tar", 1),
        ("oci-archive:no-such-file.tar", 1),
        ("no-such-file.img", 1),
        ("", 2),
    ],
)
def test_a_source_that_is_not_understood(run: Run, store: Path, source: str, code: int) -> None:
    before = listing(store)
    refused(run("import", source, "bad:1", "--store", store), "docker-archive:FILE", code=code)
    assert listing(store) == before


def test_a_layout_without_its_scheme(run: Run, store: Path, tmp_path: Path) -> None:
    refused(run("import", tmp_path / "good", "bad:1", "--store", store), f"oci:{tmp_path / 'good'}", code=2)
    refused(run("import", f"oci:{tmp_path / 'good'}:2", "bad:1", "--store", store), "'2'", "tags 1", code=2)
    refused(run("import", f"oci:{store}", "bad:1", "--store", store), "oci-layout")


@pytest.mark.parametrize(
    "name", ["", "UPPER:1", "a b", "a:", "a:-x", "../up", "a//b", "a@sha256:" + "0" * 64, "a:" + "t" * 200]
)
def test_a_bad_name(run: Run, store: Path, tmp_path: Path, name: str) -> None:
    before = listing(store)
    refused(run("import", f"oci:{tmp_path / 'good'}", name, "--store", store), code=2)
    assert listing(store) == before


def test_a_missing_tool(run: Run, store: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bulk(1, 5000))
    empty = tmp_path / "bin"
    empty.mkdir()
    refused(
        run("import", "docker://example.org/a:1", "a:1", "--store", store, PATH=str(empty)), "apt-get install skopeo"
    )
    refused(run("import", disk, "a:1", "--store", store, PATH=str(empty)), "apt-get install qemu-utils")


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo nbdkit of some kind", "which is not understood"),
        ("case $1 in --version) echo nbdkit 1.32.5;; *) exit 1;; esac", "apt-get install nbdkit-plugin-python"),
        ("case $1 in --version) echo nbdkit 1.32.5;; *) echo python_version=2.7.18;; esac", "Python is 2.7"),
    ],
)
def test_a_wrong_nbdkit(run: Run, store: Path, tmp_path: Path, script: str, said: str) -> None:
    before = listing(store)
    tools = tmp_path / "bin"
    tools.mkdir()
    program(tools / "nbdkit", script)
    done = run(
        "serve", "--store", store, "--cache", tmp_path / "cache", "--socket", tmp_path / "nbd.sock",
        PATH=f"{tools}:{os.environ['PATH']}",
    )  # fmt: skip
    refused(done, said)
    assert listing(store) == before
    assert not (tmp_path / "nbd.sock").exists()


@pytest.mark.root
@pytest.mark.parametrize("command", [["attach", "good:1", "."], ["detach", "."], ["run", "good:1"]])
def test_without_root(store: Path, command: list[str], need_root: None) -> None:
    before = listing(store)
    done = subprocess.run(
        [sys.executable, "-m", "blockmap.cli.main", *command],
        env={**os.environ, "BLOCKMAP_STORE": str(store), "HOME": "/nonexistent"},
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("blockmap: ")
    assert done.stderr.count("\n") == 1
    assert "needs root: run it with sudo" in done.stderr
    assert listing(store) == before


def test_a_disk_that_is_empty_or_refers_elsewhere(
    run: Run, store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("qemu-img")
    empty, below, above = (tmp_path / name for name in ("empty", "below", "above.qcow2"))
    empty.touch()
    below.write_bytes(bytes(1 << 20))
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", above], check=True, capture_output=True
    )
    before = listing(store)
    refused(run("import", empty, "a:1", "--store", store), "is empty")
    refused(run("import", above, "a:1", "--store", store), "refers to other files", "qemu-img convert")
    assert listing(store) == before


# --- stores


def test_no_store_is_given(run: Run, tmp_path: Path) -> None:
    for arguments in (["images"], ["show", "a:1"], ["verify", "a:1"], ["create"], ["import", "docker://x/y", "a:1"]):
        refused(run(*arguments), "--store", "BLOCKMAP_STORE", code=2)


def test_a_directory_that_is_no_store(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    image = layout(tmp_path / "image", [archive(GOOD)])
    refused(run("images", "--store", other), "not a blockmap store", "blockmap create")
    refused(run("create", other), "letter.txt")
    refused(run("import", f"oci:{image}", "a:1", "--store", other))
    refused(run("images", "--store", tmp_path / "absent"), "not a blockmap store")
    refused(run("create", other / "letter.txt"), "is a file")
    refused(run("images", "--store", "ftp://bucket"), "ftp://", code=2)
    assert listing(other) == {"letter.txt": 4}
    assert not (tmp_path / "absent").exists()


def test_a_store_that_is_there_already(run: Run, store: Path) -> None:
    before = listing(store)
    refused(run("create", store), "already", code=2)
    assert listing(store) == before


@pytest.mark.parametrize("change", [{"version": 2}, {"requires": ["encryption"]}])
def test_a_store_of_a_newer_release(run: Run, store: Path, tmp_path: Path, change: dict[str, object]) -> None:
    spoil(store / "format", json.dumps({**json.loads((store / "format").read_text()), **change}).encode())
    before = listing(store)
    refused(run("images", "--store", store), "upgrade blockmap")
    refused(run("import", f"oci:{tmp_path / 'good'}", "a:1", "--store", store), "upgrade blockmap")
    assert listing(store) == before


def test_a_store_that_a_newer_release_may_write_only(run: Run, store: Path, tmp_path: Path) -> None:
    spoil(store / "format", json.dumps({**json.loads((store / "format").read_text()), "may": ["new"]}).encode())
    before = listing(store)
    assert run("images", "--store", store).code == 0
    refused(run("import", f"oci:{tmp_path / 'good'}", "a:1", "--store", store), "upgrade blockmap")
    assert listing(store) == before


def spoil(path: Path, data: bytes) -> None:
    os.chmod(path, 0o644)
    path.write_bytes(data)


def test_an_unknown_name(run: Run, store: Path) -> None:
    for command in ("show", "verify"):
        refused(run(command, "nobody:1", "--store", store), "nobody:1", "blockmap images")
        refused(run(command, "good:2", "--store", store), "good:2")
        refused(run(command, "good@sha256:" + "0" * 64, "--store", store), "0" * 64)
        refused(run(command, "good@sha256:00", "--store", store), code=2)


def test_verify_says_where_a_pack_is_damaged(run: Run, store: Path) -> None:
    assert run("verify", "good:1", "--store", store).code == 0
    opened, _ = open_store(str(store))
    repository = Repository(opened)
    entry = NameReader(opened).newest("good", "1")
    assert entry is not None
    assert entry.version is not None
    root = repository.version(entry.version).root
    leaf = next(leaf for _, leaf in leaves(root, repository.packs.nodes))
    chunk, place = leaf.chunks[0], leaf.placements[0]
    assert place is not None
    path = store / keys.pack(place.pack)
    data = bytearray(path.read_bytes())
    data[place.offset + place.stored // 2] ^= 1
    spoil(path, bytes(data))
    done = run("verify", "good:1", "--store", store)
    assert done.code == 1
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 2
    assert chunk.hex() in lines[0]
    assert place.pack.hex() in lines[0]
    assert "damaged in 1 place" in lines[1]
    path.unlink()
    done = run("verify", "good:1", "--store", store)
    assert done.code == 1
    assert keys.pack(place.pack) in done.err


@pytest.mark.parametrize("what", ["versions/", "names/"])
def test_a_damaged_record(run: Run, store: Path, what: str) -> None:
    (key,) = [key for key in listing(store) if key.startswith(what)]
    spoil(store / key, b"\xff" + (store / key).read_bytes()[1:])
    for command in ("show", "verify"):
        refused(run(command, "good:1", "--store", store), "damaged")
    done = run("images", "--store", store)
    assert "damaged" in done.err
    assert "good" not in done.out


@pytest.fixture
def small_disk(tmp_path: Path, need_root: None) -> Iterator[Path]:
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.root
def test_a_full_disk(run: Run, tmp_path: Path, small_disk: Path) -> None:
    image = layout(tmp_path / "image", [archive([file("big", bulk(1, 8 << 20))])])
    small = layout(tmp_path / "small-image", [archive([file("small", b"1")])])
    store = small_disk / "store"
    assert run("create", store).code == 0
    done = run("import", f"oci:{small}", "small:1", "--store", store, "--quiet")
    assert done.code == 0, done.err
    before = listing(store)
    refused(run("import", f"oci:{image}", "big:1", "--store", store, "--quiet"), "no room left", "free some space")
    assert listing(store) == before
    assert run("verify", "small:1", "--store", store).code == 0


def test_an_interrupted_import_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    """SIGINT while the program waits for a layer that does not come."""
    before = listing(store)
    image = layout(tmp_path / "slow", [archive([*GOOD, file("own")])], compress=None)
    index = json.loads((image / "index.json").read_text())
    blobs = image / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    pipe = blobs / manifest["layers"][0]["digest"][7:]
    data = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    del manifest["layers"][0]["size"]
    text = json.dumps(manifest).encode()
    digest = hashlib.sha256(text).hexdigest()
    (blobs / digest).write_bytes(text)
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(text)}
    (image / "index.json").write_text(json.dumps(index))
    started = subprocess.Popen(
        [sys.executable, "-m", "blockmap.cli.main", "import", f"oci:{image}", "slow:1", "--store", store, "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 30
        while True:  # a writer can open the pipe once the program reads it
            try:
                writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)
        os.set_blocking(writer, True)
        os.write(writer, data[: len(data) // 2])
        started.send_signal(signal.SIGINT)
        time.sleep(0)
        os.close(writer)  # the thread that reads ends with it
        _, err = started.communicate(timeout=30)
    finally:
        started.kill()
        started.wait()
    assert started.returncode in (130, 1)
    assert "Traceback" not in err
    assert listing(store) == before


def test_json_stays_json_where_a_name_is_damaged(run: Run, store: Path) -> None:
    (key,) = [key for key in listing(store) if key.startswith("versions/")]
    spoil(store / key, b"")
    done = run("images", "--store", store, "--json")
    assert json.loads(done.out) == []
    assert done.err.startswith("blockmap: good:1: ")


def test_a_folder_that_cannot_be_archived_at_once(run: Run, store: Path, tmp_path: Path) -> None:
    """A tar where a layout is expected, and the other way round."""
    saved = docker_archive(tmp_path / "saved.tar", [archive(GOOD)])
    refused(run("import", f"oci:{saved}", "a:1", "--store", store), "oci-layout")
    refused(run("import", f"docker-archive:{tmp_path / 'good'}", "a:1", "--store", store), "good")
    with tarfile.open(tmp_path / "plain.tar", "w") as out:
        out.add(tmp_path / "good" / "oci-layout", "a")
    refused(run("import", f"docker-archive:{tmp_path / 'plain.tar'}", "a:1", "--store", store), "manifest.json")


def test_a_long_name_is_listed_in_one_piece(run: Run, store: Path, tmp_path: Path) -> None:
    """Into a pipe, however narrow the terminal is."""
    name = "registry.example.org/a/rather/long/name/of/an/image/with/many/parts:with-a-long-tag-2024-01-01"
    assert run("import", f"oci:{tmp_path / 'good'}", name, "--store", store, "--quiet").code == 0
    lines = run("images", "--store", store, COLUMNS="40").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "good:1", name]
    assert all(len(line.split()) == len(lines[1].split()) for line in lines[1:])
