"""Containers of real engines, committed: the version is the image with what the container wrote."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dockerd import dockerd
from tests.host.conftest import Host
from tests.waiting import until

pytestmark = pytest.mark.root

LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
CHANGE = "echo 2 >/etc/version; rm /data/content; mkdir /data/new; echo made >/data/new/file; chmod 700 /data"

Engine = Callable[..., str]


@pytest.fixture
def podman(mounting: Host, monkeypatch: pytest.MonkeyPatch, need: Callable[..., None]) -> Iterator[Engine]:
    """Runs podman with a storage of its own, that of the driver `overlay`."""
    need("podman", "runc")
    own = mounting.where / "podman"
    own.mkdir()
    settings = own / "storage.conf"
    settings.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{own}/graph"\nrunroot = "{own}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
    mounting.environment["CONTAINERS_STORAGE_CONF"] = str(settings)

    def run(*arguments: str | Path) -> str:
        command = ["podman", "--cgroup-manager=cgroupfs", "--events-backend=file", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    try:
        yield run
    finally:
        run("rm", "--all", "--force", "--time", "0")
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", own / "graph/overlay"], check=True, capture_output=True)
        shutil.rmtree(own)


def test_a_container_of_podman(mounting: Host, podman: Engine) -> None:
    host = mounting
    host.serve()
    host.do("export", "app:1", f"docker-archive:{host.where / 'app.tar'}:app:1")
    podman("load", "-i", host.where / "app.tar")
    ran = ("run", "--detach", "--network=none", *LIMITS, "localhost/app:1", "/bin/sh", "-c", "sleep 1000")
    container = podman(*ran)
    podman("exec", container, "/bin/sh", "-c", CHANGE)

    host.do("commit", "--container", container[:12], "app:2", "-m", "by hand")
    assert podman("inspect", "--format", "{{.State.Status}}", container) == "running"
    assert "by hand" in host.do("log", "app:2")
    where = host.where / "mnt"
    where.mkdir()
    host.do("attach", "app:2", where)
    assert (where / "etc/version").read_text() == "2\n"
    assert (where / "data/new/file").read_text() == "made\n"
    assert not (where / "data/content").exists()
    assert (where / "data").stat().st_mode & 0o777 == 0o700
    assert not any("overlay" in each for each in os.listxattr(where / "data"))
    host.do("detach", where)
    assert "commit-" not in host.do("clones")

    podman("stop", "--time", "0", container)
    host.do("commit", "--container", f"podman:{container}", "app:stopped", "--change", 'CMD ["/bin/true"]')
    assert "/bin/true" in host.do("show", "app:stopped")
    assert host.leftovers() == []


def test_a_container_of_run(mounting: Host) -> None:
    host = mounting
    host.serve()
    host.do("run", "-d", "--name", "web", "app:1", "--", "/bin/sh", "-c", f"{CHANGE}; echo made; sleep 1000")
    until(lambda: "made" in host.do("logs", "web"))
    host.do("commit", "--container", "web", "--no-pause", "app:2")
    assert "running" in host.do("ps", "--json")
    changes = host.do("diff", "app:1", "app:2")
    assert "/data/new/file" in changes
    assert "/etc/version" in changes
    host.do("stop", "-t", "0", "web")
    assert "what it wrote has gone" in host.run("commit", "--container", "web", "app:3").stderr
    host.do("rm", "web")

    host.do("clone", "app:1", "mine")
    host.do("run", "-d", "--name", "on", "--clone", "mine", "--", "/bin/sh", "-c", f"{CHANGE}; echo made; sleep 1000")
    until(lambda: "made" in host.do("logs", "on"))
    host.do("commit", "--container", "on", "app:4")
    assert "/data/new/file" in host.do("diff", "app:1", "app:4")
    host.do("rm", "-f", "on")


@pytest.mark.long
def test_a_container_of_docker(mounting: Host, need: Callable[..., None]) -> None:
    need("dockerd", "docker", "runc")
    host = mounting
    host.serve()
    host.do("export", "app:1", f"docker-archive:{host.where / 'app.tar'}:app:1")
    with dockerd(host.where / "docker") as (address, docker):
        host.environment["DOCKER_HOST"] = address
        docker("load", "-i", host.where / "app.tar")
        ran = ("run", "--detach", "--init", "--network=none", *LIMITS, "app:1", "/bin/sh", "-c", "sleep 1000")
        container = docker(*ran).strip()
        docker("exec", container, "/bin/sh", "-c", CHANGE)
        host.do("commit", "--container", container, "app:2")
        assert docker("inspect", "--format", "{{.State.Status}}", container).strip() == "running"
        host.do("commit", "--container", container, "--no-pause", "--force", "app:2")
        docker("rm", "-f", container)
    changes = host.do("diff", "app:1", "app:2")
    assert "/data/new/file" in changes
    assert "/etc/version" in changes
    assert "hosts" not in changes  # docker's own files, which it keeps between the image and what the container wrote


def test_what_cannot_be_committed(mounting: Host, podman: Engine) -> None:
    host = mounting
    host.serve()
    done = host.run("commit", "--container", "podman:none", "app:2")
    assert done.returncode == 1
    assert "there is no container podman:none" in done.stderr
    assert "say docker:x or podman:x" in host.run("commit", "--container", "lxc:x", "app:2").stderr
    host.do("export", "app:1", f"docker-archive:{host.where / 'app.tar'}:app:1")
    podman("load", "-i", host.where / "app.tar")
    podman("tag", "localhost/app:1", "localhost/other:1")
    other = podman("commit", podman("create", "--network=none", *LIMITS, "localhost/app:1"), "localhost/changed:1")
    container = podman("create", "--network=none", *LIMITS, other)
    done = host.run("commit", "--container", container, "app:2")
    assert done.returncode == 1
    assert f"the store has no image sha256:{other}" in done.stderr
    assert "| blockmap import docker-archive:- NAME" in done.stderr
