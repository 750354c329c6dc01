"""The README's example of the Python API does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.host.conftest import Host

pytestmark = pytest.mark.root


def example() -> str:
    text = (CHECKOUT / "README.rst").read_text()
    block = re.search(r"\n((?:    .*\n|\n)*?    images = blockmap\.open(?:.*\n)+?)\S", text)
    assert block is not None
    return re.sub("(?m)^    ", "", block[1])


def test_the_example_of_the_readme(mounting: Host) -> None:
    mounting.serve()
    where = mounting.where / "box"
    where.mkdir()
    here = f'"{mounting.store}", cache="{mounting.cache}", socket="{mounting.socket}", state="{mounting.state}"'
    code = example()
    for theirs, ours in (
        ('"/srv/images"', here),
        ("python:3.12", "app:1"),
        ("/mnt/box", str(where)),
        ('"pip", "install", "numpy"', '"sh", "-c", "echo numpy >/data/new"'),
    ):
        assert theirs in code
        code = code.replace(theirs, ours)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made, logged = done.stdout.splitlines()
    assert re.fullmatch(r"team/python@sha256:[0-9a-f]{64} 1 \d+ ms", made)
    assert re.fullmatch(r"1 sha256:[0-9a-f]{64} root with numpy", logged)
    assert mounting.leftovers() == []
    mounting.do("attach", "team/python:numpy", where)
    assert Path(where / "data/new").read_text() == "numpy\n"
    mounting.do("detach", where)
    assert mounting.leftovers() == []
