"""What a report finds in the store, and asks of a server."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.errors import Corrupt, FormatError, UsageError
from blockmap.format import BLOCK, bundle, keys, profile
from blockmap.format.digest import Digest
from blockmap.format.reading_list import ReadItem
from blockmap.format.refs import parse_reference
from blockmap.format.trace import End, Trace, TraceHead
from blockmap.report import sources
from blockmap.report.data import ReportRun
from blockmap.store.call import Call
from blockmap.store.opening import open_store
from blockmap.store.packs import Sealer, compress
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from tests.report.hostile import Made, make, reads_of
from tests.serve.conftest import bare_server, images  # noqa: F401

OTHER = Digest(b"\1" * 32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def repository(made: Made) -> Repository:
    return Repository(open_store(str(made.store))[0])


def run_of(head: TraceHead, repository: Repository | None, *reads: tuple[int, int, int]) -> ReportRun:
    return sources.load_run(Trace(head, reads_of(*reads)), repository, lambda text: None)


def test_names_choose_by_label_and_version(made: Made, repository: Repository) -> None:
    folder = made.cache / "traces"
    moved = replace(made.head, version=OTHER, label="migrate", started_us=made.head.started_us + 90_000_000)
    path = made.write_trace("other", Trace(moved, reads_of((1, 0, 1))))
    (folder / "broken.trace").write_bytes(b"no trace")

    def started(*words: str, label: str | None = None) -> list[int]:
        found = sources.find_traces(words, folder, label, repository)
        return [(each.head.started_us - made.head.started_us) // 1_000_000 for each in found]

    assert started("evil") == [90]
    assert started("evil", "evil", "evil") == [0, 60, 90]
    assert started("evil:1") == [60], "a tag says which version"
    assert started("evil", label="default") == [60]
    assert started("evil+migrate", "evil:1") == [90, 60]
    assert started("first", "second.trace", str(folder / "first.trace")) == [0, 60, 0]
    with pytest.raises(UsageError, match="2 traces of evil:1, not 3"):
        started("evil:1", "evil:1", "evil:1")
    with pytest.raises(UsageError, match="only the store knows"):
        sources.find_traces(["evil:1"], folder, None, None)
    with pytest.raises(FormatError, match=r"broken\.trace"):
        started(str(folder / "broken.trace"))
    path.unlink()


def test_the_profile_that_was_replayed_comes_before_the_newest(made: Made, repository: Repository) -> None:
    found = sources.find_profile(run_of(replace(made.head, profile=1), repository), repository, None)
    assert isinstance(found, sources.Profiled)
    assert found.replayed
    assert len(found.blocks) == 4
    assert "Profile 7 cannot be compared" in str(
        sources.find_profile(run_of(replace(made.head, profile=7), repository), repository, None)
    )
    newest = sources.find_profile(run_of(made.head, repository), repository, None)
    assert isinstance(newest, sources.Profiled)
    assert (newest.profile.n, newest.replayed) == (1, False)
    nothing = sources.find_profile(run_of(replace(made.head, label="other"), repository), repository, None)
    assert nothing == "evil has no profile for the label other yet."


def test_a_profile_of_another_version_is_placed_by_the_bundle_of_this_one(made: Made, repository: Repository) -> None:
    run = run_of(replace(made.head, version=OTHER, root=OTHER), None, (1, 0, 1))
    assert "cannot be compared: there is no version" in str(sources.find_profile(run, repository, 1))
    chunk = bytes(range(256)) * (2 * BLOCK // 256)
    for chunks in ([], [(OTHER, 3, chunk)]):
        parts, _ = bundle.encode(
            [], chunks, [ReadItem(5, 2, b"a", 0), ReadItem(9, 1, None, 0)], 12, bytes(16), Sealer().seal, compress
        )
        data = b"".join(parts)
        path = made.store / keys.bundle(OTHER, "default", 1, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found = sources.find_profile(run, repository, 1)
        assert isinstance(found, sources.Profiled)
        assert found.blocks.tolist() == [5, 6, 9]
    path.write_bytes(data[:40])
    with pytest.raises(Corrupt, match=r"bundles/.* ends at byte"):
        sources.find_profile(run, repository, 1)
    path.unlink()


def test_a_profile_is_ported_to_a_version_without_a_bundle(made: Made, repository: Repository, tmp_path: Path) -> None:
    name = b"line\nbreak\x1b[31m"
    start, blocks = made.runs()[name]
    item = profile.ProfileItem(start + 1000, 1, OTHER, 0, name, 1, 5, 1)
    foreign = profile.Profile("evil", "ported", 1, OTHER, OTHER, 1, [item])
    path = made.store / keys.profile("evil", "ported", 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(profile.encode(foreign, compress))
    found = sources.find_profile(run_of(replace(made.head, label="ported"), repository), repository, None)
    assert isinstance(found, sources.Profiled)
    assert (blocks, found.blocks.tolist()) == (2, [start + 1])


def test_what_the_store_lacks_is_said_and_the_rest_shown(made: Made, repository: Repository) -> None:
    said: list[str] = []
    trace = Trace(replace(made.head, version=OTHER, root=OTHER), reads_of((1, 3, 2)))
    run = sources.load_run(trace, repository, said.append)
    assert len(said) == 1
    assert (run.touched_bytes, run.file_count, run.image.data_bytes) == (2 * BLOCK, 0, None)


def test_calls_of_a_start_begin_with_those_that_led_to_its_open() -> None:
    calls = [
        Call("get", "k", start, seconds, 0, None)
        for start, seconds in ((-9, 7), (-0.9, 0.4), (-0.3, 0.1), (0.5, 1), (2, 1))
    ]
    assert sources.during(calls, 2.0) == calls[1:4]


def test_a_server_tells_what_it_asked_the_store_for_during_a_start(
    images: Path,  # noqa: F811
    tmp_path: Path,
    need: Callable[..., None],
) -> None:
    need("nbdkit", "nbdcopy")
    with bare_server(tmp_path) as server:
        server.run("import", f"oci:{images}/1:1", "small:1", "--platform", "linux/amd64")
        repository = Repository(open_store(str(server.store))[0])
        found = find_version(repository, parse_reference("small:1"))
        size = found.root.size * BLOCK
        before = TraceHead("small", "default", found.name, found.root.digest, size, int(time.time() * 1e6))
        server.start()
        opened_us = int(time.time() * 1e6)
        subprocess.run(["nbdcopy", server.uri("small:1"), "null:"], check=True)
        took_ms = (int(time.time() * 1e6) - opened_us) // 1000 + 1
        head = replace(before, started_us=opened_us, ready_ms=took_ms, end=End.READY)
        run = run_of(head, None, (0, 0, 1))
        calls = sources.server_calls(server.client, run)
        assert not isinstance(calls, str)
        assert any(call.op == "get_range" for call in calls)
        assert all(call.start_s < run.end_s for call in calls)
        assert "began only after" in str(sources.server_calls(server.client, run_of(before, None)))
        strange = run_of(replace(head, version=OTHER), None)
        assert "not served this version" in str(sources.server_calls(server.client, strange))
        client = server.client
        server.stop()
        assert "no server answers" in str(sources.server_calls(client, run))
