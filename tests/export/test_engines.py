"""What was changed in a clone, exported, and run by real engines."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dockerd import dockerd
from tests.export.committed import commit_changes
from tests.export.exported import export_image
from tests.image.builder import import_image
from tests.image.layouts import archive, directory, file, layout, symlink

pytestmark = [pytest.mark.long, pytest.mark.root]

CHANGED = "changed\nchange\nkept\n"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None], need_root: None) -> Iterator[Path]:
    """Returns a folder with a store that has `app:2`, whose program shows what was changed."""
    need("busybox")
    folder = tmp_path_factory.mktemp("engines")
    program = Path(shutil.which("busybox") or "").read_bytes()
    layers = [
        archive([directory("bin"), file("bin/busybox", program, mode=0o755), symlink("bin/sh", "busybox")]),
        archive([directory("own"), file("own/kept", b"1"), file("own/gone", b"1")]),
    ]
    config = {"config": {"Cmd": ["/bin/busybox", "true"], "Env": ["PATH=/bin"]}}
    import_image(folder / "store", f"oci:{layout(folder / 'i', layers, config=config)}", "app:1", folder)

    def change(top: Path) -> None:
        (top / "own" / "change").write_bytes(b"changed\n")
        (top / "own" / "gone").unlink()

    command = '[["Cmd", ["/bin/sh", "-c", "busybox cat /own/change; busybox ls /own"]]]'
    commit_changes(folder / "store", "app:1", "app:2", folder, change, command)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def docker(work: Path, need: Callable[..., None]) -> Iterator[Callable[..., str]]:
    """Runs docker's client with an engine of its own."""
    need("dockerd", "docker", "runc")
    with dockerd(work / "docker") as (_, run):
        yield run


def test_docker_runs_it(work: Path, docker: Callable[..., str]) -> None:
    done = export_image(work / "store", "app:2", f"docker-archive:{work / 'docker.tar'}")
    assert "app:2" in docker("load", "-i", work / "docker.tar")
    assert docker("images", "--no-trunc", "--quiet", "app:2").strip() == f"sha256:{done.config.hex()}"
    assert docker("run", "--rm", "--network=none", "app:2") == CHANGED


def test_podman_runs_it(work: Path, need: Callable[..., None]) -> None:
    need("podman", "runc")
    places = (f"--root={work / 'podman'}", f"--runroot={work / 'podman-run'}")
    podman = ["podman", *places, "--cgroup-manager=cgroupfs", "--events-backend=file", "--storage-driver=vfs"]
    for destination in (f"oci:{work / 'out'}:2", f"oci-archive:{work / 'oci.tar'}", f"docker-archive:{work / 'd.tar'}"):
        export_image(work / "store", "app:2", destination)
        done = subprocess.run(
            [*podman, "run", "--rm", "--network=none", *LIMITS, destination],
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
            env={**os.environ, "TMPDIR": str(work)},
        )
        assert done.stdout == CHANGED
