"""The implementations of the store's interface; each test that takes `store` runs on all of them."""

from pathlib import Path

import pytest

from blockmap.store.base import Pruner
from blockmap.store.directory import DirectoryStore
from blockmap.store.memory import MemoryStore


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Pruner:
    if request.param == "memory":
        return MemoryStore()
    return DirectoryStore(tmp_path / "store")
