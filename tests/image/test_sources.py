"""SOURCE arguments, and the images that they open."""

import os
import tarfile
from pathlib import Path

import pytest

from blockmap.errors import ImageError, UsageError
from blockmap.image.archive import DockerArchive
from blockmap.image.directory import Directory
from blockmap.image.disk_image import DiskSource
from blockmap.image.oci import OciImage
from blockmap.image.platforms import Platform, parse_platform
from blockmap.image.sources import FORMS, open_source
from tests.image.builder import docker_archive
from tests.image.layouts import archive, file, layout

LAYERS = [archive([file("a", b"1")])]


def kind(text: object, work: Path) -> type:
    source = open_source(str(text), platform="linux/amd64", work=work)
    source.close()
    return type(source)


def test_each_form(tmp_path: Path) -> None:
    made = layout(tmp_path / "layout", LAYERS)
    saved = docker_archive(tmp_path / "saved.tar", LAYERS)
    assert kind(f"oci:{made}", tmp_path) is OciImage
    assert kind(f"oci:{made}:1", tmp_path) is OciImage
    assert kind(f"docker-archive:{saved}", tmp_path) is DockerArchive
    assert kind(f"docker-archive:{saved}:image:1", tmp_path) is DockerArchive
    with tarfile.open(tmp_path / "oci.tar", "w") as out:
        out.add(made, ".")
    assert kind(f"oci-archive:{tmp_path}/oci.tar", tmp_path) is OciImage
    assert kind(f"oci-archive:{tmp_path}/oci.tar:1", tmp_path) is OciImage
    plain = tmp_path / "plain"
    plain.mkdir()
    assert kind(plain, tmp_path) is Directory


def test_a_disk(tmp_path: Path, need: object) -> None:
    need("qemu-img")  # type: ignore[operator]
    (tmp_path / "disk").write_bytes(bytes(4096))
    assert kind(tmp_path / "disk", tmp_path) is DiskSource


def test_paths_may_have_colons(tmp_path: Path) -> None:
    made = layout(tmp_path / "a:b", LAYERS, tag="t")
    saved = docker_archive(tmp_path / "c:d:e.tar", LAYERS, ["host:5000/image:1"])
    plain = tmp_path / "oci"
    plain.mkdir()
    assert kind(f"oci:{made}", tmp_path) is OciImage
    assert kind(f"oci:{made}:t", tmp_path) is OciImage
    assert kind(f"docker-archive:{saved}:host:5000/image:1", tmp_path) is DockerArchive
    weird = tmp_path / "docker:thing"
    weird.mkdir()
    assert kind(weird, tmp_path) is Directory


def test_a_folder_named_like_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("http:").mkdir()
    assert kind("http:", tmp_path) is Directory
    layout(tmp_path / "image", LAYERS)
    assert kind("oci:image:1", tmp_path) is OciImage


@pytest.mark.parametrize(
    "text",
    ["", ":", "oci:", "docker-archive:", "docker:", "docker:redis", "docker:/redis", "docker://", "docker:///", "docker-daemon:",
     "http://example.org/x", "podman:x", "redis:7", "/dev/null", "x:\0", "oci:\0", "OCI:x"],
)  # fmt: skip
def test_what_is_not_understood_lists_the_forms(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(text, platform=None, work=tmp_path)
    assert FORMS in str(caught.value)


@pytest.mark.parametrize("text", ["redis", "no/such/thing", "oci:no/such", "docker-archive:no-such:redis:7"])
def test_what_is_not_there(text: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no .*oci:DIR\[:TAG\]"):
        open_source(text, platform=None, work=tmp_path)


@pytest.mark.parametrize("text", ["x" * 5000, "oci:" + "x" * 5000, "docker-archive:" + "y" * 300])
def test_paths_that_cannot_be(text: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        open_source(text, platform=None, work=tmp_path)


def test_ambiguities(tmp_path: Path) -> None:
    made = layout(tmp_path / "layout", LAYERS)
    saved = docker_archive(tmp_path / "saved.tar", LAYERS)
    with pytest.raises(UsageError, match=f"is an OCI image layout: to import an image of it, say oci:{made}"):
        kind(made, tmp_path)
    with pytest.raises(UsageError, match=f"is an archive, not a disk image: say docker-archive:{saved}"):
        kind(saved, tmp_path)
    with pytest.raises(UsageError, match="ends in a colon"):
        kind(f"oci:{made}:", tmp_path)
    with pytest.raises(ImageError, match="not an OCI image layout"):
        kind(f"oci:{saved}", tmp_path)


@pytest.mark.parametrize("text", ["", "linux", "amd64", "linux/", "/amd64", "linux/arm/v7/x", "linux//v7"])
def test_platforms_that_make_no_sense(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a platform: OS/ARCH or OS/ARCH/VARIANT is expected"):
        open_source(str(tmp_path), platform=text, work=tmp_path)


@pytest.mark.parametrize(
    ("machine", "platform"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7"), ("riscv64", "linux/riscv64"),
     ("novel", "linux/novel")],
)  # fmt: skip
def test_this_hosts_platform(machine: str, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", machine)))
    assert str(parse_platform(None)) == platform
    assert parse_platform(platform) == parse_platform(None)


def test_a_variant_counts_where_both_have_one() -> None:
    arm = {"os": "linux", "architecture": "arm"}
    assert Platform("linux", "arm", "v7").fits(arm | {"variant": "v7"})
    assert Platform("linux", "arm", "v7").fits(arm)
    assert Platform("linux", "arm").fits(arm | {"variant": "v6"})
    assert not Platform("linux", "arm", "v7").fits(arm | {"variant": "v6"})
    assert not Platform("linux", "arm").fits({})
