"""OCI image layouts: those that are read, those that are refused, and those that skopeo and umoci made."""

import contextlib
import copy
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import BlockmapError, ImageError, UsageError
from blockmap.image.oci import OciImage, open_layout
from blockmap.image.platforms import Platform
from blockmap.image.tolerance import UnpackPolicy
from tests.image.layouts import archive, compress_gzip, compress_zstd, directory, file, layout

AMD64 = Platform("linux", "amd64")
LAYERS = [archive([directory("a"), file("a/b", b"1" * 5000)]), archive([file("a/c", b"2")])]
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


def contents(image: OciImage) -> list[list[tuple[bytes, bytes]]]:
    return [
        [(member.path, b"".join(pieces)) for member, pieces in layer.members(lambda data: None)]
        for layer in image.layers
    ]


EXPECTED = [[(b"a", b""), (b"a/b", b"1" * 5000)], [(b"a/c", b"2")]]


def put(where: Path, document: object) -> dict[str, Any]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (where / "blobs" / "sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def get(where: Path, descriptor: dict[str, Any]) -> Any:
    return json.loads((where / "blobs" / "sha256" / descriptor["digest"][7:]).read_bytes())


def top(where: Path) -> list[Any]:
    return list(json.loads((where / "index.json").read_text())["manifests"])


def set_top(where: Path, *descriptors: object) -> None:
    (where / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": descriptors}))


def change(where: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Changes the manifest, and the index that names it."""
    (descriptor,) = top(where)
    manifest = get(where, descriptor)
    edit(manifest)
    set_top(where, descriptor | put(where, manifest))
    return where


@pytest.mark.parametrize("compress", [None, compress_gzip, compress_zstd])
def test_layers_in_each_format(tmp_path: Path, compress: Callable[[bytes], bytes] | None) -> None:
    where = layout(tmp_path, LAYERS, compress)
    image = open_layout(where, "1", AMD64)
    assert contents(image) == EXPECTED
    diff_ids = [hashlib.sha256(data).digest() for data in LAYERS]
    text = f"sha256:{diff_ids[0].hex()} sha256:{diff_ids[1].hex()}"
    assert [layer.chain for layer in image.layers] == [diff_ids[0], hashlib.sha256(text.encode()).digest()]
    (descriptor,) = top(where)
    manifest = get(where, descriptor)
    assert [layer.size for layer in image.layers] == [layer["size"] for layer in manifest["layers"]]
    assert image.manifest == (where / "blobs/sha256" / descriptor["digest"][7:]).read_bytes()
    assert image.config == (where / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes()
    assert image.index is None
    image.close()


def test_the_first_bytes_decide_the_format_where_the_type_is_another(tmp_path: Path) -> None:
    def relabel(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
        manifest["layers"][1]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"

    assert contents(open_layout(change(layout(tmp_path, LAYERS, compress_zstd), relabel), None, AMD64)) == EXPECTED


@pytest.mark.parametrize(
    ("media", "said"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "foreign layer"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign layer"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.oci.image.layer.v1.tar+lz4", "not supported"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "not supported"),
        ("", "not supported"),
    ],
)
def test_layers_that_are_refused_by_name(tmp_path: Path, media: str, said: str) -> None:
    where = change(layout(tmp_path, LAYERS), lambda manifest: manifest["layers"][1].update(mediaType=media))
    digest = get(where, top(where)[0])["layers"][1]["digest"]
    with pytest.raises(ImageError) as caught:
        open_layout(where, None, AMD64)
    assert digest in str(caught.value)
    assert repr(media) in str(caught.value)
    assert said in str(caught.value)


def tagged(tmp_path: Path, *tags: str) -> Path:
    descriptors = []
    for number, tag in enumerate(tags):
        layout(tmp_path, [archive([file(f"from-{number}")])], tag=tag)
        descriptors += top(tmp_path)
    set_top(tmp_path, *descriptors)
    return tmp_path


def test_tags(tmp_path: Path) -> None:
    where = tagged(tmp_path, "1", "2")
    assert contents(open_layout(where, "2", AMD64)) == [[(b"from-1", b"")]]
    with pytest.raises(UsageError, match="the tags 1, 2, and none of its images is called '3'"):
        open_layout(where, "3", AMD64)
    with pytest.raises(UsageError, match="the tags 1, 2, and the choice is not clear: name one as oci:DIR:TAG"):
        open_layout(where, None, AMD64)
    set_top(where)
    with pytest.raises(ImageError, match="holds no image"):
        open_layout(where, None, AMD64)


def platforms(where: Path, media: str = INDEX) -> tuple[Path, bytes]:
    """Writes a layout whose only image is an index of three, with an attestation among them."""
    descriptors: list[dict[str, Any]] = []
    for os_, architecture, variant in (
        ("unknown", "unknown", ""), ("linux", "arm", "v7"), ("linux", "amd64", ""), ("linux", "arm64", "v8"),
    ):  # fmt: skip
        layout(where, [archive([file(f"{os_}-{architecture}")])])
        platform = {"os": os_, "architecture": architecture} | ({"variant": variant} if variant else {})
        descriptors.append(
            {key: value for key, value in top(where)[0].items() if key != "annotations"} | {"platform": platform}
        )
    index = {"schemaVersion": 2, "mediaType": media, "manifests": descriptors}
    set_top(where, {"mediaType": media, **put(where, index)})
    return where, json.dumps(index).encode()


@pytest.mark.parametrize("media", [INDEX, DOCKER_INDEX])
def test_an_index_gives_the_image_for_a_platform(tmp_path: Path, media: str) -> None:
    where, index = platforms(tmp_path, media)
    for platform in (
        AMD64,
        Platform("linux", "arm64"),
        Platform("linux", "arm64", "v8"),
        Platform("linux", "arm", "v7"),
    ):
        image = open_layout(where, None, platform)
        assert contents(image) == [[(f"linux-{platform.architecture}".encode(), b"")]]
        assert image.index == index
    with pytest.raises(
        ImageError, match="not made for linux/arm/v6: choose one of linux/amd64, linux/arm/v7, linux/arm64/v8"
    ):
        open_layout(where, None, Platform("linux", "arm", "v6"))
    with pytest.raises(ImageError, match="not made for windows/amd64"):
        open_layout(where, None, Platform("windows", "amd64"))


def test_an_index_in_an_index(tmp_path: Path) -> None:
    where, _ = platforms(tmp_path)
    outer = {"schemaVersion": 2, "mediaType": INDEX, "manifests": top(where)}
    set_top(where, {"mediaType": INDEX, **put(where, outer)})
    image = open_layout(where, None, AMD64)
    assert contents(image) == [[(b"linux-amd64", b"")]]
    assert image.index == json.dumps(outer).encode()
    for _ in range(5):
        outer = {"schemaVersion": 2, "mediaType": INDEX, "manifests": top(where)}
        set_top(where, {"mediaType": INDEX, **put(where, outer)})
    with pytest.raises(ImageError, match="nested more than"):
        open_layout(where, None, AMD64)


ATTESTATION = {
    "platform": {"os": "unknown", "architecture": "unknown"},
    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    "digest": "sha256:" + "0" * 64,
    "size": 9,
}


def without_platforms(where: Path) -> list[dict[str, Any]]:
    """Writes images for two platforms, and returns descriptors that do not say so."""
    found = []
    for architecture in ("arm64", "amd64"):
        layout(where, [archive([file(f"for-{architecture}")])], config={"architecture": architecture})
        found.append({key: value for key, value in top(where)[0].items() if key != "annotations"})
    return found


def test_images_without_a_platform_are_chosen_by_their_configurations(tmp_path: Path) -> None:
    arm64, amd64 = without_platforms(tmp_path)
    empty = put(tmp_path, {"config": put(tmp_path, {}), "layers": []})
    absent = {"digest": "sha256:" + "1" * 64, "size": 9}
    for images, warnings in (
        ([ATTESTATION, arm64, amd64], 1),
        ([absent, empty, amd64, arm64], 1),
        ([amd64, ATTESTATION], 0),
        ([{**arm64, "platform": {"os": "linux", "architecture": "arm64"}}, amd64], 1),
    ):
        for tag in ({}, {"annotations": {"org.opencontainers.image.ref.name": "1"}}):
            set_top(tmp_path, {"mediaType": INDEX, **put(tmp_path, {"mediaType": INDEX, "manifests": images}), **tag})
            said: list[str] = []
            image = open_layout(tmp_path, None, AMD64, UnpackPolicy(said.append))
            assert contents(image) == [[(b"for-amd64", b"")]]
            assert len(said) == warnings
            assert all("does not say for which platforms its images are" in text for text in said)
    set_top(tmp_path, {"mediaType": INDEX, **put(tmp_path, {"mediaType": INDEX, "manifests": [absent, arm64, amd64]})})
    with pytest.raises(ImageError, match="not made for linux/s390x: choose one of linux/amd64, linux/arm64, unknown"):
        open_layout(tmp_path, None, Platform("linux", "s390x"))


def test_images_of_one_tag_without_a_platform(tmp_path: Path) -> None:
    tag = {"annotations": {"org.opencontainers.image.ref.name": "1"}}
    set_top(tmp_path, *(image | tag for image in without_platforms(tmp_path)))
    assert contents(open_layout(tmp_path, "1", AMD64)) == [[(b"for-amd64", b"")]]
    set_top(tmp_path, *without_platforms(tmp_path), ATTESTATION)
    assert contents(open_layout(tmp_path, None, AMD64)) == [[(b"for-amd64", b"")]]


CONFIG = "application/vnd.oci.image.config.v1+json"


@pytest.mark.parametrize(
    ("config", "layer", "artifact", "said"),
    [
        ("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", None, "a Helm chart"),
        (CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json", None, "a signature"),
        ("application/vnd.oci.empty.v1+json", "application/jose+json", "application/vnd.cncf.notary.signature", "a signature"),
        (CONFIG, "application/vnd.in-toto+json", None, "an attestation"),
        ("application/vnd.oci.empty.v1+json", "application/spdx+json", None, "a bill of materials"),
        ("application/vnd.oci.empty.v1+json", "text/plain", "application/vnd.example+json", "vnd.example"),
        ("application/vnd.unknown.config.v1+json", "application/vnd.oci.image.layer.v1.tar", None, "vnd.unknown"),
        ("application/vnd.docker.plugin.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip", None, "a plugin"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_called_what_it_is(
    tmp_path: Path, config: str, layer: str, artifact: str | None, said: str
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["config"]["mediaType"] = config
        manifest["layers"] = [{**own, "mediaType": layer} for own in manifest["layers"]]
        if artifact:
            manifest["artifactType"] = artifact

    with pytest.raises(ImageError, match=f"this is .*{said}.*not an image: there are no files in it to import"):
        open_layout(change(layout(tmp_path, LAYERS), edit), None, AMD64)


@pytest.mark.parametrize("media", ["", "application/octet-stream", "application/vnd.docker.container.image.v1+json"])
def test_configurations_of_old_registries_are_those_of_images(tmp_path: Path, media: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["config"]["mediaType"] = media
        manifest["artifactType"] = "application/vnd.example+json"  # an image may have one

    assert contents(open_layout(change(layout(tmp_path, LAYERS), edit), None, AMD64)) == EXPECTED


def test_several_platforms_under_one_tag(tmp_path: Path) -> None:
    where, index = platforms(tmp_path)
    tag = {"annotations": {"org.opencontainers.image.ref.name": "1"}}
    set_top(where, *(descriptor | tag for descriptor in json.loads(index)["manifests"]))
    image = open_layout(where, "1", AMD64)
    assert contents(image) == [[(b"linux-amd64", b"")]]
    assert image.index is None


def test_damage(tmp_path: Path) -> None:
    where = layout(tmp_path, LAYERS)
    manifest = get(where, top(where)[0])
    blob = where / "blobs/sha256" / manifest["layers"][1]["digest"][7:]
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1])
    with pytest.raises(ImageError, match=r"has \d+ bytes where \d+ are expected: it is truncated, get it again"):
        open_layout(where, None, AMD64)
    blob.write_bytes(whole[:-1] + b"\xff")
    with pytest.raises(ImageError, match=f"{blob.name}"):
        contents(open_layout(where, None, AMD64))
    blob.unlink()
    with pytest.raises(ImageError, match=f"{blob.name} is missing from the image"):
        open_layout(where, None, AMD64)
    blob.write_bytes(whole)
    config = where / "blobs/sha256" / manifest["config"]["digest"][7:]
    config.write_bytes(config.read_bytes().replace(b"amd64", b"arm64"))
    with pytest.raises(ImageError, match=f"the document sha256:{config.name} is damaged"):
        open_layout(where, None, AMD64)


def test_a_config_that_lists_other_layers(tmp_path: Path) -> None:
    where = change(layout(tmp_path, LAYERS), lambda manifest: manifest["layers"].pop())
    with pytest.raises(ImageError, match="has 1 layers, but its configuration lists 2"):
        open_layout(where, None, AMD64)


def test_a_wrong_diff_id(tmp_path: Path) -> None:
    wrong = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}
    image = open_layout(layout(tmp_path, LAYERS[:1], config=wrong), None, AMD64)
    with pytest.raises(ImageError, match=f"{hashlib.sha256(LAYERS[0]).hexdigest()}, and sha256:{'0' * 64} is expected"):
        contents(image)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda manifest: manifest.update(manifests=[]), "index and an image at once"),
        (lambda manifest: manifest.update(mediaType=INDEX), "says that it is of the type"),
        (lambda manifest: manifest["config"].update(digest="sha512:" + "0" * 128), "not a SHA-256 digest"),
        (lambda manifest: manifest["config"].update(digest="sha256:../../../etc/passwd"), "not a SHA-256 digest"),
        (lambda manifest: manifest["layers"][0].update(size=-1), "the size -1"),
        (lambda manifest: manifest.pop("config"), "descriptor is expected"),
        (lambda manifest: manifest.update(layers=7), "list of descriptors is expected"),
    ],
)
def test_documents_that_make_no_sense(tmp_path: Path, edit: Callable[[dict[str, Any]], object], said: str) -> None:
    with pytest.raises(ImageError, match=said):
        open_layout(change(layout(tmp_path, LAYERS), edit), None, AMD64)


def test_types_of_manifest_that_are_not_supported(tmp_path: Path) -> None:
    where = layout(tmp_path, LAYERS)
    old = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    set_top(where, {"mediaType": old, **put(where, {"schemaVersion": 1, "fsLayers": []})})
    with pytest.raises(ImageError, match=f"of the type '{old}', which is not supported".replace("+", r"\+")):
        open_layout(where, None, AMD64)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=4), st.just("sha256:" + "0" * 64)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["digest", "size", "mediaType", "manifests", "layers", "config", "platform", "annotations",
                             "rootfs", "diff_ids", "os", "architecture"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout(tmp_path_factory.mktemp("whole"), LAYERS)


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_documents_with_arbitrary_parts(whole: Path, data: st.DataObject) -> None:
    """Any part of the index, the manifest or the configuration may be any JSON."""
    blobs = whole / "blobs" / "sha256"
    (descriptor,) = json.loads(json.dumps(top(whole)))
    kept = descriptor
    manifest = get(whole, descriptor)
    config = get(whole, manifest["config"])
    made = []
    try:
        victim = data.draw(st.sampled_from(["index", "manifest", "config"]))
        document: Any = copy.deepcopy(
            {"index": {"manifests": [descriptor]}, "manifest": manifest, "config": config}[victim]
        )
        at = document
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
            if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
                at[key] = data.draw(JSON)
                break
            at = at[key]
        if victim == "config":
            manifest = manifest | {"config": manifest["config"] | put(whole, document)}
            made.append(manifest["config"]["digest"])
        elif victim == "manifest":
            manifest = document
        if victim != "index":
            descriptor = descriptor | put(whole, manifest)
            made.append(descriptor["digest"])
            document = {"manifests": [descriptor]}
        (whole / "index.json").write_text(json.dumps(document))
        with contextlib.suppress(BlockmapError):
            contents(open_layout(whole, data.draw(st.sampled_from([None, "1"])), AMD64))
    finally:
        set_top(whole, kept)
        for digest in set(made) - {kept["digest"], get(whole, kept)["config"]["digest"]}:
            (blobs / digest[7:]).unlink(missing_ok=True)


# --- made by other programs


def test_layouts_that_skopeo_and_umoci_made(tmp_path: Path, need: Callable[..., None]) -> None:
    need("skopeo", "umoci")
    made = layout(tmp_path / "made", LAYERS)
    formats = {"gzip": ["--dest-compress-format", "gzip"], "zstd": ["--dest-compress-format", "zstd"]}
    for name, options in formats.items():
        plain = tmp_path / f"plain-{name}"
        subprocess.run(["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-decompress", f"oci:{made}:1",
                        f"dir:{plain}"], check=True)  # fmt: skip
        copied = tmp_path / name
        subprocess.run(["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-compress", *options, f"dir:{plain}",
                        f"oci:{copied}:tag"], check=True)  # fmt: skip
        (descriptor,) = top(copied)
        types = {layer["mediaType"] for layer in get(copied, descriptor)["layers"]}
        assert types == {f"application/vnd.oci.image.layer.v1.tar+{name}"}
        assert contents(open_layout(copied, "tag", AMD64)) == EXPECTED
    own = tmp_path / "umoci"
    subprocess.run(["umoci", "init", "--layout", own], check=True)
    subprocess.run(["umoci", "new", "--image", f"{own}:1"], check=True)
    added = tmp_path / "added"
    added.mkdir()
    (added / "file").write_bytes(b"umoci")
    subprocess.run(["umoci", "insert", "--rootless", "--image", f"{own}:1", added, "/top"], check=True)
    found = dict(contents(open_layout(own, "1", AMD64))[0])
    assert found[b"top/file"] == b"umoci"


def test_the_corpus(tmp_path: Path) -> None:
    """Every layer of a few real images has the digests that its image states."""
    corpus = os.environ.get("BLOCKMAP_CORPUS")
    if not corpus:
        pytest.skip("BLOCKMAP_CORPUS does not name a folder of images")
    for name in ("busybox", "redis", "node"):
        image = open_layout(Path(corpus) / name, "1", AMD64)
        assert sum(len(layer) for layer in contents(image)) > 200
