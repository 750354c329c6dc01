"""What was captured of a clone becomes a version: whole, once, and only over what it was made of."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockmap.commit.config_changes import changed_config, parse_changes
from blockmap.commit.publisher import Publisher
from blockmap.commit.task import PublishTask
from blockmap.errors import NameMoved, NotFound, StoreUnavailable, UsageError
from blockmap.format import BLOCK, keys, version
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.publish import publication
from blockmap.publish.reliance import tag_version
from blockmap.store.base import Buffer, Listed
from blockmap.store.directory import DirectoryStore
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.volume.clone_table import CaptureDraft, CloneTable
from blockmap.volume.overlay import Held, Kind
from tests.commit.disk_clone import SIZE, CloneOnDisk
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout
from tests.store.signers import signer
from tests.store.steps import Steps


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[CloneOnDisk]:
    made = CloneOnDisk(tmp_path)
    yield made
    made.table.close()


def test_a_version_is_the_moment_and_names_its_parent(clone: CloneOnDisk) -> None:
    clone.write(5 * BLOCK + 100, b"written")
    clone.zero(0, 3 * BLOCK)
    clone.write(50 * BLOCK, bulk(7, 3 * BLOCK))
    moment = bytes(clone.content)
    number = clone.capture("disk:1")
    clone.write(9 * BLOCK, b"later")
    done = clone.publish(number)
    assert done.entry == 2
    assert clone.bytes(done.export) == clone.bytes("disk:1") == moment
    version = find_version(clone.repository, parse_reference("disk:1")).version
    base = find_version(clone.repository, parse_reference("disk:1@{1}")).version
    assert version.parents == (base.name,)
    assert (version.author, version.message, version.layout) == ("who", "why", base.layout)
    clone.finish(number, done)
    assert clone.record.base == done.export
    assert len(clone.table.layers(clone.record)) == 1, "what the version has is no layer any more"
    second = clone.publish(clone.capture("disk:1", nonce="n2"))
    assert second.entry == 3
    assert clone.bytes(second.export) == clone.content


def test_a_commit_does_not_take_over_the_signature_of_its_base(clone: CloneOnDisk) -> None:
    signed = tag_version(
        open_writer(str(clone.store))[0], parse_reference("disk:1"), NameTarget("disk", "1"), "", None, signer(1)
    )
    assert signed[1] is not None
    # The clone's record of its version is the signed one.
    (clone.store / keys.version(Digest(bytes.fromhex(clone.record.base.partition(":")[2])), 1)).unlink()
    clone.write(0, b"written")
    done = clone.publish(clone.capture("disk:2"))
    assert find_version(clone.repository, parse_reference(clone.record.base)).version.signature is not None
    assert find_version(clone.repository, parse_reference(done.export)).version.signature is None


def test_a_commit_is_signed_with_the_key_that_is_given(clone: CloneOnDisk) -> None:
    clone.write(0, b"x")
    number = clone.capture("disk:1")
    clone.publish(number, signer(1))
    entry = NameLog(open_writer(str(clone.store))[0]).newest("disk", "1")
    assert entry is not None
    assert signer(1).has_signed_entry(entry)
    assert signer(1).has_signed_version(find_version(clone.repository, parse_reference("disk:1")).version)
    assert not signer(2).has_signed_entry(entry)


def test_a_commit_stores_what_changed_and_reads_no_chunk_of_the_base(
    clone: CloneOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.write(5 * BLOCK, bulk(7, BLOCK))
    number = clone.capture("other:1")
    before = {path: path.stat().st_size for path in clone.store.rglob("packs/*/*")}
    ranges: list[str] = []
    get_range = DirectoryStore.get_range

    def noted(self: DirectoryStore, key: str, start: int, end: int) -> bytes:
        ranges.append(key)
        return get_range(self, key, start, end)

    monkeypatch.setattr(DirectoryStore, "get_range", noted)
    clone.publish(number)
    base = find_version(clone.repository, parse_reference("disk:1"))
    assert base.root.placement is not None
    assert {key.rsplit("/", 1)[1] for key in ranges if key.startswith("packs/")} == {base.root.placement.pack.hex()}
    added = {path: path.stat().st_size for path in clone.store.rglob("packs/*/*") if path not in before}
    assert len(added) == 2
    assert sum(added.values()) < 2 * BLOCK + 2000


def test_an_attempt_that_was_killed_after_the_entry_is_found_again(clone: CloneOnDisk) -> None:
    clone.write(0, b"x")
    number = clone.capture("disk:1")
    done = clone.publish(number)
    objects = sorted(clone.store.rglob("*"))
    assert replace(clone.publish(number), nodes=done.nodes) == done
    assert sorted(clone.store.rglob("*")) == objects
    NameLog(open_writer(str(clone.store))[0]).remove(NameTarget("disk", "1"), "somebody else")
    assert replace(clone.publish(number), nodes=done.nodes) == done


def test_an_attempt_whose_version_was_collected_since_is_made_again(clone: CloneOnDisk) -> None:
    """It was killed between its entry and its look at the log of collections, which would have taken the entry back."""
    clone.write(0, bulk(3, 3 * BLOCK))
    number = clone.capture("other:1")
    before = set(clone.store.rglob("*/*"))
    lost = clone.publish(number)
    for path in set(clone.store.rglob("*/*")) - before:
        if path.is_file() and path.relative_to(clone.store).parts[0] in ("packs", "versions"):
            path.unlink()
    done = clone.publish(number)
    assert done.entry == lost.entry + 1
    assert clone.bytes(done.export) == clone.bytes("other:1") == clone.content


def test_a_name_that_moved_on_is_not_taken_without_force(clone: CloneOnDisk, tmp_path: Path) -> None:
    clone.write(0, b"mine")
    number = clone.capture("disk:1")
    (tmp_path / "disk").write_bytes(bulk(9, SIZE))
    import_image(clone.store, str(tmp_path / "disk"), "disk:1", tmp_path)
    with pytest.raises(NameMoved, match=r"disk:1 has moved on since c was made of it.*--force"):
        clone.publish(number)
    clone.table.note_conflict(number, "it moved")
    assert clone.table.captures()[0].conflict == "it moved"
    clone.table.redirect(number, "disk", "1", True)
    assert clone.table.captures()[0].conflict == ""
    assert clone.publish(number).entry == 3
    other = clone.publish(clone.capture("mine:1", nonce="n2"))
    assert clone.bytes(other.export) == clone.content


@pytest.mark.parametrize("before", ["_expected", "nodes_above"])
@pytest.mark.parametrize("target", ["disk:1", "other:1"])
def test_two_attempts_at_once_make_one_version(
    clone: CloneOnDisk, monkeypatch: pytest.MonkeyPatch, before: str, target: str
) -> None:
    """One has outlived the server that made it, and is as fast as the next server's."""
    clone.write(0, bulk(3, 5 * BLOCK))
    number = clone.capture(target)
    owner = Publisher if before == "_expected" else publication
    inner, made = getattr(owner, before), []

    def late(*arguments: object) -> object:
        monkeypatch.undo()
        made.append(clone.publish(number))
        return inner(*arguments)

    monkeypatch.setattr(owner, before, late)
    done = clone.publish(number)
    assert [(each.export, each.entry) for each in made] == [(done.export, done.entry)]
    assert done.entry == (2 if target == "disk:1" else 1)
    assert clone.bytes(done.export) == clone.bytes(target) == clone.content


def test_a_forced_commit_of_what_the_name_stands_for_is_done(clone: CloneOnDisk) -> None:
    """Two forks that nobody wrote to become one version."""
    clone.table.fork(clone.table.add_layer(), clone.record, clone.top, [], [], 0, [("d", "")])
    first = clone.publish(clone.capture("disk:1", force=True, nonce="a"))
    clone.record = clone.table.find("d")  # type: ignore[assignment]
    assert clone.publish(clone.capture("disk:1", force=True, nonce="b")) == first


def test_names_that_the_clone_was_not_made_of_are_moved(clone: CloneOnDisk) -> None:
    clone.write(0, b"1")
    assert clone.publish(clone.capture("new:1", nonce="a")).entry == 1
    clone.write(0, b"2")
    assert clone.publish(clone.capture("new:1", nonce="b")).entry == 2


def test_captures_become_versions_in_order(clone: CloneOnDisk) -> None:
    moments, numbers = [], []
    for value in range(5):
        clone.write(value * BLOCK, bulk(value + 20, 2 * BLOCK))
        moments.append(bytes(clone.content))
        numbers.append(clone.capture("disk:1", nonce=str(value)))
    for moment, number in zip(moments, numbers, strict=True):
        done = clone.publish(number)
        assert clone.bytes(done.export) == moment
        clone.finish(number, done)
    assert clone.bytes("disk:1@{3}") == moments[1]


def test_a_capture_that_was_dropped_stays_in_the_clone(clone: CloneOnDisk) -> None:
    clone.write(0, b"kept")
    first = clone.capture("disk:1", nonce="a")
    clone.write(BLOCK, b"too")
    second = clone.capture("disk:1", nonce="b")
    clone.table.drop_capture(first)
    with pytest.raises(NotFound):
        clone.publish(first)
    done = clone.publish(second)
    assert clone.bytes(done.export) == clone.content
    clone.finish(second, done)
    assert len(clone.table.layers(clone.record)) == 1


def test_nothing_is_left_by_a_commit_that_fails(clone: CloneOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    clone.write(0, bulk(3, 5 * BLOCK))
    number = clone.capture("disk:1")
    before = sorted(path for path in clone.store.rglob("*") if path.is_file())
    create = DirectoryStore.create

    def away(self: DirectoryStore, key: str, parts: object) -> None:
        if key.startswith("names/"):
            raise StoreUnavailable("away")
        create(self, key, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectoryStore, "create", away)
    with pytest.raises(StoreUnavailable):
        clone.publish(number)
    assert sorted(path for path in clone.store.rglob("*") if path.is_file()) == before
    monkeypatch.undo()
    assert clone.bytes(clone.publish(number).export) == clone.content


RANGES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK), st.sampled_from("wzc")), max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RANGES, st.integers(0, 1 << 30))
def test_any_writes_become_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[int, int, str]], seed: int
) -> None:
    clone = CloneOnDisk(tmp_path_factory.mktemp("any"))
    noise = random.Random(seed)
    with ExitStack() as stack:
        stack.callback(clone.table.close)
        for at, (start, length, act) in enumerate(chosen):
            end = min(start + length, SIZE)
            if act == "w":
                clone.write(start, noise.randbytes(end - start))
            elif act == "z":
                clone.zero(start, end)
            else:
                clone.capture("disk:1", nonce=str(at))
        clone.capture("disk:1", nonce="last")
        for capture in clone.table.captures():
            done = clone.publish(capture.id)
            clone.finish(capture.id, done)
        assert clone.bytes("disk:1") == clone.content


def test_an_image_keeps_its_configuration_but_for_changes(tmp_path: Path) -> None:
    store = tmp_path / "store"
    import_image(store, f"oci:{layout(tmp_path / 'image', [archive([file('a', b'x')])])}", "app:1", tmp_path)
    repository = Repository(DirectoryStore(store))
    base = find_version(repository, parse_reference("app:1"))
    (tmp_path / "state" / "layers").mkdir(parents=True)
    table = CloneTable(tmp_path / "state")
    record = table.create("c", "uuid", "app:1", base.pinned, "", base.root.size * BLOCK)
    for nonce, instructions in (("a", []), ("b", ['CMD ["serve", "-v"]', "ENV A=1"])):
        layer = table.layers(record)[0][0]
        draft = CaptureDraft("app", nonce, False, "", "", parse_changes(instructions), nonce)
        number = table.push(table.add_layer(), record.id, layer, [Held(0, BLOCK, Kind.ZEROS)], [], 0, draft)
        publisher = Publisher(*open_writer(str(store)), tmp_path / "state", lambda said: None)
        with closing(publisher):
            publisher.publish(PublishTask(number))
    table.close()
    kept = find_version(repository, parse_reference("app:a")).version
    assert (kept.config, kept.manifest) == (base.version.config, None)
    changed = json.loads(find_version(repository, parse_reference("app:b")).version.config or b"")
    assert changed["config"]["Cmd"] == ["serve", "-v"]
    assert changed["config"]["Env"][-1] == "A=1"
    assert changed["rootfs"] == json.loads(base.version.config or b"")["rootfs"]


@pytest.mark.parametrize(
    ("instruction", "before", "after"),
    [
        ('CMD ["a", "b"]', {"Cmd": ["x"]}, {"Cmd": ["a", "b"]}),
        ("cmd run it", {}, {"Cmd": ["/bin/sh", "-c", "run it"]}),
        ("CMD []", {"Cmd": ["x"]}, {"Cmd": []}),
        ('ENTRYPOINT ["e"]', {"Cmd": ["x"]}, {"Entrypoint": ["e"], "Cmd": ["x"]}),
        ("ENV A=1 B='two words'", {"Env": ["A=0", "C=3"]}, {"Env": ["C=3", "A=1", "B=two words"]}),
        ("ENV A two words", {}, {"Env": ["A=two words"]}),
        ('LABEL a=1 "b c"="d e"', {"Labels": {"a": "0", "z": "9"}}, {"Labels": {"a": "1", "z": "9", "b c": "d e"}}),
        ("EXPOSE 80/tcp 443", {"ExposedPorts": {"22": {}}}, {"ExposedPorts": {"22": {}, "80/tcp": {}, "443": {}}}),
        ('VOLUME ["/a", "/b"]', {"Volumes": None}, {"Volumes": {"/a": {}, "/b": {}}}),
        ("USER 7:7", {"User": "root"}, {"User": "7:7"}),
        ("WORKDIR /a b", {}, {"WorkingDir": "/a b"}),
    ],
)
def test_changes_are_those_of_docker(instruction: str, before: dict[str, object], after: dict[str, object]) -> None:
    changed = changed_config(json.dumps({"config": before, "os": "linux"}).encode(), parse_changes([instruction]))
    assert json.loads(changed or b"") == {"config": after, "os": "linux"}


@pytest.mark.parametrize(
    "instruction", ["", "RUN x", "ENV", "ENV A", 'CMD ["a"', "CMD [1]", "LABEL a=1 b", "ENV A='", "ADD a b", "USER"]
)
def test_what_is_no_change_is_refused(instruction: str) -> None:
    with pytest.raises(UsageError):
        parse_changes([instruction])


def test_a_disk_image_has_no_configuration(tmp_path: Path) -> None:
    assert changed_config(None, parse_changes([])) is None
    with pytest.raises(UsageError, match="no configuration"):
        changed_config(None, parse_changes(["USER x"]))


class WritingSteps(Steps):
    """Counts writes as well."""

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._step(f"create {key}", lambda: self.inner.create(key, parts))

    def listing(self, prefix: str) -> dict[str, Listed]:
        found: dict[str, Listed] = self.inner.listing(prefix)
        return found


def test_a_commit_takes_three_round_trips_and_the_first_one_four(clone: CloneOnDisk) -> None:
    """What its server's cache has is handed over: the record and the nodes of the version below."""
    base = find_version(clone.repository, parse_reference("disk:1"))
    frames: dict[bytes, bytes] = {}
    refs = [(base.root.digest, base.root.placement)]
    clone.repository.packs.nodes(refs, lambda item, frame: frames.__setitem__(item.key, frame))
    store, form = open_writer(str(clone.store))
    steps = WritingSteps(store)
    with closing(Publisher(steps, form, clone.state, lambda said: None)) as publisher:
        for number in range(3):
            clone.write((5 + 9 * number) * BLOCK, bulk(7 + number, BLOCK))
            capture = clone.capture("disk:1", nonce=str(number))
            steps.serial.clear()
            # The packs of chunks and nodes, the entry before and none after; the record, the store's format, the log of
            # collections; the entry. At first the hint and the length of the base's pack come before the nodes and entries.
            steps.expect(*((3, 3, 3, 1) if number == 0 else (4, 3, 1)))
            below = find_version(clone.repository, parse_reference(clone.record.base)).version
            done = publisher.publish(PublishTask(capture, True, version.encode(below), frames))
            (last,) = steps.serial[3 if number == 0 else 2]
            assert last.startswith("create names/disk/1/")
            clone.finish(capture, done)
            frames = dict(done.nodes)
    assert clone.bytes("disk:1") == clone.content
