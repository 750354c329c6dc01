"""Layers that are taken over from versions in the store: the image is the same as if all of it had been read."""

import copy
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind
from blockmap.format import filemap, keys, layer
from blockmap.format.version import Version
from blockmap.image.importer import Importer, Summary
from blockmap.image.sources import open_source
from blockmap.store.base import Pruner
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import Format, create_store, parse_format
from blockmap.store.packs import body_stream, expand, expand_stream
from blockmap.store.repository import Repository
from blockmap.store.signing import Signer
from blockmap.upkeep.verify import check_version
from tests.filesystem.test_merge import layers as random_layers
from tests.image import layouts
from tests.image.builder import bulk
from tests.image.layouts import archive, file, layout
from tests.image.model import Model
from tests.store.signers import overwrite, signer

_TYPES = {
    MemberKind.FILE: b"0", MemberKind.HARDLINK: b"1", MemberKind.SYMLINK: b"2", MemberKind.DIR: b"5", MemberKind.FIFO: b"6",
}  # fmt: skip
_SIZES = [0, 1, 4096, 5000, 40_000, 131_072, 300_000]
"""Bytes of contents: none, a part of a block, several chunks, and what is cut at its edges."""

BASE = [file(f"usr/{number}", bulk(number, 9000 * number % 200_000)) for number in range(60)]
HIDES = [file("usr/.wh.7"), file("usr/9", b"replaced"), file("own", bulk(1000, 150_000))]
OTHER = [file("usr/.wh.8"), file("usr/.wh.7"), file("other", bulk(2000, 150_000))]


def memory_store(where: Path) -> MemoryStore:
    store = MemoryStore()
    create_store(str(where))
    store.create(keys.FORMAT, [(where / keys.FORMAT).read_bytes()])
    return store


def imported(
    store: Pruner, image: Path, name: str, warnings: list[str] | None = None, key: Signer | None = None
) -> tuple[Summary, Version]:
    form: Format = parse_format(store.get(keys.FORMAT), "memory")
    source = open_source(f"oci:{image}", platform="linux/amd64", work=image)
    repo, tag = name.split(":")
    summary = Importer(store, form, ([] if warnings is None else warnings).append, signer=key).run(source, repo, tag)
    return summary, Repository(store).version(summary.version)


def spoil(image: Path, layers: int) -> None:
    """Makes the blobs of an image's lowest layers such that whoever reads one fails, but those that upper layers have as well."""
    below, above = blobs(image)[:layers], blobs(image)[layers:]
    for digest in set(below) - set(above):
        path = image / "blobs/sha256" / digest
        path.write_bytes(bytes(path.stat().st_size))


def blobs(image: Path) -> list[str]:
    def read(descriptor: dict[str, Any]) -> dict[str, Any]:
        return json.loads((image / "blobs/sha256" / descriptor["digest"][7:]).read_text())

    manifest = read(json.loads((image / "index.json").read_text())["manifests"][0])
    return [each["digest"][7:] for each in manifest["layers"]]


def files(store: Pruner, version: Version) -> bytes:
    data = store.get(keys.filemap(version.root.digest, 1))
    return filemap.body(data, version.root.digest, expand)


def same_as_whole(tmp_path: Path, below: Sequence[bytes], upper: Sequence[bytes], other: Sequence[bytes]) -> Pruner:
    """Imports `below` with `upper` after `below` with `other`, and checks that it is what a first import gives."""
    store, fresh = memory_store(tmp_path / "a"), memory_store(tmp_path / "b")
    imported(store, layout(tmp_path / "one", [*below, *other]), "image:1")
    two = layout(tmp_path / "two", [*below, *upper], config={"author": "two"})
    expected, whole = imported(fresh, two, "image:2")
    spoil(two, len(below))
    found, version = imported(store, two, "image:2")
    assert version.line() == whole.line()
    assert (found.counts.blocks, found.counts.chunks) == (expected.counts.blocks, expected.counts.chunks)
    assert files(store, version) == files(fresh, whole)
    assert list(check_version(Repository(store), version)) == []
    for own in (version.root.digest, version.extra.digest):
        if own.strip(b"\0"):
            assert store.get(keys.hooks(own, 1)) == fresh.get(keys.hooks(own, 1))
    return store


def accepted(stack: list[list[Member]], sizes: list[int], seed: int) -> list[bytes]:
    """Returns archives of those members that make sense where they stand, with contents."""
    model = Model()
    found = []
    for number, members in enumerate(stack):
        model.begin()
        kept = []
        for at, member in enumerate(members):
            before = copy.deepcopy(model)
            try:
                model.add(member)
            except ImageError:
                model = before
                continue
            size = sizes[(number * 8 + at) % len(sizes)]
            has_content = member.kind is MemberKind.FILE and b".wh." not in member.path
            data = bulk(seed + number * 100 + at, size) if size % 2 == 0 else bytes(size)
            kept.append(
                layouts.Member(
                    member.path,
                    _TYPES[member.kind],
                    data if has_content else b"",
                    member.mode,
                    member.uid,
                    mtime=str(member.mtime_s),
                    target=member.target,
                )
            )
        found.append(archive(kept))
    return found


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    random_layers.filter(bool),
    st.lists(st.sampled_from(_SIZES), min_size=4, max_size=9),
    st.data(),
)
def test_an_import_with_known_layers_equals_a_whole_one(
    tmp_path_factory: pytest.TempPathFactory, stack: list[list[Member]], sizes: list[int], data: st.DataObject
) -> None:
    archives = accepted(stack, sizes, 0)
    count = data.draw(st.integers(1, len(archives)))
    other = accepted(data.draw(random_layers), sizes, 50_000)
    below, upper = archives[:count], archives[count:]
    same_as_whole(tmp_path_factory.mktemp("same"), below, upper, [own for own in other if own not in upper[:1]])


def test_what_upper_layers_hide_is_taken_from_both_trees(tmp_path: Path) -> None:
    same_as_whole(tmp_path, [archive(BASE)], [archive(HIDES)], [archive(OTHER)])


def test_all_layers_may_be_known(tmp_path: Path) -> None:
    store = same_as_whole(tmp_path, [archive(BASE), archive(HIDES)], [], [archive(OTHER)])
    assert store.exists(keys.entry("image", "2", 1))


def test_a_newer_version_of_the_repository_serves_where_the_name_has_moved_on(tmp_path: Path) -> None:
    """The headers of the base name the first version, for which no name stands any more."""
    store = memory_store(tmp_path / "store")
    for number, own in enumerate((HIDES, OTHER)):
        imported(store, layout(tmp_path / str(number), [archive(BASE), archive(own)]), "image:1")
    third = layout(tmp_path / "3", [archive(BASE), archive([file("third", b"3")])])
    spoil(third, 1)
    imported(store, third, "image:1")


@pytest.fixture
def after_one(tmp_path: Path) -> tuple[MemoryStore, Path]:
    """A store with an image, and another with the same base."""
    store = memory_store(tmp_path / "store")
    imported(store, layout(tmp_path / "one", [archive(BASE), archive(HIDES)]), "image:1")
    return store, layout(tmp_path / "two", [archive(BASE), archive(OTHER)])


def whole(tmp_path: Path, image: Path) -> bytes:
    return imported(memory_store(tmp_path / "fresh"), image, "image:2")[1].line()


def base_key(image: Path) -> str:
    return keys.layer(sha256(archive(BASE)).digest(), 1)


def test_damaged_headers_are_not_believed_and_mended(after_one: tuple[MemoryStore, Path], tmp_path: Path) -> None:
    store, two = after_one
    key = base_key(two)
    before = store.get(key)
    overwrite(store, key, before[:-40] + bytes(8) + before[-32:])
    assert imported(store, two, "image:2")[1].line() == whole(tmp_path, two)
    assert store.get(key[:-1] + "2")[:40] == before[:40]


def test_headers_that_are_no_archive_are_not_believed(after_one: tuple[MemoryStore, Path], tmp_path: Path) -> None:
    """Sealed, but one member has another size than what follows it says."""
    store, two = after_one
    record = layer.decode(store.get(base_key(two)), bytes.fromhex(base_key(two).split("/")[1]))
    headers = record.headers(expand_stream)
    at = headers.index(b"usr/1\0")
    forged = bytearray(headers)
    forged[at + 124 : at + 136] = b"00000100000\0"
    forged[at + 148 : at + 156] = b"        "
    total = sum(forged[at : at + 512])
    forged[at + 148 : at + 156] = b"%06o\0 " % total
    stream = body_stream()
    packed = stream.compress(bytes(forged)) + stream.flush()
    overwrite(store, base_key(two), layer.encode(record._replace(packed=packed, raw=len(forged))))
    warnings: list[str] = []
    assert imported(store, two, "image:2", warnings)[1].line() == whole(tmp_path, two)
    assert any("all layers are read again" in text for text in warnings)


def test_a_lost_pack_is_stored_again(after_one: tuple[MemoryStore, Path], tmp_path: Path) -> None:
    store, two = after_one
    version = Repository(store).version_at(imported(store, tmp_path / "one", "image:1")[0].version, 1)
    for key in store.list("packs/"):
        if key != keys.pack(version.root.placement.pack):  # type: ignore[union-attr]
            store.delete(key)
    _, found = imported(store, two, "image:2")
    assert found.line() == whole(tmp_path, two)
    assert list(check_version(Repository(store), found)) == []


def test_who_signs_reads_everything(after_one: tuple[MemoryStore, Path], tmp_path: Path) -> None:
    store, two = after_one
    spoil(two, 1)
    with pytest.raises(ImageError, match="damaged"):
        imported(store, two, "image:2", key=signer(1))


def test_who_signed_an_image_reads_nothing_of_it_again(after_one: tuple[MemoryStore, Path]) -> None:
    store, two = after_one
    first, _ = imported(store, two, "image:2", key=signer(1))
    spoil(two, 2)
    again, _ = imported(store, two, "image:2", key=signer(1))
    other, _ = imported(store, two, "other:2", key=signer(1))
    assert (again.version, again.number, other.version, other.number) == (first.version, 0, first.version, 1)
    with pytest.raises(ImageError, match="damaged"):
        imported(store, two, "image:2", key=signer(2))
