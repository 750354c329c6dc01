"""Stores by URL: what is made, what is recognised, what is refused, and what the messages say."""

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.errors import (
    AlreadyExists,
    BlockmapError,
    NotAStore,
    StoreReadOnly,
    StoreRefused,
    StoreTooNew,
    StoreUnavailable,
    UsageError,
)
from blockmap.format.chunker import Parameters
from blockmap.store import probe
from blockmap.store.base import Buffer
from blockmap.store.directory import DirectoryStore
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import create_store, open_store, open_writer


@pytest.mark.parametrize("as_url", [str, lambda path: f"file://{path}"])
def test_a_store_is_made_and_opened(tmp_path: Path, as_url: type[str]) -> None:
    url = as_url(tmp_path / "new/store")
    made, form = create_store(url)
    assert made.list("") == ["format"]
    assert os.listdir(tmp_path / "new/store") == ["format"]
    opened, again = open_store(url)
    assert again == form
    assert form.chunker == Parameters(bits=4, min=4, max=64)
    assert form.writable
    opened.create("packs/aa/x", [b"data"])
    assert made.get("packs/aa/x") == b"data"


def test_two_stores_have_two_names(tmp_path: Path) -> None:
    assert create_store(str(tmp_path / "a"))[1].store != create_store(str(tmp_path / "b"))[1].store


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made, _ = create_store("store")
    monkeypatch.chdir("/")
    assert made.get("format")


def test_a_new_file_system_is_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    create_store(str(tmp_path))
    assert open_store(str(tmp_path))[0].list("") == ["format"]


def test_an_attempt_that_was_broken_off_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "probe-0123").write_bytes(b"x")
    (tmp_path / ".tmp-0123").write_bytes(b"x")
    create_store(str(tmp_path))
    open_writer(str(tmp_path))


def test_creating_twice_is_a_mistake(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    before = (tmp_path / "format").read_bytes()
    with pytest.raises(UsageError, match="is a blockmap store already"):
        create_store(str(tmp_path))
    assert (tmp_path / "format").read_bytes() == before


@pytest.mark.parametrize("make", [create_store, open_writer])
def test_a_directory_of_something_else_is_refused(tmp_path: Path, make: type[object]) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(NotAStore) as caught:
        make(str(tmp_path))
    if make is create_store:
        assert "neither empty nor a store, it holds a.txt, b.txt:" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("make", [create_store, open_writer, open_store])
def test_a_file_is_no_store(tmp_path: Path, make: type[object]) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotAStore):
        make(str(tmp_path / "file"))


@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_link_to_nowhere_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(
        NotAStore, match=f"{tmp_path}/link is a symbolic link to nowhere, which is not there: make that"
    ):
        create_store(f"{tmp_path}/link{below}")
    (tmp_path / "nowhere").mkdir()
    create_store(f"{tmp_path}/link{below}")


def test_what_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    for url in (str(tmp_path), str(tmp_path / "absent")):
        for use in (open_store, open_writer):
            with pytest.raises(NotAStore, match=f"blockmap create {url}"):
                use(url)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("url", ["ftp://host/path", "file://host/path", "nbd://x"])
def test_unknown_kinds_say_which_are_known(url: str) -> None:
    for make in (create_store, open_writer, open_store):
        with pytest.raises(UsageError, match="file:///DIRECTORY"):
            make(url)


def test_of_many_who_make_a_store_at_once_one_does(tmp_path: Path) -> None:
    for attempt in range(10):
        url = str(tmp_path / f"store{attempt}")
        start = threading.Barrier(4)

        def make(_: int, url: str = url, start: threading.Barrier = start) -> str | None:
            start.wait()
            try:
                return create_store(url)[1].store
            except (UsageError, NotAStore):
                return None

        with ThreadPoolExecutor(4) as pool:
            made = [name for name in pool.map(make, range(4)) if name is not None]
        assert made == [open_store(url)[1].store]


# --- the object `format`


def rewrite(path: Path, **changes: object) -> None:
    value = json.loads((path / "format").read_text())
    (path / "format").write_text(json.dumps(value | changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": 2}, "version 2"),
        ({"requires": ["enc1"]}, "enc1"),
        ({"requires": ["enc1", "sharded"], "version": 3}, "enc1, sharded"),
        ({"chunker": {"hash": "gear", "bits": 4, "min": 4, "max": 64}}, "gear"),
    ],
)
def test_a_newer_store_is_refused_by_name(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    create_store(str(tmp_path))
    rewrite(tmp_path, **changes)
    for make in (open_store, open_writer):
        with pytest.raises(StoreTooNew, match=f"needs {named}|cuts by {named}"):
            make(str(tmp_path))


def test_what_may_be_unknown_makes_it_read_only(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    rewrite(tmp_path, may=["profiles2"])
    assert not open_store(str(tmp_path))[1].writable
    with pytest.raises(StoreReadOnly, match="upgrade blockmap"):
        open_writer(str(tmp_path))


def test_more_keys_are_nobody_s_concern(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    rewrite(tmp_path, comment="ours")
    assert open_store(str(tmp_path))[1].writable


DAMAGE: list[dict[str, object]] = [
    {"version": "1"},
    {"version": True},
    {"version": None},
    {"requires": None},
    {"requires": "enc1"},
    {"requires": {}},
    {"may": 0},
    {"chunker": None},
    {"chunker": []},
    {"chunker": {"hash": "xxh3-64"}},
    {"chunker": {"hash": "xxh3-64", "bits": "4", "min": 4, "max": 64}},
    {"chunker": {"hash": "xxh3-64", "bits": 4.5, "min": 4, "max": 64}},
    {"chunker": {"hash": "xxh3-64", "bits": 4, "min": 65, "max": 64}},
    {"chunker": {"hash": "xxh3-64", "bits": 4, "min": 4, "max": 1 << 40}},
]


@pytest.mark.parametrize("changes", DAMAGE)
def test_a_damaged_format_is_said(tmp_path: Path, changes: dict[str, object]) -> None:
    create_store(str(tmp_path))
    rewrite(tmp_path, **changes)
    with pytest.raises(NotAStore, match="format"):
        open_store(str(tmp_path))


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"3", b"null", b"{", b"[" * 100_000, b'"x"', b"9" * 5000])
def test_anything_else_is_no_store(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "format").write_bytes(text)
    with pytest.raises(NotAStore):
        open_store(str(tmp_path))


# --- the probe


class Overwrites(MemoryStore):
    """As `rclone serve s3` and others do: a conditional create is an ordinary one."""

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self.replace(key, b"".join(parts))


class Refuses(MemoryStore):
    """Every create is lost to somebody."""

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        raise AlreadyExists(key)


class Races(MemoryStore):
    """As Swift does: looks whether the object is there, then writes it."""

    def __init__(self) -> None:
        super().__init__()
        self._looked = threading.Barrier(2)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        if self.exists(key):
            raise AlreadyExists(key)
        try:
            self._looked.wait(timeout=5)
        except threading.BrokenBarrierError:
            raise AlreadyExists(key) from None
        self.replace(key, b"".join(parts))


class WholeForRange(MemoryStore):
    """Answers a range with the object's first bytes."""

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self.get(key)


def test_engines_that_keep_their_promises_pass() -> None:
    store = MemoryStore()
    probe.check(store)
    assert store.list("") == []


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (Overwrites(), "let 8 of 8 parallel writers"),
        (Refuses(), "let 0 of 8 parallel writers"),
        (Races(), r"let [2-8] of 8 parallel writers"),
        (WholeForRange(), "range"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_engines_that_do_not_are_refused(store: MemoryStore, says: str) -> None:
    with pytest.raises(StoreRefused, match=says):
        probe.check(store)
    assert store.list("") == []


def test_an_engine_that_fails_is_not_taken_for_one_that_lies() -> None:
    class Fails(MemoryStore):
        def create(self, key: str, parts: Sequence[Buffer]) -> None:
            raise StoreUnavailable("no answer")

    with pytest.raises(StoreUnavailable):
        probe.check(Fails())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreReadOnly, match="permissions"):
            create_store(str(tmp_path / "store"))
    finally:
        tmp_path.chmod(0o700)


def test_errors_of_the_system_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = create_store(str(tmp_path))

    def fail(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        patch.setattr(os, "stat", fail)
        patch.setattr(os, "open", fail)
        patch.setattr(os, "scandir", fail)
        for call in (
            lambda: create_store(str(tmp_path)),
            lambda: store.exists("packs/x"),
            lambda: store.get_range("packs/x", 0, 1),
            lambda: store.list(""),
        ):
            with pytest.raises(StoreUnavailable, match="Permission denied"):
                call()
    assert issubclass(StoreUnavailable, BlockmapError)
    assert isinstance(store, DirectoryStore)
