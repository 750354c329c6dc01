"""Where images are exported to: what skopeo reads of it, and what is refused."""

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockmap.cli.export import export
from blockmap.errors import HostError, ImageError, UsageError
from blockmap.export.destinations import Destination, Form, parse_destination
from tests.export.exported import export_image, manifest_of
from tests.export.registry import PushedImages, pushable
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, compress_zstd, file, layout

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
LAYERS = [archive([file("a", bulk(1, 70_000))]), archive([file("b", b"b")])]


def skopeo(*arguments: str | Path) -> bytes:
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True).stdout


def dockers(where: Path) -> Path:
    """Writes a layout of an image in docker's own form."""
    layout(where, LAYERS)
    _, data = manifest_of(where)
    manifest = json.loads(data)
    manifest["mediaType"] = DOCKER
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    for each in manifest["layers"]:
        each["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    made = json.dumps(manifest, indent=3).encode()
    name = hashlib.sha256(made).hexdigest()
    (where / "blobs" / "sha256" / name).write_bytes(made)
    index = json.loads((where / "index.json").read_text())
    index["manifests"][0].update(mediaType=DOCKER, digest=f"sha256:{name}", size=len(made))
    (where / "index.json").write_text(json.dumps(index))
    return where


@pytest.fixture
def store(tmp_path: Path, need: Callable[..., None]) -> Path:
    """Returns a store with `oci:1`, `docker:1` and `zstd:1`."""
    need("skopeo")
    import_image(tmp_path / "store", f"oci:{layout(tmp_path / 'i', LAYERS)}", "oci:1", tmp_path)
    import_image(tmp_path / "store", f"oci:{dockers(tmp_path / 'd')}", "docker:1", tmp_path)
    import_image(tmp_path / "store", f"oci:{layout(tmp_path / 'z', LAYERS, compress_zstd)}", "zstd:1", tmp_path)
    return tmp_path / "store"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PushedImages]:
    with pushable(tmp_path / "home", monkeypatch) as served:
        yield served


@pytest.mark.parametrize("name", ["oci", "docker", "zstd"])
def test_skopeo_reads_what_is_written(name: str, store: Path, tmp_path: Path) -> None:
    config = hashlib.sha256(skopeo("inspect", "--raw", "--config", f"oci:{tmp_path / 'i'}:1")).hexdigest()
    for destination, again in (
        (f"oci:{tmp_path / 'out'}", f"oci:{tmp_path / 'out'}:1"),
        (f"oci:{tmp_path / 'out'}:other", f"oci:{tmp_path / 'out'}:other"),
        (f"oci-archive:{tmp_path / 'o.tar'}", f"oci-archive:{tmp_path / 'o.tar'}:1"),
        (f"docker-archive:{tmp_path / 'd.tar'}", f"docker-archive:{tmp_path / 'd.tar'}:{name}:1"),
        (f"docker-archive:{tmp_path / 'e.tar'}:some/image", f"docker-archive:{tmp_path / 'e.tar'}:some/image:latest"),
    ):
        done = export_image(store, f"{name}:1", destination)
        assert done.config == done.was_config
        skopeo("copy", "-q", again, f"dir:{tmp_path / 'copied'}")
        assert hashlib.sha256(skopeo("inspect", "--raw", "--config", again)).hexdigest() == done.config.hex() == config
    import_image(tmp_path / "again", f"oci:{tmp_path / 'out'}:1", "again:1", tmp_path)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]] == ["1", "other"]


def test_a_registry_gets_the_manifest_that_was(store: Path, registry: PushedImages, tmp_path: Path) -> None:
    for name, source in (("oci", "i"), ("docker", "d")):
        done = export_image(store, f"{name}:1", f"docker://{registry.address}/own/{name}:1")
        media, data = registry.manifests["1"]
        assert data == manifest_of(tmp_path / source)[1]
        assert media == json.loads(data)["mediaType"]
        assert done.manifest == done.was_manifest == hashlib.sha256(data).digest()
        import_image(tmp_path / "again", f"docker://{registry.address}/own/{name}:1", f"{name}:1", tmp_path)
    with pytest.raises(ImageError, match=f"skopeo could not write docker://{registry.address}/@own"):
        export_image(store, "oci:1", f"docker://{registry.address}/@own")


def test_a_registry_without_skopeo(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="skopeo is needed to write docker://host/image and is not installed"):
        export_image(store, "oci:1", "docker://host/image")


def test_archives_are_the_same_each_time(store: Path, tmp_path: Path) -> None:
    for form in ("oci-archive", "docker-archive"):
        made = []
        for name in ("one.tar", "two.tar"):
            export_image(store, "oci:1", f"{form}:{tmp_path / name}:image")
            made.append((tmp_path / name).read_bytes())
        assert made[0] == made[1]
        with tarfile.open(tmp_path / "one.tar") as found:
            assert len(found.getnames()) == {"oci-archive": 6, "docker-archive": 4}[form]
        assert list(tmp_path.glob(".tmp-*")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("oci:/d", Destination(Form.OCI, Path("/d"), "1")),
        ("oci:/d:v2", Destination(Form.OCI, Path("/d"), "v2")),
        ("oci-archive:/f.tar:v2", Destination(Form.OCI_ARCHIVE, Path("/f.tar"), "v2")),
        ("docker-archive:/f.tar", Destination(Form.DOCKER_ARCHIVE, Path("/f.tar"), "own/image:1")),
        ("docker-archive:/f:host:5000/a", Destination(Form.DOCKER_ARCHIVE, Path("/f"), "host:5000/a:latest")),
        ("docker-archive:/f:a:2", Destination(Form.DOCKER_ARCHIVE, Path("/f"), "a:2")),
        ("docker://host:5000/a:1", Destination(Form.REGISTRY, Path(), "docker://host:5000/a:1")),
    ],
)
def test_destinations(text: str, found: Destination) -> None:
    assert parse_destination(text, "own/image", "1") == found


@pytest.mark.parametrize(
    "text",
    ["", "oci", "oci:", "oci::1", "oci:/d:", "oci:/d:a/b", "dir:/d", "docker:a", "docker://", "docker:///", "/d"],
)
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(UsageError):
        parse_destination(text, "own/image", "1")


def test_what_is_there_already_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"1")
    for place in ("full", "full/file"):
        with pytest.raises(UsageError, match="is no OCI image layout"):
            export_image(store, "oci:1", f"oci:{tmp_path / place}")
    with pytest.raises(HostError, match="cannot write"):
        export_image(store, "oci:1", f"docker-archive:{tmp_path / 'absent' / 'file.tar'}")
    export_image(store, "oci:1", f"oci:{tmp_path / 'out'}")
    before = manifest_of(tmp_path / "out")
    export_image(store, "zstd:1", f"oci:{tmp_path / 'out'}")
    assert manifest_of(tmp_path / "out") != before, "the tag has moved"


def test_the_command_tells_what_differs(store: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        done = CliRunner().invoke(export, [*arguments, "--store", str(store)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout, done.stderr

    out, err = run("oci:1", f"oci:{tmp_path / 'a'}")
    assert out.count("(as it was imported)") == 2
    assert err == ""
    out, err = run("zstd:1", f"oci:{tmp_path / 'b'}")
    assert out.count("(as it was imported)") == out.count("(another than was imported)") == 1
    assert err.count("has another blob than it had: what compressed it is not known") == 2
    assert "signatures of the old one" in err
    out, err = run("docker:1", f"oci:{tmp_path / 'c'}", "--json")
    found = json.loads(out)
    assert (found["same_config"], found["same_manifest"]) == (True, False)
    assert "docker's own form" in found["why_other"]
    out, err = run("zstd:1", f"docker-archive:{tmp_path / 'd.tar'}", "--json")
    assert json.loads(out)["same_manifest"] is None
