from pathlib import Path

import pytest

from blockmap.format import keys
from tests.upkeep.collecting import FORMAT, Clocked, put


@pytest.fixture
def store(tmp_path: Path) -> Clocked:
    """A store with a:1 and b:1, whose first layer is the same."""
    made = Clocked()
    made.create(keys.FORMAT, [FORMAT])
    for name in "ab":
        put(made, name, tmp_path)
    return made
