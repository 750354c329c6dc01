"""A digest pins: what the digest of a manifest, configuration or index leads to, whoever wrote the records."""

import json
import logging
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockmap.errors import Corrupt, NotFound
from blockmap.format import keys, oci
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.oci import DocumentRecord
from blockmap.format.refs import Reference
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.publish.object_writer import ObjectWriter
from blockmap.store.base import Pruner
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import create_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import by_digest
from tests.format.test_parsers import changed
from tests.image.builder import import_image
from tests.image.layouts import archive, file, layout


def version(own: bytes) -> Version:
    return Version(
        Root(ABSENT, 5), Root(ABSENT, 5), WriterLayout(0, 0), manifest=b"manifest " + own, config=b"config " + own
    )


GOOD, OTHER = version(b"good"), version(b"other")


def digest(document: bytes | None) -> Digest:
    assert document is not None
    return Digest(sha256(document).digest())


def index(*manifests: bytes | None) -> bytes:
    return json.dumps({"manifests": [{"digest": f"sha256:{digest(each).hex()}"} for each in manifests]}).encode()


@pytest.fixture
def store() -> Pruner:
    return filled()


def filled() -> MemoryStore:
    made = MemoryStore()
    for each in (GOOD, OTHER):
        ObjectWriter(made).put_version(each, set())
    return made


def lead(store: Pruner, document: bytes | None, number: int, own: Version, listed: bytes | None = None) -> None:
    store.create(keys.oci(digest(document), number), [oci.encode(DocumentRecord(own.name, 1, listed))])


def found(store: Pruner, document: bytes | None) -> Digest:
    return by_digest(Repository(store), Reference("a", None, digest(document)), digest(document)).name


@pytest.mark.parametrize("number", [0, 1])
def test_manifest_and_configuration_lead_to_their_version(store: Pruner, number: int) -> None:
    for document in (GOOD.manifest, GOOD.config):
        lead(store, document, number, GOOD)
        assert found(store, document) == GOOD.name


def test_an_index_leads_to_a_version_whose_manifest_it_lists(store: Pruner) -> None:
    listed = index(b"{}", GOOD.manifest)
    lead(store, listed, 1, GOOD, listed)
    assert found(store, listed) == GOOD.name


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_digest_pins_whoever_wrote_its_record_first(
    store: Pruner, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    for wrong in range(number + 1):
        lead(store, GOOD.manifest, wrong, OTHER)
    with pytest.raises(Corrupt, match="importing the image again"):
        found(store, GOOD.manifest)
    assert caplog.text.count("is not believed") == number + 1
    lead(store, GOOD.manifest, number + 1, GOOD)
    assert found(store, GOOD.manifest) == GOOD.name


def test_a_wrong_record_hides_none_below_it(store: Pruner) -> None:
    lead(store, GOOD.manifest, 0, GOOD)
    lead(store, GOOD.manifest, 1, OTHER)
    store.create(keys.oci(digest(GOOD.manifest), 2), [b"no record"])
    assert found(store, GOOD.manifest) == GOOD.name


def test_the_highest_that_is_right_is_believed(store: Pruner) -> None:
    later = Version(GOOD.root, GOOD.extra, WriterLayout(1, 0), manifest=GOOD.manifest)
    ObjectWriter(store).put_version(later, set())
    for number, own in ((1, GOOD), (2, later), (3, OTHER)):
        lead(store, GOOD.manifest, number, own)
    assert found(store, GOOD.manifest) == later.name


def test_an_index_without_its_bytes_cannot_be_checked(store: Pruner) -> None:
    listed = index(GOOD.manifest)
    lead(store, listed, 0, GOOD)
    with pytest.raises(Corrupt, match="as far as can be checked"):
        found(store, listed)


@pytest.mark.parametrize("listed", [index(OTHER.manifest), b"{}", index(GOOD.manifest) + b" "])
def test_an_index_that_is_another_or_lists_another(store: Pruner, listed: bytes) -> None:
    lead(store, index(GOOD.manifest), 1, GOOD, listed)
    with pytest.raises(Corrupt):
        found(store, index(GOOD.manifest))
    lead(store, listed, 1, OTHER, listed)
    if listed != index(OTHER.manifest):
        with pytest.raises(Corrupt):
            found(store, listed)


def test_records_of_a_version_that_is_gone(store: Pruner) -> None:
    lead(store, GOOD.manifest, 1, GOOD)
    store.delete(keys.version(GOOD.name, 1))
    with pytest.raises(NotFound, match="there is no version"):
        found(store, GOOD.manifest)
    with pytest.raises(NotFound, match="has the digest"):
        found(store, OTHER.manifest)


def test_many_wrong_records_take_bounded_time(store: Pruner) -> None:
    for number in range(1, 200):
        lead(store, GOOD.manifest, number, OTHER)
    with pytest.raises(Corrupt):
        found(store, GOOD.manifest)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_any_record_opens_the_right_version_or_none(data: st.DataObject) -> None:
    store = filled()
    listed = index(GOOD.manifest)
    document = data.draw(st.sampled_from([GOOD.manifest, GOOD.config, listed]))
    for number in data.draw(st.sampled_from([[0], [1], [0, 1], [1, 2, 3]])):
        right = oci.encode(
            DocumentRecord(
                data.draw(st.sampled_from([GOOD.name, OTHER.name, digest(b"")])),
                data.draw(st.sampled_from([1, 2, 10**16 - 1])),
                data.draw(st.sampled_from([None, listed, index(OTHER.manifest), b""])),
            )
        )
        store.create(keys.oci(digest(document), number), [data.draw(st.just(right) | changed(right))])
    with suppress(Corrupt, NotFound):
        assert found(store, document) == GOOD.name


# --- imports


def indexed(where: Path, members: bytes) -> tuple[Path, bytes]:
    """Writes a layout whose index.json names an index of one manifest."""
    image = layout(where, [archive([file("a", members)])])
    top = json.loads((image / "index.json").read_text())
    (described,) = top["manifests"]
    tag = described.pop("annotations")
    described["platform"] = {"os": "linux", "architecture": "amd64"}
    inner = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    (image / "blobs" / "sha256" / digest(inner).hex()).write_bytes(inner)
    media = "application/vnd.oci.image.index.v1+json"
    top["manifests"] = [
        {"mediaType": media, "digest": f"sha256:{digest(inner).hex()}", "size": len(inner), "annotations": tag}
    ]
    (image / "index.json").write_text(json.dumps(top))
    return image, inner


def test_an_import_stores_records_that_pin(tmp_path: Path) -> None:
    image, inner = indexed(tmp_path / "image", b"1")
    store = create_store(str(tmp_path / "store"))[0]
    summary = import_image(store, f"oci:{image}", "a:1", tmp_path)
    made = Repository(store).version(summary.version)
    for document in (inner, made.manifest, made.config):
        assert found(store, document) == summary.version
    before = store.list("oci/")
    assert [key.count("/") for key in before] == [2, 2, 2]
    warnings: list[str] = []
    import_image(store, f"oci:{image}", "b:1", tmp_path, warnings)
    assert (store.list("oci/"), warnings) == (before, [])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("what", ["damaged", "wrong", "unchecked"])
def test_an_import_supersedes_what_is_wrong(tmp_path: Path, number: int, what: str) -> None:
    image, inner = indexed(tmp_path / "image", b"1")
    store = create_store(str(tmp_path / "store"))[0]
    summary = import_image(store, f"oci:{image}", "a:1", tmp_path)
    made = Repository(store).version(summary.version)
    other = import_image(store, f"oci:{indexed(tmp_path / 'other', b'2')[0]}", "b:1", tmp_path)
    documents = [each for each in (inner, made.manifest, made.config) if each is not None]
    lies = {
        "damaged": b"x",
        "wrong": oci.encode(DocumentRecord(other.version, 1)),
        "unchecked": oci.encode(DocumentRecord(summary.version, 1)),
    }
    for document in documents:
        store.delete(keys.oci(digest(document), 1))
        if number == 0:
            (tmp_path / "store" / keys.oci(digest(document), 0)).rmdir()
        store.create(keys.oci(digest(document), number), [lies[what]])
    warnings: list[str] = []
    import_image(store, f"oci:{image}", "a:1", tmp_path, warnings)
    assert len(warnings) == (1 if what == "unchecked" else 3)
    assert all("and superseded" in each for each in warnings)
    for document in documents:
        assert found(store, document) == summary.version


def test_a_store_of_an_earlier_release_opens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its records have no numbers, and no bytes of indexes."""
    image, inner = indexed(tmp_path / "image", b"1")
    store = create_store(str(tmp_path / "store"))[0]
    summary = import_image(store, f"oci:{image}", "a:1", tmp_path)
    made = Repository(store).version(summary.version)
    for document in (made.manifest, made.config, inner):
        store.delete(keys.oci(digest(document), 1))
        (tmp_path / "store" / keys.oci(digest(document), 0)).rmdir()
        lead(store, document, 0, made)
    caplog.set_level(logging.WARNING)
    for document in (made.manifest, made.config):
        assert found(store, document) == summary.version
    assert not caplog.records
    warnings: list[str] = []
    import_image(store, f"oci:{image}", "a:1", tmp_path, warnings)
    assert len(warnings) == 1, "the index alone is written anew"
    assert found(store, inner) == summary.version
