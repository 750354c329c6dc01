"""New files are taken in if starts read similar ones."""

from collections.abc import Sequence

from blockmap.format import BLOCK
from blockmap.format.filemap import File
from blockmap.format.profile import ProfileItem
from blockmap.learn.new_files import new_files
from tests.learn.volumes import digest


def item(path: bytes, number: int) -> ProfileItem:
    return ProfileItem(number, 40, digest("a"), 0, path, 0, number, 1)


def found(read: Sequence[bytes], old: Sequence[bytes], new: Sequence[bytes]) -> dict[int, list[bytes]]:
    items = [item(path, number) for number, path in enumerate(read)]
    files = [File(path, BLOCK, [(number, 1)]) for number, path in enumerate(sorted({*old, *new}))]
    return {number: [file.path for file in own] for number, own in new_files(items, old, files).items()}


def test_new_files_follow_the_last_of_their_kind() -> None:
    read = [b"app/a.js", b"bin/node", b"app/lib/b.js", b"etc/passwd"]
    old = [*read, b"app/a.txt", b"app/b.txt"]
    new = [b"app/c.js", b"app/new/deep/d.js", b"app/c.txt", b"app/lib/README", b"srv/e.js"]
    assert found(read, old, new) == {2: [b"app/c.js", b"app/lib/README", b"app/new/deep/d.js"]}


def test_kinds_of_which_few_are_read_bring_none() -> None:
    old = [b"app/%d.js" % number for number in range(20)]
    assert found(old[:1], old, [b"app/new.js"]) == {}
    assert found(old[:2], old, [b"app/new.js"]) == {1: [b"app/new.js"]}


def test_where_there_is_no_kind_the_directory_tells() -> None:
    old = [b"app/app.py", *(b"app/data/%d" % number for number in range(20)), b"one"]
    new = [b"app/templates/index.html", b"app/data/new.txt", b"other/index.html"]
    assert found(old[:1], old, new) == {0: [b"app/templates/index.html"]}
    assert found([b"one"], old, new) == {}


def test_a_file_without_an_ending_is_of_a_kind_too() -> None:
    old = [b"conf/one", b"conf/two", b"conf/.hidden", b"conf/three.old"]
    assert found(old[:2], old, [b"conf/new", b"conf/.new"]) == {1: [b"conf/.new", b"conf/new"]}


def test_they_are_a_part_of_what_was_read_at_most() -> None:
    old = [b"app/1.js", b"app/2.js"]
    new = [b"app/new-%02d.js" % number for number in range(20)]
    assert found(old, old, new) == {1: new[:8]}
