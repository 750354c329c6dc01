"""The implementations of the store's interface; each test that takes `store` runs on all of them."""

from pathlib import Path

import pytest

from blockmap.store.base import Pruner
from blockmap.store.directory import DirectoryStore
from blockmap.store.memory import MemoryStore
from blockmap.store.objects import open_objects
from tests.store.servers import REMOTE, use


@pytest.fixture(params=["memory", "directory", *REMOTE])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pruner:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    server = request.getfixturevalue(request.param)
    use(server, monkeypatch)
    return open_objects(server.url())
