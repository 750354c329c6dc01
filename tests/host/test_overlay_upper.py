"""What an overlay's upper directory says, applied to what was below, is what the overlay showed: with real overlay mounts."""

import contextlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockmap.errors import HostError
from blockmap.host.overlay_upper import apply_upper

pytestmark = pytest.mark.root


class Overlay:
    """An overlay mount over a tree, and what it showed before it was unmounted."""

    def __init__(self, where: Path, options: str) -> None:
        self.lower, self.upper, self.work, self.merged = (where / each for each in ("lower", "upper", "work", "merged"))
        for each in (self.lower, self.upper, self.work, self.merged):
            each.mkdir(parents=True)
        self.options = options
        self.is_user = "userxattr" in options

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        where = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work},{self.options}"
        subprocess.run(["mount", "-t", "overlay", "-o", where, "overlay", self.merged], check=True)
        try:
            yield self.merged
        finally:
            subprocess.run(["umount", self.merged], check=True)

    def check(self) -> None:
        """Asserts that the upper directory gives the merged tree, applied to a copy of the lower one."""
        with self.mounted() as merged:
            shown = tree(merged)
        target = self.lower.parent / "target"
        subprocess.run(["cp", "-a", self.lower, target], check=True)
        apply_upper(self.upper, target, user_attributes=self.is_user)
        assert tree(target) == shown


def tree(root: Path) -> dict[str, Any]:
    """Returns all that can be seen of a tree: an entry's other names stand for its hard links."""
    found: dict[str, Any] = {}
    names: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        about, name = path.lstat(), str(path.relative_to(root))
        contents: object = None
        if path.is_symlink():
            contents = os.readlink(path)
        elif path.is_file():
            contents = path.read_bytes()
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        first = name if path.is_dir() else names.setdefault(about.st_ino, name)
        kept = (about.st_mode, about.st_uid, about.st_gid, about.st_rdev, about.st_mtime_ns)
        found[name] = (*kept, contents, attributes, first)
    return found


OPTIONS = [
    "redirect_dir=on,metacopy=on",
    "redirect_dir=on,metacopy=off",
    "redirect_dir=off,metacopy=off",
    "userxattr",
]


def fill(root: Path) -> None:
    """Makes a tree with some of everything."""
    for name in ("a", "a/b", "a/b/c", "d", "d/e", "f"):
        (root / name).mkdir()
        (root / name / "file").write_bytes(name.encode() * 5000)
        (root / name / "empty").touch()
        (root / name / "link").symlink_to("file")
    os.link(root / "a/file", root / "d/hard")
    os.mkfifo(root / "d/fifo")
    os.mknod(root / "d/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(root / "a/file", "user.note", b"below")
    os.setxattr(root / "d", "user.folder", b"below")
    with open(root / "f/sparse", "wb") as file:
        file.truncate(10_000_000)
        file.seek(5_000_000)
        file.write(b"middle")


@pytest.mark.parametrize("options", OPTIONS)
def test_each_kind_of_change(options: str, tmp_path: Path) -> None:
    overlay = Overlay(tmp_path, options)
    fill(overlay.lower)
    with overlay.mounted() as root:
        (root / "a/b/c/file").unlink()
        shutil.rmtree(root / "d/e")
        (root / "d/e").mkdir()
        (root / "d/e/new").write_bytes(b"in an opaque directory")
        (root / "a/empty").chmod(0o4711)
        os.chown(root / "a/b/file", 12, 34)
        os.chown(root / "a/link", 5, 6, follow_symlinks=False)
        (root / "f/file").rename(root / "f/renamed")
        os.chown(root / "f/renamed", 1, 2)
        with open(root / "f/sparse", "r+b") as file:
            file.seek(9_000_000)
            file.write(b"end")
        os.link(root / "f/empty", root / "f/twice")
        os.setxattr(root / "f/twice", "user.own", b"1")
        os.setxattr(root / "d", "user.folder", b"above")
        (root / "new/er").mkdir(parents=True)
        (root / "new/er/link").symlink_to("/nowhere")
        os.mknod(root / "new/device", 0o600 | stat.S_IFBLK, os.makedev(7, 9))
        if "redirect_dir=on" in options:
            (root / "a/b").rename(root / "new/b")
            (root / "new/b/c").rename(root / "c")
            (root / "d").rename(root / "a/b")
            (root / "a").rename(root / "d")
            (root / "d/b/inside").write_bytes(b"of what was d")
        os.removexattr(root / ("d/file" if "redirect_dir=on" in options else "a/file"), "user.note")
        (root / "f/link").unlink()
        (root / "f/link").mkdir()
        shutil.rmtree(root / "f/link")
    overlay.check()


def change(root: Path, dice: random.Random, serial: int) -> None:
    """Does one thing to a tree, at random."""
    entries = [root, *sorted(root.rglob("*"))]
    folders = [each for each in entries if each.is_dir() and not each.is_symlink()]
    files = [each for each in entries if each.is_file() and not each.is_symlink()]
    some, folder = dice.choice(entries), dice.choice(folders)
    place = folder / dice.choice(["file", "empty", "link", "a", "b", f"n{serial % 7}"])
    is_folder = some.is_dir() and not some.is_symlink()
    match dice.randrange(10):
        case 0 if not os.path.lexists(place):
            place.mkdir()
        case 1 if not os.path.lexists(place):
            place.write_bytes(b"%d" % serial * dice.randrange(2000))
        case 2 if some != root:
            shutil.rmtree(some) if is_folder else some.unlink()
        case 3 | 4 if some != root and not place.is_relative_to(some) and not os.path.lexists(place):
            with contextlib.suppress(OSError):  # EXDEV, where directories are not redirected
                some.rename(place)
        case 5 if not some.is_symlink():
            some.chmod(dice.choice([0o700, 0o755, 0o4750]))
        case 6:
            os.chown(some, dice.randrange(4), dice.randrange(4), follow_symlinks=False)
        case 7 if files and not os.path.lexists(place):
            os.link(dice.choice(files), place)
        case 8 if files:
            with dice.choice(files).open("r+b") as file:
                file.seek(dice.randrange(9000))
                file.write(b"written %d" % serial)
        case 9 if some != root and is_folder:
            shutil.rmtree(some)
            some.mkdir()


@pytest.mark.parametrize("options", OPTIONS)
def test_changes_at_random(options: str, tmp_path: Path) -> None:
    for seed in (*range(12), 285):  # 285 has two files that share their contents below, and two names each
        dice = random.Random(seed)
        overlay = Overlay(tmp_path / str(seed), options)
        fill(overlay.lower)
        with overlay.mounted() as root:
            for serial in range(dice.randrange(1, 60)):
                change(root, dice, serial)
        overlay.check()


def test_a_whiteout_as_an_attribute(tmp_path: Path) -> None:
    """The kernel takes these in lower layers alone; programs that cannot make devices write them as upper ones."""
    overlay = Overlay(tmp_path, "redirect_dir=on")
    fill(overlay.lower)
    (overlay.upper / "a").mkdir()
    os.setxattr(overlay.upper / "a", "trusted.overlay.opaque", b"x")
    for name in ("file", "kept"):
        (overlay.upper / "a" / name).touch()
    os.setxattr(overlay.upper / "a/file", "trusted.overlay.whiteout", b"")
    apply_upper(overlay.upper, overlay.lower)
    assert sorted(os.listdir(overlay.lower / "a")) == ["b", "empty", "kept", "link"]
    assert not os.listxattr(overlay.lower / "a")


@pytest.mark.parametrize("redirect", [b"/a/../../etc", b"..", b"/"])
def test_a_path_that_leads_out_is_refused(redirect: bytes, tmp_path: Path) -> None:
    overlay = Overlay(tmp_path, "redirect_dir=on")
    fill(overlay.lower)
    (overlay.upper / "z").mkdir()
    os.setxattr(overlay.upper / "z", "trusted.overlay.redirect", redirect)
    with pytest.raises(HostError, match="which is no path"):
        apply_upper(overlay.upper, overlay.lower)


def test_a_file_that_is_not_below(tmp_path: Path) -> None:
    overlay = Overlay(tmp_path, "redirect_dir=on")
    fill(overlay.lower)
    (overlay.upper / "z").touch()
    os.setxattr(overlay.upper / "z", "trusted.overlay.redirect", b"/no/such")
    os.setxattr(overlay.upper / "z", "trusted.overlay.metacopy", b"")
    with pytest.raises(HostError, match="no such file below"):
        apply_upper(overlay.upper, overlay.lower)


def test_no_link_below_is_followed(tmp_path: Path) -> None:
    overlay = Overlay(tmp_path, "redirect_dir=on")
    outside = tmp_path / "outside"
    (outside / "secret").mkdir(parents=True)
    (overlay.lower / "way").symlink_to(outside)
    (overlay.upper / "z").mkdir()
    os.setxattr(overlay.upper / "z", "trusted.overlay.redirect", b"/way/secret")
    apply_upper(overlay.upper, overlay.lower)
    assert (outside / "secret").exists()
    assert not list((overlay.lower / "z").iterdir())
