"""The plugin under an nbdkit that `blockmap serve` did not start, as blockmap-nbdkit-plugin(1) has it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.format.refs import parse_reference
from blockmap.host.serve.nbdkit import plugin_script
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from tests.serve.conftest import Server
from tests.waiting import until

Nbdkit = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def nbdkit(idle_server: Server) -> Nbdkit:
    """Starts nbdkit with the parameters given, and the store's and cache's unless `bare`; its PATH begins with blockmap's."""
    environment = {**os.environ, "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin"}

    def start(*options: str, parameters: tuple[str, ...] = (), bare: bool = False) -> "subprocess.Popen[str]":
        where = () if bare else (f"store={idle_server.store}", f"cache={idle_server.cache}")
        command = ["nbdkit", "-f", *options, "python", str(plugin_script()), *where, *parameters]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def test_every_image_is_an_export(idle_server: Server, nbdkit: Nbdkit, need: Callable[..., None]) -> None:
    need("nbdinfo", "nbdcopy")
    process = nbdkit(
        "-U", str(idle_server.socket), "-t", "8", parameters=("learn=off", "outage=wait=90", "cache_bytes=100000000")
    )
    try:
        until(idle_server.socket.exists)
        listing = subprocess.run(
            ["nbdinfo", "--list", "--json", idle_server.uri("")], capture_output=True, text=True, check=True
        )
        assert [each["export-name"] for each in json.loads(listing.stdout)["exports"]] == ["small:1"]
    finally:
        process.terminate()
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_for_the_time_of_one_command(
    idle_server: Server, nbdkit: Nbdkit, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nbdcopy")
    copied = tmp_path / "copied"
    command = f'nbdcopy "nbd+unix:///small:1?socket=$unixsocket" {copied}'
    process = nbdkit("-U", "-", "--run", command)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    repository, export = idle_server.volume("small:1")
    read = stored_reader(repository, find_version(repository, parse_reference(export)).version.root)
    with open(copied, "rb") as file:
        for offset in range(0, 16 << 20, 1 << 20):
            assert file.read(1 << 20) == read(offset, 1 << 20)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ((), "the parameter store= is missing: add store=URL, or start the server with `blockmap serve`"),
        (("store=/nowhere", "cache=/nowhere/either"), "/nowhere is not a blockmap store"),
        (("store=/a", "cache=/b", "sice=3"), "sice= is not a parameter of this plugin: store, cache, "),
    ],
)
def test_what_is_wrong_is_said(nbdkit: Nbdkit, parameters: tuple[str, ...], said: str, tmp_path: Path) -> None:
    process = nbdkit("-U", str(tmp_path / "socket"), parameters=parameters, bare=True)
    assert said in process.communicate(timeout=60)[1]
    assert process.returncode != 0
