"""Docker archives: those that are read, those that are refused, and those that skopeo made."""

import contextlib
import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import BlockmapError, ImageError, UsageError
from blockmap.image.archive import DockerArchive
from blockmap.image.layer import chain_ids
from blockmap.image.oci import config_diff_ids
from tests.image.builder import docker_archive
from tests.image.layouts import archive, compress_gzip, directory, file, layout

LAYERS = [archive([directory("a"), file("a/b", b"1" * 5000)]), archive([file("a/c", b"2")])]
EXPECTED = [[(b"a", b""), (b"a/b", b"1" * 5000)], [(b"a/c", b"2")]]


def contents(image: DockerArchive) -> list[list[tuple[bytes, bytes]]]:
    return [
        [(member.path, b"".join(pieces)) for member, pieces in layer.members(lambda data: None)]
        for layer in image.layers
    ]


def parts(where: Path) -> dict[str, bytes]:
    with tarfile.open(where) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}  # type: ignore[union-attr]


def write(where: Path, content: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(where, "w") as out:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
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
        (lambda own: own.pop("manifest.json"), "has no manifest.json"),
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
        ("layer.tar", "too many|more than 8 symlinks"),
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
