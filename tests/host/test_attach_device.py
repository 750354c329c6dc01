"""`blockmap attach --device`, and attaching from a server of another host."""

from pathlib import Path

import pytest

from tests.host.conftest import CONTENT, Host, rows
from tests.waiting import free_ports

pytestmark = pytest.mark.root


def test_a_device_alone_is_attached_until_it_is_detached(mounting: Host) -> None:
    mounting.serve()
    path = mounting.do("attach", "--device", "app:1").strip()
    assert Path(path).is_block_device()
    assert CONTENT in Path(path).read_bytes()
    where = mounting.where / "mnt"
    where.mkdir()
    mounting.do("attach", "app:1", where)
    mounting.do("detach", where)
    assert Path(path).read_bytes(), "it is there until it is detached itself"
    assert path in mounting.do("status")
    mounting.do("detach", path)
    assert rows(mounting) == []
    refused = mounting.run("detach", path)
    assert refused.returncode == 2
    assert f"nothing is attached at {path}, nor anywhere else" in refused.stderr


@pytest.mark.parametrize("options", [["--follow"], ["--hydrate"], ["."]])
def test_a_device_alone_is_no_place_for_what_needs_a_mount(mounting: Host, options: list[str]) -> None:
    assert "--device goes without" in mounting.run("attach", "--device", "app:1", *options).stderr


def test_an_image_of_another_host_is_attached_by_digest(mounting: Host) -> None:
    (port,) = free_ports(1)
    mounting.serve("--listen", f"127.0.0.1:{port}")
    where = mounting.where / "mnt"
    where.mkdir()
    there = f"127.0.0.1:{port}"
    mounting.do("attach", "--socket", there, "app:1", where)
    assert "app@sha256:" in mounting.do("status", "--json")
    assert (where / "data/content").read_bytes() == CONTENT
    assert "leave out --follow" in mounting.run("attach", "--socket", there, "--follow", "app:2", where).stderr
    mounting.do("detach", where)
    path = mounting.do("attach", "--socket", there, "--device", "app:2").strip()
    mounting.do("detach", path)
    assert rows(mounting) == []
