"""The same image has the same digests, however, wherever and by whichever Python it is imported."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.store.opening import create_store
from tests.conftest import CHECKOUT
from tests.corpus.conftest import IMAGES

pytestmark = pytest.mark.long


def digests(source: str, store: Path, **environment: str) -> tuple[str, str]:
    """Returns the digests of the version and of its root."""
    create_store(str(store))
    command = [sys.executable, "-m", "blockmap.cli.main", "import", source, "image:1", "--store", str(store), "--json"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["new_chunks"] == summary["chunks"], "each import goes into a store of its own"
    return summary["digest"], summary["root"]


@pytest.mark.parametrize("image", IMAGES)
def test_two_stores_and_a_docker_archive(image: str, corpus: Path, where: Path, need: Callable[..., None]) -> None:
    need("skopeo")
    source = f"oci:{corpus}/{image}"
    first = digests(source, where / "first", PYTHONHASHSEED="1")
    second = digests(source, where / "second", PYTHONHASHSEED="2", TZ="Pacific/Chatham", LC_ALL="C")
    assert first == second
    saved = where / "saved.tar"
    subprocess.run(["skopeo", "copy", "--quiet", source, f"docker-archive:{saved}:image:1"], check=True)
    version, root = digests(f"docker-archive:{saved}", where / "third")
    assert root == first[1]
    assert version != first[0]  # it has another manifest


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A folder that is at the same place in the other root, which has this machine's /dev."""
    where = Path(tempfile.mkdtemp(prefix="blockmap-test-", dir="/dev/shm"))
    yield where
    shutil.rmtree(where)


@pytest.mark.root
def test_another_distribution(
    corpus: Path, where: Path, shared_memory: Path, need: Callable[..., None], need_root: None
) -> None:
    """Debian 13, with its own Python and libraries, beside this machine's."""
    need("mmdebstrap")
    shutil.copytree(corpus / "redis", shared_memory / "redis")
    source = f"oci:{shared_memory}/redis:1"
    inside = 'tools/setup && .venv/bin/blockmap import --json --store /tmp/store-$$ "$1" image:1'
    command = [CHECKOUT / "tools" / "debian13", "sh", "-c", inside, "sh", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (summary["digest"], summary["root"]) == digests(source, where / "store")
