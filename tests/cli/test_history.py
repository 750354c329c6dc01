"""`log`, `diff`, `tag`, `untag`, and names as they were."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockmap.cli.history import diff, log, tag, untag
from blockmap.cli.images import show
from blockmap.errors import BlockmapError, NotFound, UsageError
from blockmap.format.refs import parse_reference
from blockmap.store.directory import DirectoryStore
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout
from tests.store.made import open_or_create

HOUR = 3600
BEGIN = 1_700_000_000
"""2023-11-14 22:13:20 UTC."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store where app:1 was two images in turn, one hour apart, then removed, then the first again."""
    where = tmp_path / "store"
    for number in (1, 2):
        members = [file("base", bulk(1, 200_000)), file("own", bulk(number + 1, 100_000))]
        import_image(where, f"oci:{layout(tmp_path / str(number), [archive(members)])}", f"v:{number}", tmp_path)
    opened, _ = open_or_create(str(where))
    drafts = []
    for number in (1, 2):
        found = find_version(Repository(opened), parse_reference(f"v:{number}")).version
        drafts.append(EntryDraft.of(found, 1, f"number {number}"))
    now = BEGIN
    name = NameTarget("app", "1")
    names = NameLog(opened, clock=lambda: now)
    for draft in (drafts[0], drafts[1], None, drafts[0]):
        if draft is None:
            names.remove(name, "not wanted")
        else:
            names.set(name, draft)
        now += HOUR
    return where


def run(command: object, store: Path, *arguments: str) -> str:
    result = CliRunner().invoke(command, ["--store", str(store), *arguments], catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output


def shown(store: Path, name: str) -> str:
    """Returns the digest of what a name stands for."""
    return run(show, store, name).split("@sha256:")[1][:12]


def test_log_shows_what_a_name_stood_for(store: Path) -> None:
    steps = json.loads(run(log, store, "app:1", "--json"))
    assert [step["entry"] for step in steps] == [4, 3, 2, 1]
    assert [step["message"] for step in steps] == ["number 1", "not wanted", "number 2", "number 1"]
    assert steps[0]["digest"] == steps[3]["digest"] != steps[2]["digest"]
    assert steps[1]["digest"] is None
    assert steps[3]["time"] == "2023-11-14T22:13:20Z"
    assert 100_000 < steps[2]["added_bytes"] < 180_000, "what both have is not added"
    said = run(log, store, "app:1", "-n", "2")
    assert "removed" in said
    assert len(said.splitlines()) == 3
    with pytest.raises(NotFound, match="no image none:latest"):
        run(log, store, "none")


def test_a_name_is_taken_as_it_was(store: Path) -> None:
    first, second = shown(store, "v:1"), shown(store, "v:2")
    assert first != second
    for past, found in {
        "1": first, "2": second, "4": first, "2023-11-14T22:13:20": first, "2023-11-14T23:13:20Z": second,
        "2023-11-14 23:00": first, "2023-11-15": second, "2024-01-01": first, "5 minutes ago": first,
    }.items():  # fmt: skip
        assert shown(store, f"app:1@{{{past}}}") == found, past
    for past in ("3", "5", "2023-11-15T00:13:20Z", "2023-11-14", "90000 weeks ago"):
        with pytest.raises(NotFound, match=r"app:1 was no image at .*blockmap log app:1"):
            run(show, store, f"app:1@{{{past}}}")


def test_tag_and_untag(store: Path) -> None:
    digest = shown(store, "v:2")
    assert "entry 1 of its name" in run(tag, store, "app:1@{2}", "new", "-m", "kept")
    assert "it stood for it already" in run(tag, store, f"app@sha256:{full(store, 'v:2')}", "new")
    assert shown(store, "new") == digest
    assert "it was new:latest@{1}" in run(untag, store, "new", "-m", "no more")
    with pytest.raises(NotFound, match="no image new:latest"):
        run(show, store, "new")
    with pytest.raises(NotFound, match="no image new:latest"):
        run(untag, store, "new")
    assert shown(store, "new@{1}") == digest
    assert [step["message"] for step in json.loads(run(log, store, "new", "--json"))] == ["no more", "kept"]
    for command, arguments in ((tag, ("none", "x")), (untag, ("none",)), (tag, ("v:1", "x@{1}")), (untag, ("x@{1}",))):
        before = sorted(DirectoryStore(store).list("names/"))
        with pytest.raises((NotFound, UsageError)):
            run(command, store, *arguments)
        assert sorted(DirectoryStore(store).list("names/")) == before


def full(store: Path, name: str) -> str:
    return run(show, store, name).split("@sha256:")[1].split()[0]


def test_diff_shows_files_or_ranges(store: Path) -> None:
    said = run(diff, store, "v:1", "v:2")
    assert said.splitlines()[0] == "M    100 kB  /own"
    assert said.splitlines()[1].startswith("1 files, ")
    found = json.loads(run(diff, store, "v:1", "v:2", "--json"))
    assert found["files"] == [{"change": "modified", "path": "own", "size": 100_000}]
    ranges = json.loads(run(diff, store, "v:1", "v:2", "--json", "--ranges"))["ranges"]
    assert sum(length for _, length in ranges) == found["differing_bytes"]
    assert all(start % 4096 == 0 for start, _ in ranges)
    assert "0 files, 0 B of the volume differ" in run(diff, store, "v:1", "app:1")


def test_a_disk_image_has_ranges_alone(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        (tmp_path / "disk").write_bytes(bulk(number, 40_960))
        import_image(store, str(tmp_path / "disk"), f"disk:{number}", tmp_path)
    result = CliRunner().invoke(diff, ["--store", str(store), "disk:1", "disk:2"])
    assert result.exit_code == 0
    assert "the files are not compared" in caplog.text
    assert "41.0 kB of the volume differ" in result.output


def test_history_through_a_web_server_may_be_read_only(store: Path) -> None:
    with pytest.raises(BlockmapError):
        run(untag, Path("http://127.0.0.1:9/store"), "app:1")
