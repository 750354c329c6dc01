"""kill -9 of whoever writes, at each point at which something becomes durable: what was told is there, and the rest is garbage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.store import servers

QUICK = {"create": 13, "import": 17, "gc": 23, "clone": 67}
"""Every how many points the process is killed in a quick run."""
PARTS = 4


def crashes(how: str, scenario: str, where: Path, *numbers: object) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.upkeep.crashing", how, scenario, str(where), *map(str, numbers)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)
    found: dict[str, object] = json.loads(done.stdout)
    print(how, scenario, *numbers, found)
    return found


@pytest.mark.parametrize("scenario", QUICK)
def test_some_crashes_lose_nothing(scenario: str, tmp_path: Path) -> None:
    assert crashes("points", scenario, tmp_path, 5, QUICK[scenario])["killed"]


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("scenario", QUICK)
def test_no_crash_loses_anything(scenario: str, part: int, tmp_path: Path) -> None:
    assert crashes("points", scenario, tmp_path, part, PARTS)["killed"]


@pytest.mark.long
@pytest.mark.parametrize("scenario", ["import", "gc", "clone"])
def test_no_crash_loses_anything_of_an_object_store(
    scenario: str, seaweedfs: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.use(seaweedfs, monkeypatch)
    assert crashes("points", scenario, tmp_path, 1, 5, seaweedfs.url())["killed"]


@pytest.mark.long
@pytest.mark.parametrize("scenario", ["import", "gc", "clone"])
def test_no_moment_is_a_bad_one(scenario: str, tmp_path: Path) -> None:
    crashes("moments", scenario, tmp_path, 20)
