"""Runs what holds blockmap's store on the far side: a directory behind the web server, or SeaweedFS."""

import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blockmap.bench.coldstart.processes import answers, free_ports, running, wait_ready
from blockmap.host import tools

ENGINES = ("http", "s3")
BUCKET = "blockmap-bench"
_FOLDER = "store"
_KEY, _SECRET = "benchkey", "benchsecret"
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
          "s3.port", "s3.port.grpc")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Store:
    """Where a store is, and the environment in which blockmap finds it."""

    url: str
    environment: Mapping[str, str]


def to_read(engine: str, far: str) -> Store:
    """Returns the store as seen through `far`, http://HOST:PORT."""
    return _s3(far) if engine == "s3" else Store(f"{far}/{_FOLDER}", os.environ)


def to_write(engine: str, far: str, files: Path) -> Store:
    """Returns the same store on the far side itself, whose files are in a folder."""
    return _s3(far) if engine == "s3" else Store(str(files / _FOLDER), os.environ)


def _s3(far: str) -> Store:
    own = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    own |= {
        "AWS_ENDPOINT_URL": far, "AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_REGION": "us-east-1",
    }  # fmt: skip
    return Store(f"s3://{BUCKET}/{_FOLDER}", own)


@contextlib.contextmanager
def seaweedfs(work: Path, files: Path) -> Iterator[int]:
    """Runs a SeaweedFS with the bucket; yields the port of its S3 API."""
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    data, settings, log = files / "seaweedfs", work / "s3.json", work / "seaweedfs.log"
    data.mkdir()
    identity = {
        "name": "bench",
        "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    settings.write_text(json.dumps({"identities": [identity]}))
    command = [
        tools.find("weed"), "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.peers=none", "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=32",
        "-volume.preStopSeconds=0", "-filer", "-s3", f"-s3.config={settings}", "-s3.iam=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    try:
        # It does not end by SIGTERM.
        with running(command, log, end=signal.SIGKILL) as process:
            wait_ready(process, log, lambda: answers(ports["s3.port"]) and _make_bucket(ports["filer.port"]))
            yield ports["s3.port"]
    finally:
        for port in ports.values():  # sockets of its own, which it leaves behind
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _make_bucket(filer_port: int) -> bool:
    """Makes the bucket, a folder of the filer; returns True if that worked."""
    request = urllib.request.Request(f"http://127.0.0.1:{filer_port}/buckets/{BUCKET}/", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except OSError:
        return False
