"""tools/sample-image makes an OCI layout whose digests are right and whose layers say what they should."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.root


def blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    path: Path = layout / "blobs" / descriptor["digest"].replace(":", "/")
    content = path.read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


def test_the_layout_is_whole(sample_image: Path) -> None:
    (entry,) = json.loads((sample_image / "index.json").read_text())["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "latest"
    manifest = json.loads(blob(sample_image, entry))
    config = json.loads(blob(sample_image, manifest["config"]))
    tars = [gzip.decompress(blob(sample_image, layer)) for layer in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
    assert config["config"]["Entrypoint"] == ["redis-server"]
    assert sum(layer["size"] for layer in manifest["layers"]) < 100e6

    names: list[set[str]] = []
    for tar in tars:
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            names.append(set(archive.getnames()))
    base, redis, settings = names
    assert "usr/bin/redis-server" in redis - base
    assert {"etc/redis/redis.conf", "etc/init.d/.wh.redis-server"} <= settings
    outside = ("proc/", "sys/", "dev/", "run/", "tmp/", "var/lib/apt/lists/", "etc/apt/sources.list")
    assert not [name for layer in names for name in layer if name.startswith(outside)]


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    done = subprocess.run([CHECKOUT / "tools" / "sample-image", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "exists already" in done.stderr
    assert not list(tmp_path.iterdir())
