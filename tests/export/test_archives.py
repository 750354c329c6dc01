"""Archives of layers that are made again of what the store has: byte for byte, whatever is in them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import Corrupt, NotFound
from blockmap.format import keys
from blockmap.format import layer as layer_format
from blockmap.image.layer import config_chains
from tests.export.exported import archives_of, export_image, version_named
from tests.image.builder import bulk, docker_archive, import_image
from tests.image.layouts import archive, directory, file
from tests.image.test_oddities import LOWER, MIDDLE, UPPER
from tests.image.test_sparse import FORMS, file_with_holes
from tests.image.test_tar import TRAILER, block, extended, pad

NAMES = [b"a", b"b", b"d/a", b"d/b", b"d/e/f", b"./c", b"/g"]
SIZES = [0, 1, 511, 512, 4095, 4096, 4097, 20_000, 150_000]


def imported(store: Path, layers: list[bytes], work: Path, name: str = "odd:1") -> None:
    import_image(store, f"docker-archive:{docker_archive(work / 'docker.tar', layers)}", name, work)


def test_layers_with_every_oddity(tmp_path: Path) -> None:
    layers = [archive(LOWER), archive(MIDDLE), archive(UPPER)]
    imported(tmp_path / "store", layers, tmp_path)
    assert archives_of(tmp_path / "store", "odd:1") == layers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 1, 5, 30])
def test_sparse_members(tmp_path: Path, form: list[str], count: int, need: Callable[..., None]) -> None:
    need("tar")
    segments = [((n << 16) + 100 * n, bulk(n, 5000 + n)) for n in range(1, count + 1)]
    made = file_with_holes(tmp_path / "holes", segments, (count + 2 << 16) + 5)
    (tmp_path / "next").write_bytes(b"next")
    command = ["tar", "-c", "--sparse", *form, "-C", str(tmp_path), made.name, "next"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    imported(tmp_path / "store", [data], tmp_path)
    assert archives_of(tmp_path / "store", "odd:1") == [data]


def test_what_stands_where_nothing_should(tmp_path: Path) -> None:
    """Contents of whiteouts, padding that is not zero, and what follows the end."""
    lower = archive([directory("d"), file("d/gone", b"1")])
    upper = b"".join(
        (
            block(b"d/.wh.gone", size=700), bulk(1, 1024),
            block(b"f", size=5), b"hello" + bulk(2, 507),
            block(b"d/.wh..wh..opq", size=512), bulk(3, 512),
            block(b".wh..wh.plnk/1.2", size=600), pad(bulk(4, 600)),
            TRAILER, bulk(5, 3000),
        )
    )  # fmt: skip
    short = block(b"last", size=5) + b"hello"  # as umoci writes
    imported(tmp_path / "store", [lower, upper, short], tmp_path)
    assert archives_of(tmp_path / "store", "odd:1") == [lower, upper, short]


def test_what_the_import_leaves_out_is_in_the_archive(tmp_path: Path) -> None:
    """An attribute that takes no block, since it is left out, before a layer whose contents lie behind that block."""
    foreign = {"apple.colour": b"x" * 3000}
    layers = [archive([file("a", b"1", xattrs=foreign)]), archive([file("b", bulk(1, 5000), mtime="99999999999")])]
    imported(tmp_path / "store", layers, tmp_path)
    assert archives_of(tmp_path / "store", "odd:1") == layers


def test_files_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    layers = [
        archive([file("a", bulk(1, 20 << 20)), file("zeros", bytes(40 << 20)), file("b", bulk(2, 3))]),
        archive([file("a", bulk(3, 17 << 20))]),
    ]
    imported(tmp_path / "store", layers, tmp_path)
    assert archives_of(tmp_path / "store", "odd:1") == layers


def test_a_directory_is_given_back_as_the_archive_that_its_digest_is_of(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    file_with_holes(top / "holes", [(5 << 20, b"x" * 5000)], 9 << 20)
    (top / "d" / "f").write_bytes(bulk(1, 9000))
    (top / "link").hardlink_to(top / "d" / "f")
    import_image(tmp_path / "store", str(top), "odd:1", tmp_path)
    done = export_image(tmp_path / "store", "odd:1", f"oci:{tmp_path / 'out'}")
    assert done.config == done.was_config


@st.composite
def members(draw: st.DrawFn) -> bytes:
    """Draws an archive of members whose paths often meet."""
    parts, made, folders = [], set[bytes](), {b"d", b"d/e"}
    for number in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["file", "file", "long", "link", "symlink", "directory", "whiteout", "pax"]))
        name = draw(st.sampled_from(NAMES))
        size = draw(st.sampled_from(SIZES))
        content = pad(bulk(draw(st.integers(0, 99)), size))
        if draw(st.booleans()) and size % 512:
            content = content[: size - len(content)] + bulk(number, len(content) - size)
        if kind == "file":
            parts.append(block(name, size=size) + content)
        elif kind == "pax":
            parts.append(extended(path=name, size=b"%d" % size, comment=b"c" * 600) + block(b"x") + content)
        elif kind == "long":
            name = b"d/" + b"l" * 200
            parts.append(block(b"././@LongLink", b"L", len(name) + 1) + pad(name + b"\0"))
            parts.append(block(name[:100], size=size) + content)
        elif kind == "link" and made:
            parts.append(block(b"h%d" % number, b"1", link=draw(st.sampled_from(sorted(made)))))
        elif kind == "symlink":
            parts.append(block(b"s%d" % number, b"2", link=name))
        elif kind == "directory":
            parts.append(block(draw(st.sampled_from(sorted(folders))) + b"/", b"5"))
        elif kind == "whiteout":
            above, _, last = name.rpartition(b"/")
            marked = draw(st.sampled_from([last, b".wh..opq"]))
            parts.append(block((above + b"/" if above else b"") + b".wh." + marked, size=size) + content)
        if kind in ("file", "pax"):
            made.add(name)
    return b"".join(parts) + draw(st.sampled_from([b"", TRAILER, TRAILER + bytes(9216), TRAILER + b"garbage"]))


@settings(max_examples=60, deadline=None)
@given(layers=st.lists(members(), min_size=1, max_size=3))
def test_any_archive(tmp_path_factory: pytest.TempPathFactory, layers: list[bytes]) -> None:
    work = tmp_path_factory.mktemp("any")
    imported(work / "store", layers, work)
    assert archives_of(work / "store", "odd:1") == layers


def test_an_archive_that_comes_out_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    """The headers of another image's layer, under the key of this one's."""
    store = tmp_path / "store"
    imported(store, [archive([file("a", bulk(1, 5000))])], tmp_path)
    _, version = version_named(store, "odd:1")
    (chain,) = config_chains(version.config)
    imported(store, [archive([file("b", bulk(1, 5000))])], tmp_path, "other:1")
    (other,) = config_chains(version_named(store, "other:1")[1].config)
    place = store / keys.layer(chain, 1)
    kept = place.read_bytes()
    forged = layer_format.decode((store / keys.layer(other, 1)).read_bytes(), other)._replace(chain=chain)
    place.chmod(0o644)
    place.write_bytes(layer_format.encode(forged))
    with pytest.raises(Corrupt, match=r"layer 1 \(sha256:[0-9a-f]{12}\) is refused: its archive has the digest"):
        export_image(store, "odd:1", f"docker-archive:{tmp_path / 'out.tar'}")
    with pytest.raises(Corrupt, match="layer 1"):
        export_image(store, "odd:1", f"oci:{tmp_path / 'out'}")
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith((".tmp-", "out.tar"))] == []
    assert not (tmp_path / "out" / "index.json").exists()
    place.write_bytes(kept[:-40])
    with pytest.raises(Corrupt, match="damaged"):
        export_image(store, "odd:1", f"oci:{tmp_path / 'out'}")
    place.unlink()
    with pytest.raises(NotFound, match=r"headers of layer 1 are not in .*import the image again"):
        export_image(store, "odd:1", f"oci:{tmp_path / 'out'}")
    imported(store, [archive([file("a", bulk(1, 5000))])], tmp_path)
    export_image(store, "odd:1", f"oci:{tmp_path / 'out'}")
