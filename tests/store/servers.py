"""Real object stores on loopback, each a process with a folder and ports of its own."""

import base64
import contextlib
import hmac
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Protocol

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.waiting import free_ports, listens

KEY, SECRET = "testkey", "testsecret"
AZURITE = "3.37.0"
READ_KEY, READ_SECRET = "readkey", "readsecret"
"""May only read and list, where a server can tell the two apart."""
START_S = 120.0
REMOTE = ["seaweedfs", *(pytest.param(name, marks=pytest.mark.long) for name in ("ceph", "azurite"))]
"""Fixtures of tests/conftest.py that give a Server."""
_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_")


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Polls until a server answers; fails with its log when it ended or the time is up."""
    deadline = time.monotonic() + START_S
    while not ready():
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.05)


def clean(environment: dict[str, str]) -> dict[str, str]:
    """An environment without anybody's credentials."""
    return {key: value for key, value in environment.items() if not key.startswith(_VARIABLES)}


@contextlib.contextmanager
def running(command: list[str], log: Path, ready: Callable[[], bool], **variables: str) -> Iterator[None]:
    """A server in a process; killed at the end, since SeaweedFS does not end by SIGTERM."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**clean(dict(os.environ)), **variables}
        )
    try:
        until(ready, process, log)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


class Server(Protocol):
    environment: dict[str, str]
    """What makes blockmap find it."""

    def url(self) -> str:
        """Returns the URL of a place where nothing is yet."""


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process find a server, and nothing else."""
    for key in list(os.environ):
        if key.startswith(_VARIABLES):
            monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)


class S3:
    """A server that speaks S3, with one bucket; each store in it has a prefix of its own."""

    def __init__(self, port: int, host: str = "127.0.0.1", bucket: str = "tests") -> None:
        self.port = port
        self.endpoint = f"http://{host}:{port}"
        self.bucket = bucket
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def url(self) -> str:
        return f"s3://{self.bucket}/{secrets.token_hex(6)}"

    def make_bucket(self) -> bool:
        """Whether the bucket is there and answers a put and a get: the port does before."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 0}),
        )
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"1")
            return bool(client.get_object(Bucket=self.bucket, Key="ready")["Body"].read() == b"1")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()


@contextlib.contextmanager
def seaweedfs(where: Path, host: str = "127.0.0.1") -> Iterator[S3]:
    """SeaweedFS, all in one process; `host` is the address it listens on."""
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": READ_KEY, "secretKey": READ_SECRET}],
        "actions": ["Read", "List"],
    }
    (where / "data").mkdir()
    (where / "s3.json").write_text(json.dumps({"identities": [identity, reader]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    server = S3(ports["s3.port"], host)
    command = [
        "weed", "-logtostderr=true", "server", f"-dir={where}/data", f"-ip={host}", f"-ip.bind={host}",
        "-master.peers=none", "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=32",
        "-volume.preStopSeconds=0", "-filer", "-s3", f"-s3.config={where}/s3.json", "-s3.iam=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    try:
        with running(command, where / "log", server.make_bucket):
            yield server
    finally:
        for port in ports.values():  # sockets of its own, which being killed it leaves behind
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


@contextlib.contextmanager
def rclone(where: Path) -> Iterator[S3]:
    """A server that lies: it ignores conditions, and answers a range with 200."""
    (where / "data").mkdir()
    (port,) = free_ports(1)
    server = S3(port)
    command = [
        "rclone", "--config", "/dev/null", "serve", "s3", f"{where}/data", "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{KEY},{SECRET}", "--vfs-cache-mode", "off",
    ]  # fmt: skip
    with running(command, where / "log", server.make_bucket):
        yield server


_NGINX = """daemon off; pid {where}/pid; error_log {where}/err.log warn; {user} worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; default_type application/octet-stream; keepalive_requests 1000000;
  client_body_temp_path {where}/t1; proxy_temp_path {where}/t2; fastcgi_temp_path {where}/t3;
  uwsgi_temp_path {where}/t4; scgi_temp_path {where}/t5;
  {text}
}}
"""


@contextlib.contextmanager
def configured(where: Path, port: int, text: str) -> Iterator[None]:
    """nginx with `text` in its section http, which makes it listen on `port`."""
    user = "user root;" if os.geteuid() == 0 else ""
    (where / "nginx.conf").write_text(_NGINX.format(where=where, user=user, text=text))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with open(where / "log", "wb") as out:
        process = subprocess.Popen([program, "-c", f"{where}/nginx.conf"], stdout=out, stderr=out)
    try:
        until(lambda: listens(port), process, where / "log")
        yield
    finally:
        process.send_signal(signal.SIGTERM)  # ends its workers too
        process.wait()


@contextlib.contextmanager
def nginx(where: Path, root: Path, more: str = "", certified: Path | None = None) -> Iterator[str]:
    """nginx over a directory; gives its URL. `more` goes into its one location; `certified` has cert.pem and key.pem."""
    (port,) = free_ports(1)
    tls = f"ssl; ssl_certificate {certified}/cert.pem; ssl_certificate_key {certified}/key.pem" if certified else ""
    text = f"server {{ listen 127.0.0.1:{port} {tls}; root {root}; location / {{ {more} }} }}"
    with configured(where, port, text):
        yield f"https://localhost:{port}" if certified else f"http://127.0.0.1:{port}"


_CEPH = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2}/0,v1:127.0.0.1:{v1}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
run dir = {where}/run
pid file = {where}/run/$type.$id.pid
admin socket = {where}/run/$type.$id.asok
log file = {where}/run/$type.$id.log
crash dir = {where}/run
keyring = {where}/keyring
[mon]
mon data = {where}/mon
mon data avail crit = 1
[osd]
osd data = {where}/osd
osd objectstore = bluestore
bluestore block create = true
bluestore block size = 21474836480
osd memory target = 1073741824
[client.rgw]
rgw data = {where}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
ms mon client mode = crc
"""


@contextlib.contextmanager
def ceph(where: Path) -> Iterator[S3]:
    """Ceph with its S3 gateway: a monitor, a store on a sparse file, a gateway."""
    v2, v1, port = free_ports(3)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    for name in ("mon", "osd", "rgw", "run"):
        (where / name).mkdir()
    conf = where / "ceph.conf"
    conf.write_text(_CEPH.format(fsid=fsid, v1=v1, v2=v2, port=port, where=where))
    server = S3(port)
    key, monitors = f"{where}/keyring", f"{where}/monmap"

    def run(*command: str) -> str:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=120, env={**os.environ, "CEPH_CONF": str(conf)}
        ).stdout

    run("ceph-authtool", "--create-keyring", key, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    address = f"[v2:127.0.0.1:{v2}/0,v1:127.0.0.1:{v1}/0]"
    run("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, monitors)
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors, "--keyring", key)
    settings = {"CEPH_CONF": str(conf)}
    with contextlib.ExitStack() as stack:

        def daemon(name: str, *command: str, ready: Callable[[], bool]) -> None:
            stack.enter_context(running([*command, "-f"], where / f"{name}.log", ready, **settings))

        daemon("mon", "ceph-mon", "-i", "a", ready=lambda: listens(v1))
        run("ceph", "osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "--no-mon-config")
        daemon("osd", "ceph-osd", "-i", "0", ready=lambda: "1 up" in run("ceph", "osd", "stat"))
        daemon("rgw", "radosgw", "-n", "client.rgw", ready=lambda: listens(port))
        run(
            "radosgw-admin", "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={KEY}", f"--secret-key={SECRET}",
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while not server.make_bucket():
            assert time.monotonic() < deadline, (where / "rgw.log").read_text(errors="replace")
        yield server


class Azure:
    """A server that speaks Azure Blob, with one container."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": "acct1",
            "AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(SECRET.encode()).decode(),
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/acct1",
        }

    def url(self) -> str:
        return f"az://tests/{secrets.token_hex(6)}"

    def make_container(self) -> bool:
        """Whether the container is there; signed as Azure's "Authorize with Shared Key" says."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        lines = [f"{name}:{value}" for name, value in headers.items()]
        text = "\n".join(["PUT", *[""] * 11, *lines, "/acct1/acct1/tests", "restype:container"])
        signature = base64.b64encode(hmac.digest(SECRET.encode(), text.encode(), "sha256")).decode()
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            client.request(
                "PUT",
                "/acct1/tests?restype=container",
                headers={**headers, "Content-Length": "0", "Authorization": f"SharedKey acct1:{signature}"},
            )
            return client.getresponse().status in (201, 409)
        except OSError:
            return False
        finally:
            client.close()


@contextlib.contextmanager
def azurite(where: Path) -> Iterator[Azure]:
    """Azurite, Microsoft's emulator of Azure Blob; npm brings it where BLOCKMAP_AZURITE does not say where it is."""
    program = Path(os.environ.get("BLOCKMAP_AZURITE") or where / "node_modules/.bin/azurite-blob")
    if not program.exists():
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(where), f"azurite@{AZURITE}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"npm does not bring azurite: {done.stderr.strip()[-300:]}")
    (port,) = free_ports(1)
    server = Azure(port)
    command = [
        "node", str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", f"{where}/data",
        "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--disableProductStyleUrl",
    ]  # fmt: skip
    accounts = f"acct1:{server.environment['AZURE_STORAGE_ACCOUNT_KEY']}"
    with running(command, where / "log", server.make_container, AZURITE_ACCOUNTS=accounts):
        yield server
