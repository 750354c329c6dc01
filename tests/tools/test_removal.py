"""What tools/ made with mmdebstrap is never removed through something that is mounted in it."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"

pytestmark = pytest.mark.root


def remove(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import pathlib, sys, toolbox; toolbox.remove_tree(pathlib.Path(sys.argv[1]))"
    return subprocess.run([sys.executable, "-Bc", program, folder], cwd=TOOLS, capture_output=True, text=True)


def test_a_folder_with_a_mount_in_it_is_kept_whole(need_root: None, tmp_path: Path) -> None:
    inside = tmp_path / "root" / "dev"
    inside.mkdir(parents=True)
    (tmp_path / "root" / "file").touch()
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    try:
        (inside / "null").touch()
        done = remove(tmp_path / "root")
        assert done.returncode == 1
        assert f"because of what is mounted in it: {inside}" in done.stderr
        assert (inside / "null").exists()
        assert (tmp_path / "root" / "file").exists()
    finally:
        subprocess.run(["umount", inside], check=True)
    assert remove(tmp_path / "root").returncode == 0
    assert not (tmp_path / "root").exists()
