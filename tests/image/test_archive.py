"""Docker archives: those that are read, those that are refused, and those that skopeo made."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import BlockmapError, ImageError, UsageError
from blockmap.image import archive as image_archive
from blockmap.image.archive import DockerArchive, open_oci_archive
from blockmap.image.layer import chain_ids
from blockmap.image.oci import OciImage, config_diff_ids
from blockmap.image.platforms import Platform
from tests.image.builder import docker_archive
from tests.image.layouts import archive, compress_gzip, compress_zstd, directory, file, layout

LAYERS = [archive([directory("a"), file("a/b", b"1" * 5000)]), archive([file("a/c", b"2")])]
EXPECTED = [[(b"a", b""), (b"a/b", b"1" * 5000)], [(b"a/c", b"2")]]


def contents(image: DockerArchive | OciImage) -> list[list[tuple[bytes, bytes]]]:
    return [
        [(member.path, b"".join(pieces)) for member, pieces in layer.members(lambda data: None)]
        for layer in image.layers
    ]


def parts(where: Path) -> dict[str, bytes]:
    with tarfile.open(where) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}  # type: ignore[union-attr]


def write(
    where: Path, content: dict[str, bytes], links: dict[str, str] | None = None, kind: bytes = tarfile.SYMTYPE
) -> Path:
    with tarfile.open(where, "w") as out:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            out.addfile(info)
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return where


def test_an_archive(tmp_path: Path) -> None:
    saved = docker_archive(tmp_path / "saved.tar", LAYERS)
    image = DockerArchive(saved, None, tmp_path)
    assert contents(image) == EXPECTED
    assert image.config == parts(saved)["config.json"]
    assert [layer.chain for layer in image.layers] == chain_ids(config_diff_ids(image.config))
    assert (image.manifest, image.index) == (None, None)
    image.close()


def test_gzipped_layers_and_links_between_layers(tmp_path: Path) -> None:
    saved = parts(docker_archive(tmp_path / "saved.tar", [LAYERS[0], LAYERS[1], LAYERS[1]]))
    saved["0/layer.tar"] = compress_gzip(saved["0/layer.tar"])
    del saved["2/layer.tar"]
    made = write(tmp_path / "made.tar", saved, {"2/layer.tar": "../1/layer.tar"})
    assert contents(DockerArchive(made, None, tmp_path)) == [*EXPECTED, EXPECTED[1]]


def test_hard_links_between_layers_are_named_from_the_root(tmp_path: Path) -> None:
    saved = parts(docker_archive(tmp_path / "saved.tar", [LAYERS[0], LAYERS[1], LAYERS[1]]))
    del saved["2/layer.tar"]
    made = write(tmp_path / "made.tar", saved, {"2/layer.tar": "./1/layer.tar"}, tarfile.LNKTYPE)
    assert contents(DockerArchive(made, None, tmp_path)) == [*EXPECTED, EXPECTED[1]]


PACKERS: list[Callable[[bytes], bytes]] = [bytes, compress_gzip, compress_zstd, lzma.compress, bz2.compress]


@pytest.mark.parametrize("pack", PACKERS)
def test_archives_in_each_compression(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    saved = docker_archive(tmp_path / "saved.tar", LAYERS)
    packed = tmp_path / "packed"
    packed.write_bytes(pack(saved.read_bytes()))
    made = layout(tmp_path / "layout", LAYERS)
    with tarfile.open(tmp_path / "oci.tar", "w") as out:
        out.add(made, ".")
    oci = tmp_path / "oci"
    oci.write_bytes(pack((tmp_path / "oci.tar").read_bytes()))
    amd64 = Platform("linux", "amd64")
    for image in (DockerArchive(packed, None, work), open_oci_archive(oci, "1", amd64, work)):
        assert contents(image) == EXPECTED
        image.close()
    assert list(work.iterdir()) == []


def test_standard_input(tmp_path: Path) -> None:
    saved = docker_archive(tmp_path / "saved.tar", LAYERS)
    with tarfile.open(tmp_path / "oci.tar", "w") as out:
        out.add(layout(tmp_path / "layout", LAYERS), ".")
    program = (
        "import sys, pathlib; from blockmap.image.sources import open_source;"
        "image = open_source(sys.argv[1], platform='linux/amd64', work=pathlib.Path(sys.argv[2]));"
        "print([m.path.decode() for own in image.layers for m, _ in own.members(lambda data: None)]); image.close()"
    )
    for source, data in (
        ("docker-archive:-", saved.read_bytes()),
        ("docker-archive:-:image:1", lzma.compress(saved.read_bytes())),
        ("oci-archive:-", (tmp_path / "oci.tar").read_bytes()),
        ("oci-archive:-:1", gzip.compress((tmp_path / "oci.tar").read_bytes())),
    ):
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", program, source, work], input=data, capture_output=True, check=False
        )
        assert (done.stdout.decode(), done.stderr.decode()) == ("['a', 'a/b', 'a/c']\n", "")
        assert list(work.iterdir()) == []


def test_a_layout_in_a_tar(tmp_path: Path) -> None:
    amd64 = Platform("linux", "amd64")
    saved = docker_archive(tmp_path / "saved.tar", LAYERS)
    with pytest.raises(ImageError, match=r"saved\.tar is not an OCI layout in a tar.* docker-archive:"):
        open_oci_archive(saved, None, amd64, tmp_path)
    made = layout(tmp_path / "layout", LAYERS)
    blobs = sorted(path for path in made.rglob("*") if path.is_file())
    with tarfile.open(tmp_path / "oci.tar", "w") as out:
        for path in blobs:
            out.add(path, path.relative_to(made))
        out.addfile(tarfile.TarInfo("../../escaped"))
    with pytest.raises(ImageError, match="climbs out"):
        open_oci_archive(tmp_path / "oci.tar", None, amd64, tmp_path)
    for target, said in (("blobs/sha256/" + "1" * 64, ""), ("blobs/sha256/" + "0" * 64, r"index\.json")):
        with tarfile.open(tmp_path / "oci.tar", "w") as out:
            for path in blobs:
                kept = "blobs/sha256/" + "1" * 64 if path.name == "index.json" else str(path.relative_to(made))
                out.add(path, kept)
            info = tarfile.TarInfo("index.json")
            info.type, info.linkname = tarfile.LNKTYPE, target
            out.addfile(info)
        if said:
            with pytest.raises(ImageError, match=f"cannot read .*{said}"):
                open_oci_archive(tmp_path / "oci.tar", None, amd64, tmp_path)
        else:
            assert contents(open_oci_archive(tmp_path / "oci.tar", None, amd64, tmp_path)) == EXPECTED
    with pytest.raises(
        ImageError, match=r"oci\.tar is not a docker archive, it has no manifest\.json: say oci-archive:"
    ):
        DockerArchive(tmp_path / "oci.tar", None, tmp_path)


def test_a_sparse_layer_is_called_that(tmp_path: Path, need: Callable[..., None]) -> None:
    need("tar")
    saved = parts(docker_archive(tmp_path / "saved.tar", [archive([file("zeros", bytes(10 << 20))])]))
    for name, data in saved.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        with open(tmp_path / "d" / name, "wb") as out:
            out.truncate(len(data))
            out.write(data.rstrip(b"\0"))
    subprocess.run(["tar", "-cSf", tmp_path / "made.tar", "-C", tmp_path / "d", "."], check=True)
    with pytest.raises(ImageError, match=r"0/layer\.tar is a sparse member: make the archive without --sparse"):
        DockerArchive(tmp_path / "made.tar", None, tmp_path)


def test_an_archive_has_a_bound_on_headers_and_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    with open(tmp_path / "saved.tar", "wb") as out:
        out.write(info.tobuf())
        out.truncate(5 << 30)
    with pytest.raises(ImageError, match="a header of 4294967296 bytes"):
        DockerArchive(tmp_path / "saved.tar", None, tmp_path)
    monkeypatch.setattr(image_archive, "_MAX_MEMBERS", 5)
    many = write(tmp_path / "many.tar", {f"f{n}": b"" for n in range(6)})
    with pytest.raises(ImageError, match="it has more than 5 members"):
        DockerArchive(many, None, tmp_path)


def test_a_gzipped_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    saved = docker_archive(tmp_path / "saved.tar", LAYERS)
    packed = tmp_path / "saved.tar.gz"
    packed.write_bytes(gzip.compress(saved.read_bytes()))
    images = [DockerArchive(packed, None, work) for _ in range(2)]
    for image in images:
        assert contents(image) == EXPECTED
        image.close()
    assert list(work.iterdir()) == []
    packed.write_bytes(gzip.compress(saved.read_bytes())[:-50])
    with pytest.raises(ImageError, match=r"cannot read .*saved\.tar\.gz"):
        DockerArchive(packed, None, work)
    packed.write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(ImageError, match=r"saved\.tar\.gz is not a docker archive"):
        DockerArchive(packed, None, work)
    assert list(work.iterdir()) == []


def test_references(tmp_path: Path) -> None:
    first = parts(docker_archive(tmp_path / "first.tar", LAYERS[:1]))
    second = parts(docker_archive(tmp_path / "second.tar", LAYERS[1:]))
    both = {f"{which}/{name}": data for which, own in (("1", first), ("2", second)) for name, data in own.items()}
    both["manifest.json"] = json.dumps([
        {"Config": "1/config.json", "RepoTags": ["redis:latest", "redis:7"], "Layers": ["1/0/layer.tar"]},
        {"Config": "2/config.json", "RepoTags": ["example.org:5000/own/redis:7"], "Layers": ["2/0/layer.tar"]},
    ]).encode()  # fmt: skip
    saved = write(tmp_path / "saved.tar", both)
    for reference in ("redis", "redis:7", "docker.io/library/redis:7", "library/redis"):
        assert contents(DockerArchive(saved, reference, tmp_path)) == EXPECTED[:1]
    assert contents(DockerArchive(saved, "example.org:5000/own/redis:7", tmp_path)) == EXPECTED[1:]
    tags = "its tags: example.org:5000/own/redis:7, redis:7, redis:latest; name one as docker-archive:FILE:REPO:TAG"
    with pytest.raises(UsageError, match=f"has 2 images; {tags}"):
        DockerArchive(saved, None, tmp_path)
    with pytest.raises(UsageError, match=f"has 0 images called 'redis:8'; {tags}"):
        DockerArchive(saved, "redis:8", tmp_path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda own: own.pop("manifest.json"), "it has no manifest.json"),
        (lambda own: own.pop("0/layer.tar"), "lacks 0/layer.tar: it is truncated or damaged, get it again"),
        (lambda own: own.pop("config.json"), "lacks config.json"),
        (lambda own: own.update({"config.json": b"{}"}), "lists no layers"),
        (lambda own: own.update({"manifest.json": b"[{}]"}), "names no configuration"),
        (lambda own: own.update({"manifest.json": b'[{"Config": "config.json", "Layers": []}]'}), "has 0 layers, but"),
        (lambda own: own.update({"manifest.json": b"[" * 100_000}), "is not JSON"),
        (lambda own: own.update({"manifest.json": bytes(9 << 20)}), "too long for a document"),
    ],
)
def test_what_is_refused(tmp_path: Path, edit: Callable[[dict[str, bytes]], object], said: str) -> None:
    own = parts(docker_archive(tmp_path / "saved.tar", LAYERS))
    edit(own)
    with pytest.raises(ImageError, match=said):
        DockerArchive(write(tmp_path / "made.tar", own), None, tmp_path)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    own = parts(docker_archive(tmp_path / "saved.tar", LAYERS))
    del own["0/layer.tar"]
    for target, said in (
        ("layer.tar", "too many|more than 8 links"),
        ("../../etc/passwd", "lacks"),
        ("..", "lacks"),
    ):
        with pytest.raises(ImageError, match=said):
            DockerArchive(write(tmp_path / "made.tar", own, {"0/layer.tar": target}), None, tmp_path)


def test_a_changed_layer(tmp_path: Path) -> None:
    own = parts(docker_archive(tmp_path / "saved.tar", LAYERS))
    content = own["1/layer.tar"].rindex(b"2\0")
    own["1/layer.tar"] = own["1/layer.tar"][:content] + b"3" + own["1/layer.tar"][content + 1 :]
    with pytest.raises(ImageError, match=r"1/layer\.tar is damaged or truncated: its archive has the digest"):
        contents(DockerArchive(write(tmp_path / "made.tar", own), None, tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return docker_archive(tmp_path_factory.mktemp("whole") / "saved.tar", LAYERS)


@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 60_000))
@settings(max_examples=200, deadline=None)
def test_mutated_archives(whole: Path, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(whole.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    made = whole.with_name("mutated.tar")
    made.write_bytes(data[:length])
    with contextlib.suppress(BlockmapError):
        contents(DockerArchive(made, None, whole.parent))


def test_an_archive_that_skopeo_made(tmp_path: Path, need: Callable[..., None]) -> None:
    need("skopeo")
    made = layout(tmp_path / "made", LAYERS)
    saved = tmp_path / "saved.tar"
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--insecure-policy", f"oci:{made}:1", f"docker-archive:{saved}:redis:7"],
        check=True,
    )
    assert contents(DockerArchive(saved, "redis:7", tmp_path)) == EXPECTED
    assert contents(DockerArchive(saved, None, tmp_path)) == EXPECTED
