"""Images pulled from a registry of the store, by real clients."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest

from tests.export.committed import commit_changes
from tests.export.exported import manifest_of
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, compress_zstd, directory, file, layout
from tests.registry.running import RunningRegistry, registry

LAYERS = [
    archive([directory("bin"), file("bin/program", bulk(1, 3_000_000))]),
    archive([directory("own"), file("own/kept", b"1"), file("own/text", b"a line\n" * 50_000)]),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Iterator[Path]:
    """Returns a folder with a store of images: `app:1` that can be given as it was, `app:zstd` that cannot, `app:kept` that is."""
    need("skopeo")
    folder = tmp_path_factory.mktemp("registry")
    config = {"config": {"Cmd": ["/bin/program"]}}
    import_image(folder / "store", f"oci:{layout(folder / 'i', LAYERS, config=config)}", "app:1", folder)
    zstd = f"oci:{layout(folder / 'zstd', [LAYERS[0]], compress_zstd)}"
    import_image(folder / "store", zstd, "team/app:zstd", folder)
    other = f"oci:{layout(folder / 'kept', [LAYERS[1]], compress_zstd)}"
    import_image(folder / "store", other, "app:kept", folder, keeps_blobs=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def served(work: Path) -> Iterator[RunningRegistry]:
    with registry(work, work / "store") as found:
        yield found


def test_an_image_is_given_as_it_was(served: RunningRegistry, work: Path, tmp_path: Path) -> None:
    for name, source in (("app:1", "i"), ("app:kept", "kept")):
        assert served.copy(name, tmp_path / source) == manifest_of(work / source)[1]
    manifest = manifest_of(work / "i")[1]
    status, headers, body = served.get(f"app/manifests/sha256:{hashlib.sha256(manifest).hexdigest()}")
    assert (status, body) == (200, manifest)
    assert headers["Content-Type"] == json.loads(manifest)["mediaType"]
    assert headers["Docker-Content-Digest"] == f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def test_what_cannot_be_given_as_it_was_has_a_new_manifest_and_the_same_id(
    served: RunningRegistry, work: Path, tmp_path: Path
) -> None:
    old = manifest_of(work / "zstd")[1]
    new = json.loads(served.copy("team/app:zstd", tmp_path / "zstd"))
    assert new["config"]["digest"] == json.loads(old)["config"]["digest"]
    (layer,) = new["layers"]
    assert layer["digest"] == f"sha256:{hashlib.sha256(LAYERS[0]).hexdigest()}"
    assert layer["mediaType"].endswith(".tar")
    status, code, message = served.error(f"team/app/manifests/sha256:{hashlib.sha256(old).hexdigest()}")
    assert (status, code) == (404, "MANIFEST_UNKNOWN")
    assert "cannot be made again here" in message


@pytest.mark.root
def test_what_was_committed(work: Path, served: RunningRegistry, tmp_path: Path) -> None:
    def change(top: Path) -> None:
        (top / "own" / "new").write_bytes(b"changed")

    commit_changes(work / "store", "app:1", "app:2", tmp_path, change, "[]")
    base = json.loads(manifest_of(work / "i")[1])
    found = json.loads(served.copy("app:2", tmp_path / "out"))
    assert [each["digest"] for each in found["layers"][:2]] == [each["digest"] for each in base["layers"]]
    assert len(found["layers"]) == 3
    assert json.loads(served.copy("app:2", tmp_path / "again")) == found


def test_parts_of_blobs(served: RunningRegistry, work: Path) -> None:
    manifest = json.loads(served.get("app/manifests/1")[2])
    digest, size = manifest["layers"][0]["digest"], manifest["layers"][0]["size"]
    blob = (work / "i/blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()
    ranges = {"bytes=0-99": blob[:100], f"bytes={size - 7}-": blob[-7:], "bytes=-9": blob[-9:], "bytes=5-5": blob[5:6]}
    for asked, expected in ranges.items():
        status, headers, body = served.get(f"app/blobs/{digest}", Range=asked)
        assert (status, body) == (206, expected)
        assert headers["Content-Range"].endswith(f"/{size}")
    assert served.get(f"app/blobs/{digest}", Range=f"bytes={size}-")[0] == 416
    status, headers, body = served.get(f"app/blobs/{digest}", "HEAD")
    assert (status, int(headers["Content-Length"]), body) == (200, size, b"")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: served.get(f"app/blobs/{digest}")[2], range(16))) == {blob}


def test_lists(served: RunningRegistry) -> None:
    assert json.loads(served.get("_catalog")[2]) == {"repositories": ["app", "team/app"]}
    tags = json.loads(served.get("app/tags/list")[2])["tags"]
    assert {"1", "kept"} <= set(tags)
    assert json.loads(served.get("app/tags/list?n=1")[2])["tags"] == ["1"]
    assert "1" not in json.loads(served.get("app/tags/list?last=1")[2])["tags"]
    assert served.get("")[0] == 200
    assert json.loads(served.get(f"app/referrers/sha256:{'0' * 64}")[2])["manifests"] == []


def test_names_as_docker_gives_them_to_mirrors(served: RunningRegistry, work: Path) -> None:
    for path in ("library/app/manifests/1", "library/app/manifests/1?ns=docker.io"):
        assert served.get(path)[2] == manifest_of(work / "i")[1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("app/manifests/none", (404, "MANIFEST_UNKNOWN")),
        (f"app/manifests/sha256:{'0' * 64}", (404, "MANIFEST_UNKNOWN")),
        (f"app/blobs/sha256:{'0' * 64}", (404, "BLOB_UNKNOWN")),
        ("app/blobs/md5:0", (400, "NAME_INVALID")),
        ("App/manifests/1", (400, "NAME_INVALID")),
        ("nothing/tags/list", (404, "NAME_UNKNOWN")),
        ("app/tags/list?n=x", (400, "NAME_INVALID")),
    ],
)
def test_what_is_not_there(served: RunningRegistry, path: str, expected: tuple[int, str]) -> None:
    assert served.error(path)[:2] == expected


def test_blobs_are_known_after_a_restart_and_to_another_registry(work: Path, tmp_path: Path) -> None:
    with registry(tmp_path, work / "store") as first:
        manifest = json.loads(first.get("app/manifests/1")[2])
    for cache in (tmp_path, tmp_path / "other"):
        cache.mkdir(exist_ok=True)
        with registry(cache, work / "store") as second:
            for each in (manifest["config"], *manifest["layers"]):
                body = second.get(f"app/blobs/{each['digest']}")[2]
                assert f"sha256:{hashlib.sha256(body).hexdigest()}" == each["digest"]


def test_users_and_tls(work: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("openssl")
    certificate, key, users = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "users"
    made = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost")
    subprocess.run(["openssl", "req", *made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    users.write_text(f"team:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    arguments = ("--users", str(users), "--tls", str(certificate), str(key))
    with registry(tmp_path, work / "store", *arguments) as found:
        pull = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{found.address}/app:1"]
        for password, status in (("right", 0), ("wrong", 1)):
            done = subprocess.run([*pull, "--creds", f"team:{password}"], capture_output=True, check=False, timeout=60)
            assert (done.returncode != 0) == status, done.stderr


def test_a_store_that_is_away(work: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", work / "store", tmp_path / "store"], check=True)
    with registry(tmp_path, tmp_path / "store") as found:
        digest = json.loads(found.get("app/manifests/1")[2])["layers"][0]["digest"]
        (tmp_path / "store").rename(tmp_path / "away")
        assert found.error("app/manifests/kept")[:2] == (503, "UNAVAILABLE")
        assert found.get(f"app/blobs/{digest}")[0] in (500, 503)
        (tmp_path / "away").rename(tmp_path / "store")
        body = found.get(f"app/blobs/{digest}")[2]
        assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest
