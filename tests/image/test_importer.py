"""Imports from end to end, into a store in a folder: results, shared chunks, and objects left by failures."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from blockmap.errors import ImageError, StoreUnavailable
from blockmap.format import BLOCK, filemap, hooks, keys, layer
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.image.importer import Importer, Summary
from blockmap.image.layer import chain_ids
from blockmap.image.oci import config_diff_ids
from blockmap.image.sources import open_source
from blockmap.publish.local import LocalCatalogue
from blockmap.store.base import Buffer, Pruner
from blockmap.store.names import NameReader
from blockmap.store.opening import create_store, open_store
from blockmap.store.packs import body_stream, expand_stream
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from blockmap.upkeep.verify import check_version, usage
from tests.image.builder import Full, bulk, docker_archive, import_image, listing, reassemble
from tests.image.layouts import archive, compress_gzip, compress_zstd, directory, file, hardlink, layout, symlink
from tests.store.faulty import Faulty
from tests.waiting import LIMIT_S

GOLDEN_ROOT = "f0469f629a14a45f9364fc46be2fff2ff3d342a8f2fdb8280c7b641981c5db58"
GOLDEN_VERSION = "f0777223c192d46d35f03a1156a1e1de02ae6104ea9a04cb232d761c91141d53"

TINY = [
    directory("etc"),
    file("etc/hostname", b"tiny\n"),
    symlink("etc/name", "hostname"),
    hardlink("etc/same", "etc/hostname"),
    file("bin/program", bulk(1, 300_000), mode=0o755),
    file("empty"),
]
BASE = [directory("usr"), *(file(f"usr/file-{n}", bulk(n, 20_000)) for n in range(100))]


def version_of(store: Path, summary: Summary) -> tuple[Repository, Version]:
    repository = Repository(open_store(str(store))[0])
    return repository, repository.version(summary.version)


def reader_of(repository: Repository, root: Root) -> Callable[[bytes], bytes]:
    """Returns a function that reads a file by its path through the file map."""
    read = stored_reader(repository, root)
    files = {file.path: file for file in repository.file_map(root.digest)}

    def contents(path: bytes) -> bytes:
        found = files[path]
        data = b"".join(read(start * BLOCK, length * BLOCK) for start, length in found.runs)
        assert not data[found.size :].strip(b"\0")
        return data[: found.size]

    return contents


def data_of(repository: Repository, root: Root) -> bytes:
    """Returns the data of a tree without holes."""
    read = stored_reader(repository, root)
    found = []
    for span, leaf in leaves(root, repository.packs.nodes):
        for start, length in zip(leaf.starts.tolist(), leaf.lengths.tolist(), strict=True):
            found.append(read((span * 4096 + start) * BLOCK, length * BLOCK))
    return b"".join(found)


# --- one image, one name for it everywhere


def test_a_fixed_image_has_the_digests_that_freeze_the_layout(tmp_path: Path) -> None:
    image = layout(tmp_path / "i", [archive(TINY)], compress=None)  # gzip's output differs between zlibs
    summary = import_image(tmp_path / "store", f"oci:{image}", "tiny:1", tmp_path)
    assert (summary.root.hex(), summary.version.hex()) == (GOLDEN_ROOT, GOLDEN_VERSION)


def test_two_stores_give_an_image_the_same_digests(tmp_path: Path) -> None:
    image = layout(tmp_path / "i", [archive(BASE), archive(TINY)])
    one = import_image(tmp_path / "one", f"oci:{image}", "a:1", tmp_path)
    two = import_image(tmp_path / "two", f"oci:{image}", "other/name:2", tmp_path)
    assert (one.root, one.version) == (two.root, two.version)
    packs = [{key for key in listing(tmp_path / store) if key.startswith("packs/")} for store in ("one", "two")]
    assert not packs[0] & packs[1], "packs are salted"


def test_how_layers_are_compressed_changes_the_manifest_and_not_the_volume(tmp_path: Path) -> None:
    tars = [archive(BASE), archive(TINY)]
    found = [
        import_image(tmp_path / "store", f"oci:{layout(tmp_path / str(n), tars, how)}", f"a:{n}", tmp_path)
        for n, how in enumerate((compress_gzip, compress_zstd, None))
    ]
    assert len({summary.root for summary in found}) == 1
    assert len({summary.version for summary in found}) == 3
    assert [summary.counts.new_chunks for summary in found[1:]] == [0, 0]


def test_a_docker_archive_has_the_volume_of_the_layout(tmp_path: Path) -> None:
    tars = [archive(BASE), archive(TINY)]
    one = import_image(tmp_path / "store", f"oci:{layout(tmp_path / 'i', tars)}", "a:1", tmp_path)
    saved = docker_archive(tmp_path / "saved.tar", tars)
    two = import_image(tmp_path / "store", f"docker-archive:{saved}", "a:2", tmp_path)
    assert (two.root, two.counts.new_chunks) == (one.root, 0)
    assert version_of(tmp_path / "store", two)[1].manifest is None


# --- what is there already


def test_a_second_import_stores_nothing_and_moves_no_name(tmp_path: Path) -> None:
    image, store = layout(tmp_path / "i", [archive(BASE), archive(TINY)]), tmp_path / "store"
    first = import_image(store, f"oci:{image}", "a:1", tmp_path)
    before = listing(store)
    again = import_image(store, f"oci:{image}", "a:1", tmp_path)
    assert listing(store) == before
    assert (first.number, again.number) == (1, 0)
    assert (again.counts.new_chunks, again.counts.packs, again.node_bytes) == (0, 0, 0)
    other = import_image(store, f"oci:{image}", "b:1", tmp_path)
    assert set(listing(store)) - set(before) == {keys.entry("b", "1", 1), keys.name_hint("b", "1")}
    assert (other.version, other.number) == (first.version, 1)


class Meeting(Faulty):
    """A store in front of which importers wait for each other, once before their records and once before their entries."""

    def __init__(self, inner: Pruner, barriers: dict[str, threading.Barrier]) -> None:
        super().__init__(inner)
        self._barriers = dict(barriers)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        barrier = self._barriers.pop(key.partition("/")[0], None)
        if barrier is not None:
            barrier.wait(LIMIT_S)
        super().create(key, parts)


def test_importers_of_one_image_at_once_make_one_entry_and_one_copy(tmp_path: Path) -> None:
    image = layout(tmp_path / "i", [archive(BASE), archive(TINY)])
    import_image(tmp_path / "alone", f"oci:{image}", "a:1", tmp_path)
    opened, form = create_store(str(tmp_path / "store"))
    barriers = {kind: threading.Barrier(3) for kind in ("versions", "names")}

    def run(_: int) -> Summary:
        source = open_source(f"oci:{image}", platform="linux/amd64", work=tmp_path)
        return Importer(Meeting(opened, barriers), form, pytest.fail).run(source, "a", "1")

    with ThreadPoolExecutor(3) as pool:
        found = sorted(pool.map(run, range(3)), key=lambda summary: summary.number)
    assert [summary.number for summary in found] == [0, 0, 1]
    assert [summary.counts.packs > 0 for summary in found] == [False, False, True]

    def copies(store: str) -> Counter[str]:
        kinds = Counter(key.partition("/")[0] for key in listing(tmp_path / store))
        return Counter({kind: kinds[kind] for kind in ("packs", "versions", "names")})

    assert copies("store") == copies("alone")
    entry = NameReader(opened).newest("a", "1")
    assert entry is not None
    assert entry.version is not None
    repository = Repository(opened)
    version = repository.version_at(entry.version, entry.number)
    assert list(check_version(repository, version)) == []
    assert repository.file_map(version.root.digest)


def test_importers_of_one_image_in_processes_make_one_entry(tmp_path: Path) -> None:
    image = layout(tmp_path / "i", [archive(BASE), archive(TINY)])
    create_store(str(tmp_path / "store"))
    command = [sys.executable, "-m", "blockmap.cli.main", "import", "--quiet", f"oci:{image}", "a:1"]
    importers = [
        subprocess.Popen(
            [*command, "--store", tmp_path / "store", "--platform", "linux/amd64"],
            env={**os.environ, "BLOCKMAP_CACHE": str(tmp_path / f"cache{n}")},
        )
        for n in range(3)
    ]
    assert [importer.wait(LIMIT_S) for importer in importers] == [0, 0, 0]
    kinds = [key.partition("/")[0] for key in listing(tmp_path / "store")]
    assert (kinds.count("versions"), kinds.count("packs")) == (1, 2)
    opened, _ = open_store(str(tmp_path / "store"))
    entry = NameReader(opened).newest("a", "1")
    assert entry is not None
    assert entry.version is not None
    assert entry.n == 1
    repository = Repository(opened)
    assert list(check_version(repository, repository.version_at(entry.version, entry.number))) == []


def test_another_name_of_a_volume_has_its_run_of_nodes(tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [archive([file("a", b"1" * 5000)])])
    for name in ("a:1", "b:1"):
        import_image(tmp_path / "store", f"oci:{image}", name, tmp_path)
    reader = NameReader(open_store(str(tmp_path / "store"))[0])
    first, second = reader.newest("a", "1"), reader.newest("b", "1")
    assert first is not None
    assert second is not None
    assert first.run is not None
    assert (second.run, second.root) == (first.run, first.root)


def test_a_known_base_layer_is_not_stored_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    base = import_image(store, f"oci:{layout(tmp_path / 'base', [archive(BASE)])}", "base:1", tmp_path)
    upper = [directory("srv"), file("srv/data", bulk(1000, 50_000))]
    both = import_image(store, f"oci:{layout(tmp_path / 'both', [archive(BASE), archive(upper)])}", "both:1", tmp_path)
    assert base.counts.new_bytes > 2_000_000
    assert both.counts.new_bytes < 50_000 + 200_000, "the upper layer's contents and metadata"
    repository, version = version_of(store, both)
    contents = reader_of(repository, version.root)
    assert contents(b"usr/file-7") == bulk(7, 20_000)
    assert contents(b"srv/data") == bulk(1000, 50_000)


def test_a_base_below_another_layer_is_shared_too(tmp_path: Path) -> None:
    """A layer at another place of another stack is shared, since only its contents decide."""
    store = tmp_path / "store"
    import_image(store, f"oci:{layout(tmp_path / 'one', [archive(BASE)])}", "one:1", tmp_path)
    other = layout(tmp_path / "two", [archive([file("first", bulk(77, 123_456))]), archive(BASE)])
    shifted = import_image(store, f"oci:{other}", "two:1", tmp_path)
    assert shifted.counts.new_bytes < 123_456 + 500_000


def test_a_version_that_cannot_be_read_is_left_out_and_its_image_is_stored_again(tmp_path: Path) -> None:
    """Two names refer to the damaged version: the second must not pass for whole because the first was examined."""
    image, store = layout(tmp_path / "i", [archive(BASE)]), tmp_path / "store"
    first = import_image(store, f"oci:{image}", "a:1", tmp_path)
    import_image(store, f"oci:{image}", "b:1", tmp_path)
    repository, version = version_of(store, first)
    _, leaf = next(iter(leaves(version.root, repository.packs.nodes)))
    inner = repository.node(version.root.digest, version.root.placement)
    place = inner.placements[0]
    assert place is not None
    assert leaf.level == 0
    pack = store / keys.pack(place.pack)
    data = bytearray(pack.read_bytes())
    data[place.offset + place.stored // 2] ^= 1
    os.chmod(pack, 0o644)
    pack.write_bytes(data)
    warnings: list[str] = []
    again = import_image(store, f"oci:{image}", "a:1", tmp_path, warnings)
    said = [text for text in warnings if "not deduplicating against what cannot be read" in text]
    assert len(said) == 1, "a node that both share is said once"
    assert ["all layers are read again" in text for text in warnings if text not in said] == [True]
    assert inner.children[0].hex() in said[0]
    assert (again.root, again.version, again.number) == (first.root, first.version, 2)
    repository = Repository(open_store(str(store))[0])
    entry = NameReader(repository.store).newest("a", "1")
    assert entry is not None
    assert entry.version is not None
    assert list(check_version(repository, repository.version(entry.version, entry.number))) == []


def test_packs_of_chunks_that_were_not_found_go_where_the_tree_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, store = layout(tmp_path / "i", [archive(BASE)]), tmp_path / "store"
    first = import_image(store, f"oci:{image}", "a:1", tmp_path)
    before = listing(store)
    monkeypatch.setattr("blockmap.publish.dedup_index.DedupIndex.lookup", lambda _, chunks: [None] * len(chunks))
    again = import_image(store, f"oci:{image}", "a:1", tmp_path)
    assert listing(store) == before
    assert (again.number, again.root) == (0, first.root)
    assert (again.counts.new_chunks, again.counts.new_bytes, again.counts.packs) == (0, 0, 0)


def test_a_host_remembers_what_is_in_the_store(tmp_path: Path) -> None:
    """Imports with a local file, without one, and with one that cannot be written have the same result."""
    store, local = tmp_path / "store", tmp_path / "cache" / "hooks.db"
    base = f"oci:{layout(tmp_path / 'base', [archive(BASE)])}"
    both = f"oci:{layout(tmp_path / 'both', [archive(BASE), archive(TINY)])}"
    import_image(store, base, "base:1", tmp_path)
    found = []
    for at, path in enumerate((None, local, local, tmp_path / "store" / "format" / "no-folder")):
        own = tmp_path / f"store-{at}"
        shutil.copytree(store, own)
        opened, form = open_store(str(own))
        source = open_source(both, platform="linux/amd64", work=tmp_path)
        summary = Importer(opened, form, pytest.fail, LocalCatalogue(path)).run(source, "both", "1")
        found.append((summary.version, summary.root, summary.counts))
    assert found == [found[0]] * 4
    assert local.exists()


def test_hooks_follow_the_name(tmp_path: Path) -> None:
    image, store = (
        layout(tmp_path / "i", [archive([*BASE, file("a", bulk(5000, 90_000))]), archive(TINY)]),
        tmp_path / "store",
    )
    summary = import_image(store, f"oci:{image}", "a:1", tmp_path)
    repository, version = version_of(store, summary)
    for root in (version.root, version.extra):
        if root.digest != ABSENT:
            own = hooks.decode(repository.store.get(keys.hooks(root.digest, 1)), root.digest)
            of_tree = hooks.sample((span, leaf.chunks) for span, leaf in leaves(root, repository.packs.nodes))
            assert own.tolist() == of_tree.tolist()


# --- contents


def test_files_read_back_through_the_file_map(tmp_path: Path) -> None:
    store = tmp_path / "store"
    summary = import_image(store, f"oci:{layout(tmp_path / 'i', [archive(TINY)])}", "a:1", tmp_path)
    repository, version = version_of(store, summary)
    contents = reader_of(repository, version.root)
    assert [found.path for found in repository.file_map(version.root.digest)] == [
        b"bin/program", b"empty", b"etc/hostname", b"etc/same",
    ]  # fmt: skip
    assert contents(b"bin/program") == bulk(1, 300_000)
    assert contents(b"etc/same") == contents(b"etc/hostname") == b"tiny\n"
    assert contents(b"empty") == b""


def test_hidden_contents_are_in_extra_and_not_in_the_volume(tmp_path: Path) -> None:
    secret, replaced, kept = bulk(1, 40_000), bulk(2, 40_000), bulk(3, 40_000)
    lower = [file("secret", secret), file("replaced", replaced), file("kept", kept)]
    upper = [file(".wh.secret"), file("replaced", b"new")]
    store = tmp_path / "store"
    image = layout(tmp_path / "i", [archive(lower), archive(upper)])
    summary = import_image(store, f"oci:{image}", "a:1", tmp_path)
    repository, version = version_of(store, summary)
    shown, below = data_of(repository, version.root), data_of(repository, version.extra)
    for gone in (secret, replaced):
        assert gone[:4096] not in shown
        assert gone[-1000:] not in shown
        assert gone in below
    assert kept in shown
    assert kept[:4096] not in below
    assert reader_of(repository, version.root)(b"replaced") == b"new"


def test_an_image_that_hides_nothing_has_no_extra(tmp_path: Path) -> None:
    summary = import_image(tmp_path / "store", f"oci:{layout(tmp_path / 'i', [archive(TINY)])}", "a:1", tmp_path)
    assert version_of(tmp_path / "store", summary)[1].extra.digest == ABSENT


def test_headers_and_contents_are_each_layer_again(tmp_path: Path) -> None:
    lower = [*TINY, file("long/" + "p" * 200, bulk(9, 5000)), file("xattr", b"x", xattrs={"user.a": b"1"})]
    upper = [file("srv/more", bulk(10, 513)), file("srv/block", bulk(11, 512)), symlink("here", "srv/more")]
    tars, store = [archive(lower), archive(upper)], tmp_path / "store"
    summary = import_image(store, f"oci:{layout(tmp_path / 'i', tars)}", "a:1", tmp_path)
    repository, version = version_of(store, summary)
    contents = reader_of(repository, version.root)
    chain = b""
    for tar in tars:
        diff_id = hashlib.sha256(tar)
        chain = (
            hashlib.sha256(f"sha256:{chain.hex()} sha256:{diff_id.hexdigest()}".encode()).digest()
            if chain
            else diff_id.digest()
        )
        record = layer.decode(repository.store.get(keys.layer(chain, 1)), chain)
        assert (record.version, record.number) == (summary.version, 1)
        assert reassemble(record.headers(expand_stream), contents) == tar


def test_documents_lead_to_the_version(tmp_path: Path) -> None:
    store, image = tmp_path / "store", layout(tmp_path / "i", [archive(TINY)])
    summary = import_image(store, f"oci:{image}", "a:1", tmp_path)
    repository, version = version_of(store, summary)
    assert version.created == "2020-01-01T00:00:00Z"
    for document in (version.manifest, version.config):
        assert document is not None
        digest = hashlib.sha256(document).hexdigest()
        assert (image / "blobs" / "sha256" / digest).read_bytes() == document
        assert repository.store.exists(f"oci/{digest}/{1:016d}")


@pytest.mark.parametrize("lie", ["damaged", "wrong"])
@pytest.mark.parametrize("kind", ["file map", "first layer", "second layer"])
def test_what_is_derived_and_wrong_is_superseded(tmp_path: Path, kind: str, lie: str) -> None:
    image = f"oci:{layout(tmp_path / 'i', [archive(BASE), archive(TINY)])}"
    store = create_store(str(tmp_path / "store"))[0]
    repository, summary = Repository(store), import_image(store, image, "a:1", tmp_path)
    other = import_image(store, f"oci:{layout(tmp_path / 'o', [archive(TINY)])}", "b:1", tmp_path)
    key: Callable[[int], str]
    if kind == "file map":
        key = partial(keys.filemap, Digest(summary.root))
        wrong = filemap.encode(summary.root, [filemap.File(b"etc/hostname", 5, [(7, 1)])], body_stream)
    else:
        diff_ids = config_diff_ids(repository.version(summary.version).config or b"")
        chain = chain_ids(diff_ids)[0 if kind == "first layer" else 1]
        key = partial(keys.layer, chain)
        wrong = layer.encode(layer.decode(store.get(key(1)), chain)._replace(version=other.version))
    before = store.get(key(1))
    store.delete(key(1))
    store.create(key(1), [wrong if lie == "wrong" else before[:-1]])
    warnings: list[str] = []
    if (kind, lie) == (
        "file map",
        "wrong",
    ):  # it reads well: to see what it should say, the headers have to be replayed
        assert import_image(store, image, "a:1", tmp_path).number == 0
        image = f"oci:{layout(tmp_path / 'other', [archive(BASE), archive(TINY)], config={'author': 'another'})}"
    import_image(store, image, "a:1", tmp_path, warnings)
    assert (store.get(key(2)), len(warnings)) == (before, 1)
    assert "superseded" in warnings[0]
    assert {file.path for file in repository.file_map(summary.root)} >= {b"bin/program", b"usr/file-1"}
    import_image(store, image, "a:1", tmp_path, warnings)
    assert not store.exists(key(3))
    store.delete(key(1))
    store.delete(key(2))
    if kind == "file map":  # as earlier releases stored it
        (tmp_path / "store" / key(0)).rmdir()
        store.create(key(0), [before])
        import_image(store, image, "a:1", tmp_path, warnings)
        assert len(repository.file_map(summary.root)) == len([own for own in BASE + TINY if own.kind == b"0"]) + 1
    assert len(warnings) == 1


def test_layers_in_common_are_stored_once(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "store"))[0]
    import_image(store, f"oci:{layout(tmp_path / 'base', [archive(BASE)])}", "base:1", tmp_path)
    warnings: list[str] = []
    import_image(
        store, f"oci:{layout(tmp_path / 'both', [archive(BASE), archive(TINY)])}", "both:1", tmp_path, warnings
    )
    assert len(store.list("layers/")) == 2
    assert not warnings


# --- disk images


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_image_is_imported_byte_for_byte(tmp_path: Path, need: Callable[..., None], kind: str) -> None:
    need("qemu-img")
    raw, disk = tmp_path / "raw", tmp_path / f"disk.{kind}"
    with open(raw, "wb") as out:
        out.truncate(40_000_000)
        out.write(bulk(1, 100_000))
        out.seek(16 << 20)
        out.write(bulk(2, 70_000))  # from the edge of a span
        out.seek(39_999_000)
        out.write(bulk(3, 1000))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, raw, disk], check=True)
    summary = import_image(tmp_path / "store", str(disk), "disk:1", tmp_path)
    repository, version = version_of(tmp_path / "store", summary)
    expected = raw.read_bytes()
    size = version.root.size * BLOCK
    assert size == summary.volume_bytes == -(-len(expected) // BLOCK) * BLOCK
    found = stored_reader(repository, version.root)(0, size)
    assert found[: len(expected)] == expected
    assert not found[len(expected) :].strip(b"\0")
    assert usage(repository, version.root).data_bytes < 200_000


def test_a_disk_image_of_odd_size_is_filled_up_with_zeros(tmp_path: Path, need: Callable[..., None]) -> None:
    need("qemu-img")
    disk = tmp_path / "disk"
    disk.write_bytes(bulk(5, 3 * BLOCK + 512))
    summary = import_image(tmp_path / "store", str(disk), "disk:1", tmp_path)
    repository, version = version_of(tmp_path / "store", summary)
    assert version.root.size == 4
    assert stored_reader(repository, version.root)(0, 4 * BLOCK) == bulk(5, 3 * BLOCK + 512) + bytes(BLOCK - 512)


def test_disks_that_differ_in_their_length_alone_keep_it(tmp_path: Path, need: Callable[..., None]) -> None:
    """Their roots are equal, since zeros are not in the tree; the size is the version's."""
    need("qemu-img")
    sizes = (1 << 20, 3 << 20, 1 << 19)
    found = []
    for number, size in enumerate(sizes):
        disk = tmp_path / f"disk-{number}"
        disk.write_bytes(bulk(6, 50_000))
        os.truncate(disk, size)
        found.append(import_image(tmp_path / "store", str(disk), f"disk:{number}", tmp_path))
    assert len({summary.root for summary in found}) == 1
    assert len({summary.version for summary in found}) == 3
    for summary, size in zip(found, sizes, strict=True):
        assert version_of(tmp_path / "store", summary)[1].root.size * BLOCK == summary.volume_bytes == size


def test_a_disk_of_zeros(tmp_path: Path, need: Callable[..., None]) -> None:
    need("qemu-img")
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 1 << 20)
    first = import_image(tmp_path / "store", str(disk), "disk:1", tmp_path)
    again = import_image(tmp_path / "store", str(disk), "disk:1", tmp_path)
    assert (first.root, first.number, again.number) == (ABSENT, 1, 0)
    repository, version = version_of(tmp_path / "store", first)
    assert stored_reader(repository, version.root)(0, 1 << 20) == bytes(1 << 20)


# --- what a failure leaves


def truncated(blob: bytes) -> bytes:
    return blob[: len(blob) // 2]


def flipped(blob: bytes) -> bytes:
    """Returns the blob with damage that gzip does not notice: another time in its header."""
    return blob[:4] + bytes([blob[4] ^ 1]) + blob[5:]


@pytest.mark.parametrize("spoil", [truncated, flipped])
def test_a_damaged_layer_leaves_nothing_behind(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    store = tmp_path / "store"
    import_image(store, f"oci:{layout(tmp_path / 'good', [archive(TINY)])}", "good:1", tmp_path)
    before = listing(store)
    # More than one pack, so that the first is stored before the damage is found.
    big = archive([file(f"big-{n}", bulk(n, 6 << 20)) for n in range(4)])
    image = layout(tmp_path / "bad", [big, archive(BASE)], compress=compress_gzip, spoil=spoil)
    for blob in (image / "blobs" / "sha256").iterdir():
        assert blob.is_file()
    if spoil is truncated:
        manifest_size_is_right(image)
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        import_image(store, f"oci:{image}", "bad:1", tmp_path)
    assert listing(store) == before


def manifest_size_is_right(image: Path) -> None:
    """Fills a truncated blob up, so that its length is right."""
    for blob in (image / "blobs" / "sha256").iterdir():
        data = blob.read_bytes()
        if hashlib.sha256(data).hexdigest() != blob.name:
            blob.write_bytes(data + bytes(len(data)))


@pytest.mark.parametrize("error", [StoreUnavailable, KeyboardInterrupt])
def test_a_create_that_fails_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    """Each create fails in turn: of packs of chunks and nodes, of the version, of the name's entry."""
    image = layout(tmp_path / "i", [archive([*BASE, *(file(f"big-{n}", bulk(n, 6 << 20)) for n in range(3))])])
    template = tmp_path / "template"
    create_store(str(template))
    import_image(template, f"oci:{layout(tmp_path / 'good', [archive(TINY)])}", "good:1", tmp_path)
    before = listing(template)
    room = 0
    while True:
        store = tmp_path / f"store-{room}"
        shutil.copytree(template, store)
        opened, form = open_store(str(store))
        full = Full(opened, room, error)
        source = open_source(f"oci:{image}", platform="linux/amd64", work=tmp_path)
        warnings: list[str] = []
        try:
            Importer(full, form, warnings.append).run(source, "new", "1")
        except error:
            if opened.exists(keys.entry("new", "1", 1)):  # the import is done; a person interrupts what follows
                assert error is KeyboardInterrupt
                break
            assert listing(store) == before, f"create {room + 1} failed"
            shutil.rmtree(store)
            room += 1
            continue
        break
    assert full.keys[-1] == keys.entry("new", "1", 1), "what follows the name does not fail the import"
    assert room == len(full.keys) >= 5, full.keys
    if error is StoreUnavailable:
        assert warnings


def test_what_follows_the_name_is_made_up_for_by_the_next_import(tmp_path: Path) -> None:
    image, store = layout(tmp_path / "i", [archive(TINY)]), tmp_path / "store"
    create_store(str(store))
    opened, form = open_store(str(store))
    full = Full(opened, 4)
    source = open_source(f"oci:{image}", platform="linux/amd64", work=tmp_path)
    warnings: list[str] = []
    first = Importer(full, form, warnings.append).run(source, "a", "1")
    assert full.room == 0
    assert first.number == 1
    assert len(warnings) == 1
    assert "imported again" in warnings[0]
    again = import_image(store, f"oci:{image}", "a:1", tmp_path)
    assert again.number == 0
    assert [key for key in listing(store) if key.startswith("filemaps/")] == [keys.filemap(Digest(first.root), 1)]


class Undeletable(Full):
    """A full store that cannot delete either."""

    def delete(self, key: str) -> None:
        raise StoreUnavailable(f"cannot delete {key}")


def test_the_reason_for_a_failure_is_not_hidden_by_what_cannot_be_taken_back(tmp_path: Path) -> None:
    image, store = layout(tmp_path / "i", [archive(TINY)]), tmp_path / "store"
    create_store(str(store))
    opened, form = open_store(str(store))
    warnings: list[str] = []
    source = open_source(f"oci:{image}", platform="linux/amd64", work=tmp_path)
    with pytest.raises(StoreUnavailable, match="no room left for versions/"):
        Importer(Undeletable(opened, 2), form, warnings.append).run(source, "a", "1")
    assert len(warnings) == 1
    assert "cannot delete packs/" in warnings[0]
    assert opened.list("names/") == []


def test_an_entry_whose_fate_is_unknown_keeps_its_version(tmp_path: Path) -> None:
    """The entry may be stored although no answer came; its packs must then be there."""

    class Silent(Full):
        silent = False

        def create(self, key: str, parts) -> None:  # type: ignore[no-untyped-def]
            super().create(key, parts)
            if key.startswith("names/"):
                self.silent = True
                raise StoreUnavailable("no answer")

        def get(self, key: str, *most: int) -> bytes:
            if self.silent:
                raise StoreUnavailable("no answer")
            return super().get(key, *most)

        def exists(self, key: str) -> bool:
            if self.silent:
                raise StoreUnavailable("no answer")
            return super().exists(key)

    image, store = layout(tmp_path / "i", [archive(TINY)]), tmp_path / "store"
    create_store(str(store))
    opened, form = open_store(str(store))
    source = open_source(f"oci:{image}", platform="linux/amd64", work=tmp_path)
    with pytest.raises(StoreUnavailable, match="is not known"):
        Importer(Silent(opened, 1000), form, [].append).run(source, "a", "1")
    entry = NameReader(opened).newest("a", "1")
    assert entry is not None
    assert entry.version is not None
    repository = Repository(opened)
    assert list(check_version(repository, repository.version(entry.version, entry.number))) == []
