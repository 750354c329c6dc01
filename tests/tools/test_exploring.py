"""Property tests of what comes from elsewhere, with new examples in each round, for as long as is asked for.

BLOCKMAP_EXPLORE_SECONDS says how long each, 600 by default.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("BLOCKMAP_EXPLORE_SECONDS", "600"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("tests", "which"),
    [
        ("tests/format/test_parsers.py", "anything or changed or fields"),
        ("tests/server/test_advice.py", "any or whatever or placements or nobody"),
    ],
    ids=["parsers", "advice"],
)
def test_nothing_is_found_in_ten_minutes(tests: str, which: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=explore", "-p", "no:cacheprovider"]
    command += [f"--basetemp={tmp_path / 'inner'}", tests, "-k", which]
    end, rounds = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        rounds += 1
    print(f"{rounds} rounds: {done.stdout.splitlines()[-1]}")
