"""Images of the corpus, imported and served by the program itself.

BLOCKMAP_CORPUS names a folder with an OCI layout for each repository.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serve.conftest import Server, bare_server

IMAGES = ["debian-slim:1", "redis:1", "python:1", "postgres:1", "python-ml:1"]


@pytest.fixture(scope="session")
def corpus() -> Path:
    where = os.environ.get("BLOCKMAP_CORPUS")
    if not where:
        pytest.skip("BLOCKMAP_CORPUS names no folder of images")
    return Path(where)


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not stay: images take gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@dataclass(frozen=True, slots=True)
class Served:
    """An image with its server and a copy of its volume."""

    name: str
    layout: str
    """DIR:TAG of the OCI layout that it came from."""
    server: Server
    copy: Path

    @property
    def uri(self) -> str:
        return self.server.uri(self.name)


@pytest.fixture(scope="module", params=IMAGES)
def served(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]
) -> Iterator[Served]:
    need("nbdkit", "nbdcopy")
    folder = tmp_path_factory.mktemp("corpus")
    try:
        with bare_server(folder) as server:
            image = Served(request.param, f"{corpus}/{request.param}", server, folder / "copy.raw")
            server.run("import", f"oci:{image.layout}", image.name, "--quiet")
            server.start()
            subprocess.run(["nbdcopy", image.uri, image.copy], check=True)
            yield image
    finally:
        shutil.rmtree(folder)
