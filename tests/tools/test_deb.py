"""The Debian package, and `pip install`, as a host's administrator meets them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_package_is_built_installed_used_and_removed(
    need_root: None, need: Callable[..., None], suite: str
) -> None:
    need("mmdebstrap")
    command = [CHECKOUT / "tools/debian13", "--suite", suite, "--fresh", "tests/tools/installed.sh"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "== passed" in done.stdout


@pytest.mark.long
def test_pip_installs_a_checkout(tmp_path: Path) -> None:
    """Into an environment of its own, where the plugin loads."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([scripts / "pip", "install", "--quiet", CHECKOUT], check=True, cwd=tmp_path)
    environment = {**os.environ, "PATH": f"{scripts}:/usr/bin:/bin"}
    found = subprocess.run(
        ["blockmap", "config"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    plugin = found.stdout.splitlines()[-1].split()
    assert plugin[0] == "plugin"
    assert plugin[1].startswith(str(tmp_path))
    done = subprocess.run(
        ["nbdkit", "python", plugin[1], "--dump-plugin"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
