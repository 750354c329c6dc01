"""Images read through the real skopeo, from a registry that this file serves on the loopback address."""

import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from blockmap.errors import HostError, ImageError
from blockmap.image.platforms import Platform
from blockmap.image.skopeo import open_daemon, open_registry
from tests.image.layouts import archive, file, layout

AMD64 = Platform("linux", "amd64")
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


@dataclass
class Registry:
    """A repository `own/image`: documents by tag and digest, blobs by digest (distribution-spec, the reading half)."""

    address: str = ""
    documents: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def put(self, media: str, document: Any, *tags: str) -> dict[str, Any]:
        data = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for name in (digest, *tags):
            self.documents[name] = media, data
        return {"mediaType": media, "digest": digest, "size": len(data)}

    def put_image(self, where: Path, architecture: str, *tags: str) -> dict[str, Any]:
        """Adds an image in docker's own form, with one file that is named after its architecture."""
        layout(where, [archive([file(architecture)])], config={"architecture": architecture})
        for blob in (where / "blobs" / "sha256").iterdir():
            self.blobs[f"sha256:{blob.name}"] = blob.read_bytes()
        top = json.loads((where / "index.json").read_text())["manifests"][0]
        manifest = json.loads(self.blobs[top["digest"]])
        manifest["mediaType"] = DOCKER_MANIFEST
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
        manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        return self.put(DOCKER_MANIFEST, manifest, *tags)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[..., None]) -> Iterator[Registry]:
    need("skopeo")
    served = Registry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, name = self.path.removeprefix("/v2/own/image/").partition("/")
            media, data = "application/json", b"{}"
            if kind == "manifests" and name in served.documents:
                media, data = served.documents[name]
            elif kind == "blobs" and name in served.blobs:
                media, data = "application/octet-stream", served.blobs[name]
            elif self.path != "/v2/":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.address = f"127.0.0.1:{server.server_address[1]}"
    own = tmp_path / "home" / ".config" / "containers"
    own.mkdir(parents=True)
    (own / "registries.conf").write_text(f'[[registry]]\nlocation = "{served.address}"\ninsecure = true\n')
    (own / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


def paths(image: Any) -> list[bytes]:
    image.need(0)
    return [member.path for layer in image.layers for member, _ in layer.members(lambda data: None)]


def test_a_single_image_keeps_its_manifest(registry: Registry, tmp_path: Path, work: Path) -> None:
    descriptor = registry.put_image(tmp_path / "image", "amd64", "1", "latest")
    for name in ("own/image:1", "own/image", f"own/image@{descriptor['digest']}"):
        image = open_registry(f"docker://{registry.address}/{name}", AMD64, work)
        assert paths(image) == [b"amd64"]
        assert image.manifest == registry.documents["1"][1]
        assert image.index is None
        assert image.config in registry.blobs.values()
        image.close()
        assert list(work.iterdir()) == []


def test_an_index_is_kept_and_a_platform_chosen(registry: Registry, tmp_path: Path, work: Path) -> None:
    descriptors = [
        registry.put_image(tmp_path / architecture, architecture)
        | {"platform": {"os": "linux", "architecture": architecture}}
        for architecture in ("amd64", "s390x")
    ]
    registry.put(DOCKER_INDEX, {"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": descriptors}, "1")
    reference = f"docker://{registry.address}/own/image:1"
    for architecture, descriptor in zip(("amd64", "s390x"), descriptors, strict=True):
        image = open_registry(reference, Platform("linux", architecture), work)
        assert paths(image) == [architecture.encode()]
        assert image.index == registry.documents["1"][1]
        assert image.manifest == registry.documents[descriptor["digest"]][1]
        image.close()
    with pytest.raises(ImageError, match="not made for linux/arm64: choose one of linux/amd64, linux/s390x"):
        open_registry(reference, Platform("linux", "arm64"), work)
    assert list(work.iterdir()) == []


def test_skopeos_errors_become_one_sentence(registry: Registry, work: Path) -> None:
    with pytest.raises(ImageError) as caught:
        open_registry(f"docker://{registry.address}/own/image:absent", AMD64, work)
    said = str(caught.value)
    assert said.startswith(f"skopeo could not read docker://{registry.address}/own/image:absent: ")
    assert "level=" not in said
    assert "msg=" not in said
    assert "\n" not in said
    with pytest.raises(ImageError, match="skopeo could not read docker-daemon:no such name"):
        open_daemon("docker-daemon:no such name", work)
    assert list(work.iterdir()) == []


def test_a_layer_that_the_registry_lacks(registry: Registry, tmp_path: Path, work: Path) -> None:
    registry.put_image(tmp_path / "image", "amd64", "1")
    manifest = json.loads(registry.documents["1"][1])
    del registry.blobs[manifest["layers"][0]["digest"]]
    image = open_registry(f"docker://{registry.address}/own/image:1", AMD64, work)
    with pytest.raises(ImageError, match="skopeo could not read"):
        image.need(0)
    image.close()
    assert list(work.iterdir()) == []


def test_without_skopeo(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setenv("PATH", str(work))
    with pytest.raises(HostError, match="apt-get install skopeo"):
        open_registry("docker://example.org/image", AMD64, work)
