"""Traces and profiles through the program: learnt, shown, published, kept, and made for a version that is imported later."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from blockmap.cli import profiles as commands
from blockmap.cli.main import program
from blockmap.errors import BlockmapError, NotFound, StoreReadOnly, Untrusted, UsageError
from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.format import BLOCK, bundle, trace
from blockmap.format.signature import PublicKey
from blockmap.format.trace import DECLARED, NEW, READ, End, TraceHead
from blockmap.learn.automatic import learn_from_start
from blockmap.learn.block_index import BlockIndex
from blockmap.learn.stored_index import index_of
from blockmap.store.memory import MemoryStore
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from blockmap.store.packs import Packs
from blockmap.store.profiles import ProfileReader
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from tests.image.builder import bulk, docker_archive, import_image
from tests.image.layouts import Member, archive, directory, file

BASE = [directory("usr"), *(file(f"usr/file-{n}", bulk(n, 20_000)) for n in range(20))]
Call = Callable[..., str]


class Site:
    """A store with the image app:1, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.cache = folder, folder / "store", folder / "cache"
        self.traces = self.cache / "traces"
        self.traces.mkdir(parents=True)
        self.versions: dict[str, Any] = {}
        self.put("app:1", BASE)

    def put(self, name: str, members: list[Member]) -> None:
        image = docker_archive(self.folder / f"{name}.tar".replace(":", "-"), [archive(members)])
        self.versions[name] = import_image(self.store, f"docker-archive:{image}", name, self.folder)

    def layout(self, name: str) -> BlockIndex:
        repository = Repository(open_store(str(self.store))[0])
        return index_of(repository, repository.version(self.versions[name].version).root)

    def known(self) -> set[bytes | None]:
        """Returns the files in the newest profile."""
        found = ProfileReader(open_store(str(self.store))[0]).newest("app", "default")
        return {item.path for item in found.items if item.path} if found else set()

    def start(
        self,
        number: int,
        paths: list[bytes],
        name: str = "app:1",
        flags: int = NEW | DECLARED,
        profile: int = 0,
        end: End = End.QUIET,
        warmed: bool = False,
    ) -> str:
        """Writes the trace of a start that read whole files, but for what the kernel was warmed with."""
        own, summary = self.layout(name), self.versions[name]
        runs = [run for path in paths for run in own.by_path[path].runs]
        if profile and warmed:
            known = blocks_of_list(self.bundle_of(name))
            blocks = [start + at for start, length in runs for at in range(length)]
            runs = [(block, 1) for block in sorted(known)] + [(block, 1) for block in blocks if block not in known]
        reads = [(1000 * at, length * BLOCK, start * BLOCK) for at, (start, length) in enumerate(runs)]
        head = TraceHead(
            "app", "default", summary.version, summary.root, summary.volume_bytes, number, flags, end, 0, profile
        )
        data = trace.encode_head(head) + np.array(reads, READ).tobytes() + bytes(16)
        (self.traces / f"{number:016d}-0.trace").write_bytes(data)
        return f"{number:016d}-0"

    def call(self, *arguments: str) -> str:
        environment = {"BLOCKMAP_STORE": str(self.store), "BLOCKMAP_CACHE": str(self.cache)}
        done = CliRunner().invoke(program, arguments, env=environment)
        if isinstance(done.exception, BlockmapError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    def learn(self, trace: str) -> str:
        """As a server's process does it, without the wait before."""
        return learn_from_start(str(self.store), self.cache, "app:1", self.traces / f"{trace}.trace", print)

    def bundle_of(self, name: str) -> bundle.BundleHead:
        """The one that the name's hint tells."""
        store = open_store(str(self.store))[0]
        told = NameReader(store).hint(*name.split(":"))
        assert told is not None
        (own,) = told.bundles
        assert len(store.get(own.key)) == own.length
        return Packs.open_bundle(store.get_range(own.key, 0, own.table))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def blocks_of_list(head: bundle.BundleHead) -> set[int]:
    return {own.start + at for own in head.read_items for at in range(own.blocks)}


def paths_of(head: bundle.BundleHead) -> list[bytes]:
    return list(dict.fromkeys(own.path for own in head.read_items if own.path is not None))


def test_a_profile_is_built_shown_and_listed(site: Site) -> None:
    for number in (1, 2, 3):
        odd = [b"usr/file-9"] if number == 2 else []
        site.start(number, [b"usr/file-3", b"usr/file-1", *odd])
    site.start(4, [b"usr/file-8"], flags=DECLARED)
    site.start(5, [b"usr/file-8"], flags=NEW)
    summary = json.loads(site.call("profile", "build", "app:1", "--json"))
    assert (summary["n"], summary["starts"], summary["local"]) == (1, 3, None)
    assert summary["bytes"] == 10 * BLOCK
    assert paths_of(site.bundle_of("app:1")) == [b"usr/file-3", b"usr/file-1"]
    shown = site.call("profile", "show", "app:1")
    assert shown.index("/usr/file-3") < shown.index("/usr/file-1")
    assert "file-9" not in shown
    assert "100%" in shown
    assert "app:1" in shown
    (item, *_) = json.loads(site.call("profile", "show", "app:1", "--json"))["items"]
    assert (item["path"], item["file_offset"], item["share"]) == ("usr/file-3", 0, 1.0)
    (row,) = json.loads(site.call("profile", "list", "app", "--json"))
    assert (row["repo"], row["label"], row["n"]) == ("app", "default", 1)
    assert json.loads(site.call("profile", "list", "other", "--json")) == []
    assert "default" in site.call("profile", "list")


def test_a_trace_is_merged_once_unless_it_is_named(site: Site) -> None:
    name = site.start(1, [b"usr/file-1"])
    site.call("profile", "build", "app:1")
    with pytest.raises(NotFound, match="not in its profile yet"):
        site.call("profile", "build", "app:1")
    assert "from 2 starts" in site.call("profile", "build", "app:1", name)


def test_a_new_version_is_fast_at_its_first_start(site: Site) -> None:
    site.start(1, [b"usr/file-1", b"usr/file-2"])
    site.call("profile", "build", "app:1")
    changed = [m for m in BASE if m.path != b"usr/file-1"]
    site.put(
        "app:2", [directory("new"), file("new/f", bulk(99, 50_000)), file("usr/file-1", bulk(77, 30_000)), *changed]
    )
    head = site.bundle_of("app:2")
    assert paths_of(head) == [b"usr/file-1", b"usr/file-2"]
    assert head.read_items[0].path is None, "what finding the first file reads comes first"
    own = site.layout("app:2")
    wanted = {
        b for path in (b"usr/file-1", b"usr/file-2") for s, n in own.by_path[path].runs for b in range(s, s + min(n, 5))
    }
    assert wanted <= {block for r in head.read_items for block in range(r.start, r.start + r.blocks)}


def test_a_bundle_of_another_versions_profile_has_what_may_be_read_besides(site: Site) -> None:
    site.start(1, [b"usr/file-%d" % number for number in range(15)])
    site.call("profile", "build", "app:1")
    site.put("app:2", [*BASE, directory("etc"), directory("usr/local"), directory("usr/local/share")])
    repository = Repository(open_store(str(site.store))[0])
    reader = Ext4Reader(stored_reader(repository, repository.version(site.versions["app:2"].version).root))
    own, head = site.layout("app:2"), site.bundle_of("app:2")
    held = {
        extent.start + block - extent.first
        for piece in head.pieces
        for extent in own.by_chunk[piece.chunk]
        for block in range(extent.first, extent.first + extent.length)
        if piece.mask >> block & 1
    }
    found = {entry.path for entry in reader.walk() if any(start in held for _, start, _ in entry.runs)}
    assert {b"etc", b"usr/local"} <= found, "where files may be looked for in vain"
    assert b"usr/local/share" not in found
    assert {b"usr/file-%d" % number for number in range(20)} <= found, "most files beside them are read"
    assert b"usr/file-19" not in paths_of(head), "that is not certain, and warms no kernel"


def test_other_names_get_bundles_when_a_profile_is_built(site: Site) -> None:
    site.put("app:2", [*BASE, file("more", bulk(50, 9000))])
    site.start(1, [b"usr/file-1"])
    summary = json.loads(site.call("profile", "build", "app:1", "--json"))
    assert len(summary["bundles"]) == 2
    assert paths_of(site.bundle_of("app:2")) == [b"usr/file-1"]
    site.start(2**50, [b"usr/file-5", b"more"], name="app:2")
    site.call("profile", "build", "app:1", f"{2**50:016d}-0")
    assert site.known() == {b"usr/file-1", b"usr/file-5"}
    assert sum(piece.mask.bit_count() for piece in site.bundle_of("app:1").pieces) >= 10, "whether it is listed or not"


def test_a_server_publishes_only_what_it_learnt(site: Site) -> None:
    reader = ProfileReader(open_store(str(site.store))[0])
    first = site.start(1, [b"usr/file-1", b"usr/file-2"])
    assert "profile 1 of 2 items" in site.learn(first)
    assert reader.number("app", "default") == 1
    assert "nothing new learnt" in site.learn(first)
    for flags in (DECLARED, NEW):
        assert "nothing new learnt" in site.learn(site.start(2, [b"usr/file-7"], flags=flags))
    replayed = site.start(3, [b"usr/file-1"], profile=1)
    assert "nothing new learnt" in site.learn(replayed)
    assert reader.number("app", "default") == 1
    other = site.start(4, [b"usr/file-1", b"usr/file-7"], profile=1)
    site.learn(other)
    found = reader.newest("app", "default")
    assert found is not None
    assert (found.n, found.starts) == (2, 1)
    assert {item.path for item in found.items} == {b"usr/file-1", b"usr/file-2", b"usr/file-7"}


def test_the_process_of_a_server_says_last_what_came_of_it(site: Site) -> None:
    trace = site.traces / f"{site.start(1, [b'usr/file-1'])}.trace"
    at_once = "import random, runpy; random.uniform = lambda low, high: 0; "
    code = at_once + "runpy.run_module('blockmap.learn.automatic', run_name='__main__')"

    def run(export: str, *trusted: str) -> tuple[int, str]:
        command = [sys.executable, "-c", code, str(site.store), str(site.cache), export, str(trace), *trusted]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.returncode, done.stdout.splitlines()[-1]

    assert run("app:1+default") == (0, "profile 1 of 1 items from 1 starts, with bundles for 1 versions")
    assert run("app:1+default") == (0, "nothing new learnt from this start, 0% of it was not known")
    assert "entry 1 of app:1 is not signed" in run("app:1+default", str(PublicKey(bytes(32))))[1]
    code_of_failure, said = run("other:1+default")
    assert code_of_failure == 1
    assert "other" in said


def test_nothing_is_learnt_about_what_no_trusted_key_signed(site: Site) -> None:
    site.start(1, [b"usr/file-1"])
    with pytest.raises(Untrusted, match="entry 1 of app:1 is not signed"):
        site.call("profile", "build", "app:1", "--trust", str(PublicKey(bytes(32))))


def test_a_damaged_profile_is_followed_by_a_whole_one(site: Site) -> None:
    site.start(1, [b"usr/file-1"])
    site.call("profile", "build", "app:1")
    (path,) = (site.store / "profiles").rglob("0*1")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    site.start(2**50, [b"usr/file-2"])
    said = site.call("profile", "build", "app:1")
    assert "what was learnt before is not used" in said
    found = ProfileReader(open_store(str(site.store))[0]).newest("app", "default")
    assert found is not None
    assert {item.path for item in found.items} == {b"usr/file-1", b"usr/file-2"}


def test_a_start_that_failed_is_not_learnt_even_by_name(site: Site) -> None:
    name = site.start(1, [b"usr/file-7"], end=End.FAILED)
    with pytest.raises(NotFound, match="nothing was learnt"):
        site.call("profile", "build", "app:1", name)
    with pytest.raises(NotFound, match="not in its profile yet"):
        site.call("profile", "build", "app:1")
    assert "nothing new learnt" in site.learn(name)
    assert ProfileReader(open_store(str(site.store))[0]).number("app", "default") == 0


def test_a_profile_is_followed_by_one_that_was_before_or_by_none(site: Site) -> None:
    for number in (1, 2):
        name = site.start(number, [b"usr/file-%d" % number])
        site.call("profile", "build", "app:1", name)
    site.put("app:2", [*BASE, file("more", bulk(50, 9000))])
    assert paths_of(site.bundle_of("app:2")) == [b"usr/file-1", b"usr/file-2"]
    said = site.call("profile", "use", "app:1", "1")
    assert said.startswith("profile 3 of app+default: ")
    assert "from 1 starts, with bundles for 2 versions" in said
    assert site.known() == {b"usr/file-1"}
    for image in ("app:1", "app:2"):
        assert paths_of(site.bundle_of(image)) == [b"usr/file-1"]
    assert "profile 4 of" in site.call("profile", "reset", "app:1")
    for image in ("app:1", "app:2"):
        assert site.bundle_of(image).read_items == site.bundle_of(image).pieces == []
    rows = json.loads(site.call("profile", "log", "app:1", "--json"))
    assert [(row["n"], row["starts"]) for row in rows] == [(4, 0), (3, 1), (2, 2), (1, 1)]
    assert rows[0]["bytes"] == 0 < rows[1]["bytes"] == rows[3]["bytes"] < rows[2]["bytes"]
    assert [row["n"] for row in json.loads(site.call("profile", "log", "app:1", "--json", "--limit", "1"))] == [4]
    assert len(site.call("profile", "log", "app:1").splitlines()) == 5
    assert "items       0" in site.call("profile", "show", "app:1")
    assert "profile 5 of 1 items from 1 starts" in site.learn(site.start(2**50, [b"usr/file-7"], profile=4))
    assert paths_of(site.bundle_of("app:2")) == [b"usr/file-7"]
    with pytest.raises(NotFound):
        site.call("profile", "use", "app:1", "9")
    with pytest.raises(NotFound, match="no profile of app"):
        site.call("profile", "reset", "app:1", "--label", "other")
    assert json.loads(site.call("profile", "log", "app:1+other", "--json")) == []
    assert ProfileReader(open_store(str(site.store))[0]).number("app", "default") == 5


def test_a_start_of_a_profile_of_most_of_the_image_is_no_scan(site: Site) -> None:
    site.put("app:1", [directory("usr"), *(file(f"usr/file-{n}", bulk(n, 9000)) for n in range(100))])
    paths = [b"usr/file-%d" % number for number in range(100)]  # as they lie in the volume
    site.call("profile", "build", "app:1", site.start(1, [paths[37 * number % 100] for number in range(60)]))
    others = [path for path in paths if path not in site.known()]
    assert "nothing new learnt" in site.learn(site.start(2**50, [*paths[:10], *others], profile=1)), (
        "it copies the rest"
    )
    # The kernel's warming is in the trace, as the files lie.
    own = site.start(2**50 + 1, [*sorted(site.known(), key=paths.index), *others[::-1][:10]], profile=1)
    assert "profile 2 of" in site.learn(own)


def test_a_spoiled_profile_gets_well_by_ordinary_starts(site: Site) -> None:
    paths = [b"usr/file-%d" % number for number in range(300)]
    site.put("app:1", [directory("usr"), *(file(path.decode(), bulk(n, 9000)) for n, path in enumerate(paths))])
    wanted = paths[::7]
    site.call("profile", "build", "app:1", site.start(1, [paths[37 * number % 300] for number in range(300)]))
    assert len(site.known()) == 300
    starts = 0
    while len(site.known()) > 1.1 * len(wanted):
        starts += 1
        assert starts <= 40
        n = ProfileReader(open_store(str(site.store))[0]).number("app", "default")
        head = site.bundle_of("app:1")
        listed, brought = blocks_of_list(head), sum(piece.mask.bit_count() for piece in head.pieces)
        assert len(listed) < brought, "a part is brought, and not listed"
        assert "profile" in site.learn(site.start(2**50 + n, wanted, profile=n, warmed=True))
    assert set(wanted) <= site.known()


def test_a_scan_is_no_start(site: Site) -> None:
    site.put("app:1", [directory("usr"), *(file(f"usr/file-{n}", bulk(n, 9000)) for n in range(100))])
    paths = [b"usr/file-%d" % number for number in range(100)]  # as they lie in the volume
    scan = site.start(1, paths)
    assert "nothing new learnt" in site.learn(scan)
    with pytest.raises(NotFound, match="nothing was learnt"):
        site.call("profile", "build", "app:1", scan)
    own = site.start(2, [paths[37 * number % 100] for number in range(70)])
    assert "profile 1 of" in site.learn(own)


def test_warm_starts_alone_are_a_guess(site: Site) -> None:
    warm = site.start(1, [b"usr/file-7"], flags=0)
    assert "no start was on a host that had nothing" in site.call("profile", "build", "app:1", warm)


class Sealed(MemoryStore):
    """Credentials that can only read."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.get, self.list, self.get_range, self.exists = inner.get, inner.list, inner.get_range, inner.exists  # type: ignore[method-assign]

    def create(self, key: str, parts: Any) -> None:
        raise StoreReadOnly("these credentials cannot write")


def test_read_only_credentials_keep_a_profile_on_the_host(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start(1, [b"usr/file-1"])
    opened, form = open_store(str(site.store))
    monkeypatch.setattr(commands, "open_store", lambda url: (Sealed(opened), form))
    said = site.call("profile", "build", "app:1")
    kept = site.cache / "profiles/app/default"
    assert f"stays on this host, in {kept}" in said
    assert stat.S_ISREG(kept.stat().st_mode)
    assert ProfileReader(opened).number("app", "default") == 0
    assert "of this host" in site.call("profile", "show", "app:1")
    assert "from 2 starts" in site.call("profile", "build", "app:1", f"{1:016d}-0")


def test_traces_are_listed_shown_and_exported(site: Site) -> None:
    name = site.start(1, [b"usr/file-3", b"usr/file-1"])
    (site.traces / "junk.trace").write_bytes(b"junk")
    listed = site.call("trace", "list")
    assert name in listed
    assert "junk.trace is left out" in listed
    about = json.loads(site.call("trace", "show", name, "--json"))
    assert (about["repo"], about["reads"], about["bytes"], about["end"]) == ("app", 2, 10 * BLOCK, "quiet")
    files = site.call("trace", "show", name, "--files")
    assert files.index("/usr/file-3") < files.index("/usr/file-1")
    rows = [json.loads(line) for line in site.call("trace", "export", name).splitlines()]
    assert [row["time_us"] for row in rows] == [0, 1000]
    assert site.call("trace", "export", name, "--csv").splitlines()[0] == "time_us,offset,length"
    with pytest.raises(UsageError, match="there is no trace"):
        site.call("trace", "show", "none")


def test_a_trace_of_another_image_is_refused(site: Site) -> None:
    name = site.start(1, [b"usr/file-3"])
    with pytest.raises(UsageError, match="is not of app"):
        site.call("profile", "build", "app:1", "--label", "migrate", name)
    with pytest.raises(NotFound, match="no profile of app"):
        site.call("profile", "show", "app:1", "--label", "migrate")
