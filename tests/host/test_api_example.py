"""The README's example of the Python API does what it says."""

import re
from pathlib import Path

import pytest

from blockmap.host.attachments import Attachments
from blockmap.host.devices.nbdfuse import NbdFuse
from tests.conftest import CHECKOUT
from tests.host.conftest import Host

pytestmark = pytest.mark.root


def example() -> str:
    text = (CHECKOUT / "README.rst").read_text()
    block = re.search(r"\n((?:    .*\n|\n)*?    images = blockmap\.open(?:.*\n)+?)\S", text)
    assert block is not None
    return re.sub("(?m)^    ", "", block[1])


def test_the_example_of_the_readme(mounting: Host, capsys: pytest.CaptureFixture[str]) -> None:
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
    exec(compile(code, "README.rst", "exec"), {})
    made, logged = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"team/python@sha256:[0-9a-f]{64} 1 \d+ ms", made)
    assert re.fullmatch(r"1 sha256:[0-9a-f]{64} root with numpy", logged)
    attached = Attachments(mounting.state, NbdFuse(), lambda said: None)
    assert attached.list() == []
    mounting.do("attach", "team/python:numpy", where)
    assert Path(where / "data/new").read_text() == "numpy\n"
    mounting.do("detach", where)
    assert mounting.leftovers() == []
