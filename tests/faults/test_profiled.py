"""Starts with a profile, whatever becomes of the profile, the bundle, the store and the link: each succeeds, with the
right bytes, only slower.

Run with -s: prints how much slower each start was, and what the server counted and said.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockmap.control.messages import Traces
from blockmap.format import keys
from blockmap.format.refs import parse_reference
from blockmap.store.base import Writer
from blockmap.store.opening import open_store
from blockmap.store.profiles import ProfileLog
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from tests.faults.conftest import check_bytes, serving, start
from tests.host.conftest import Host
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.root]

NAMES = ("redis", "python-flask")
SLOW = ("--mbit", "25")
"""So that a bundle is on its way for some seconds."""
LINKS = {
    "1 % of requests fail": ("--fail-rate", "0.01", "--fail-mode", "mix", "--stall-s", "5", "--seed", "7"),
    "a fifth of requests fails": ("--fail-rate", "0.2", "--fail-mode", "mix", "--stall-s", "5", "--seed", "7"),
    "reset every 256 KiB": ("--drop-after", "262144"),
    "a stall of 5 s in each connection": ("--stall-after", "1000000", "--stall-s", "5"),
    "a stall of 5 s in each connection, soon": ("--stall-after", "200000", "--stall-s", "5"),
    "a corrupt byte in each connection": ("--corrupt-after", "300000"),
}


@pytest.fixture(scope="session")
def profiled_store(corpus_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with profiles of what starts read from it."""
    where = tmp_path_factory.mktemp("profiled")
    store = copy(corpus_store, where / "store")
    host = Host(where)
    (where / "run").mkdir()
    host.serve("--no-learn")
    try:
        for name in NAMES:
            start(host, name)
            until(lambda: all(each["state"] != "running" for each in traces(host)), host.said)
            host.do("profile", "build", f"{name}:1")
    finally:
        host.stop()
    return store


def traces(host: Host) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.client.ask(Traces()).traces
    return found


def copy(store: Path, where: Path) -> Path:
    """A store of which single objects can be damaged: by `swap`, never in place."""
    shutil.copytree(store, where, copy_function=os.link)
    return where


def swap(path: Path, data: bytes | None) -> None:
    """Puts other bytes, or nothing, in the place of an object."""
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def bundle_of(store: Path, name: str) -> Path:
    (found,) = (store / keys.bundles(version_of(store, name))).glob("default/*/*")
    return found


def version_of(store: Path, name: str) -> Any:
    return find_version(Repository(open_store(str(store))[0]), parse_reference(f"{name}:1")).name


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def no_profile(store: Path, name: str) -> None:
    shutil.rmtree(store / "profiles")
    shutil.rmtree(store / "bundles")
    advise(store, name)


def damaged_profile(store: Path, name: str) -> None:
    for path in (store / "profiles").rglob("*"):
        if path.is_file():
            swap(path, path.read_bytes()[: path.stat().st_size // 2])


def damaged_head(store: Path, name: str) -> None:
    path = bundle_of(store, name)
    swap(path, flipped(path.read_bytes(), 200))


def damaged_frames(store: Path, name: str) -> None:
    path = bundle_of(store, name)
    data = path.read_bytes()
    for at in range(len(data) // 2, len(data), 300_000):
        data = flipped(data, at)
    swap(path, data)


def missing(store: Path, name: str) -> None:
    swap(bundle_of(store, name), None)


def cut_short(store: Path, name: str) -> None:
    path = bundle_of(store, name)
    swap(path, path.read_bytes()[: path.stat().st_size // 2])


def others(store: Path, name: str) -> None:
    """Replaces the bundle by one of another version, which the hint does not know."""
    other = next(each for each in NAMES if each != name)
    swap(bundle_of(store, name), bundle_of(store, other).read_bytes())


def others_hinted(store: Path, name: str) -> None:
    """Replaces the bundle by one of another version, and makes the hint say so."""
    others(store, name)
    advise(store, name)


def advise(store: Path, name: str) -> None:
    opened, _ = open_store(str(store))
    assert isinstance(opened, Writer)
    assert ProfileLog(opened).advise(name, version_of(store, name)) == 1


OBJECTS: list[tuple[str, Callable[[Path, str], None], str]] = [
    ("no profile", no_profile, ""),
    ("a damaged profile", damaged_profile, ""),
    ("a bundle with a damaged head", damaged_head, "failed"),
    ("a bundle with damaged frames", damaged_frames, "damaged"),
    ("a bundle that is missing", missing, "failed"),
    ("a bundle that is cut short", cut_short, "failed"),
    ("the bundle of another version", others, "failed"),
    ("the bundle of another version, as hinted", others_hinted, ""),
]


def told(host: Host) -> tuple[dict[str, Any], list[str]]:
    """What the server counted of its only bundle, and said of it."""
    replays = host.client.status()["fetch"]["replays"]
    return replays[0] if replays else {}, [
        line for line in host.said().splitlines() if "slower than it could be" in line
    ]


@pytest.fixture
def plain(profiled_store: Path, tmp_path: Path, need: Callable[..., None]) -> Callable[..., float]:
    """How long a start takes where nothing is wrong."""
    need("nginx", "nbdkit", "nbdfuse", "losetup")

    def take(name: str, *relay: str) -> float:
        with serving(tmp_path / "plain", profiled_store, relay, "--no-learn") as (host, _):
            took = start(host, name)
            check_bytes(host, profiled_store, name)
            replay, said = told(host)
            assert replay["ended"], replay
            assert not replay["failed"], replay
            assert not said
        print(f"\n{name}: {took:.2f} s, {replay}")
        return took

    return take


@pytest.mark.parametrize("name", NAMES)
def test_starts_succeed_whatever_became_of_what_was_learnt(
    name: str, profiled_store: Path, tmp_path: Path, plain: Callable[..., float]
) -> None:
    usual = plain(name)
    for number, (what, do, counted) in enumerate(OBJECTS):
        store = copy(profiled_store, tmp_path / f"store{number}")
        do(store, name)
        with serving(tmp_path / str(number), store, (), "--no-learn") as (host, _):
            took = start(host, name)
            check_bytes(host, profiled_store, name)
            replay, said = told(host)
        print(f"{name}: {what}: {took:.2f} s, {took - usual:+.2f} s; {replay}; {said}")
        assert (not counted) or replay[counted]
        assert len(said) == bool(counted)


@pytest.mark.parametrize("name", NAMES)
def test_starts_succeed_whatever_the_link_does(
    name: str, profiled_store: Path, tmp_path: Path, plain: Callable[..., float]
) -> None:
    usual = plain(name)
    for number, (fault, relay) in enumerate(LINKS.items()):
        with serving(tmp_path / str(number), profiled_store, relay, "--no-learn") as (host, _):
            took = start(host, name)
            check_bytes(host, profiled_store, name)
            replay, said = told(host)
            fetch = host.client.status()["fetch"]
        del fetch["replays"]
        print(f"{name}: {fault}: {took:.2f} s, {took - usual:+.2f} s; {replay}; {said}; {fetch}")
        assert len(said) <= 1


def cut_off(host: Host, relay: int) -> threading.Thread:
    """Takes the store away once some of a bundle has come."""

    def wait() -> None:
        until(lambda: host.client.status()["fetch"]["bundle_bytes"])
        os.kill(relay, signal.SIGUSR1)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("away_s", "options"), [(10, ()), (60, ("--outage", "wait=90"))])
def test_a_store_that_goes_away_in_mid_stream_costs_no_more_than_its_absence(
    name: str, away_s: int, options: tuple[str, ...], profiled_store: Path, tmp_path: Path, plain: Callable[..., float]
) -> None:
    usual = plain(name, *SLOW)
    relay = (*SLOW, "--refuse-s", str(away_s))
    with serving(tmp_path / "away", profiled_store, relay, "--no-learn", *options) as (host, process):
        cutter = cut_off(host, process)
        took = start(host, name)
        cutter.join()
        check_bytes(host, profiled_store, name)
        replay, said = told(host)
        print(f"{name}: away for {away_s} s: {took:.2f} s, {took - usual:+.2f} s; {replay}; {said}")
        assert len(said) <= 1
        assert took < usual + away_s + 60
        again = start(host, name)
        print(f"{name}: again: {again:.2f} s; {told(host)}")


def test_a_server_ends_at_once_in_the_middle_of_a_bundle(
    profiled_store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "nbdkit")
    relay = ("--stall-after", "200000", "--stall-s", "0")
    with serving(tmp_path, profiled_store, relay, "--no-learn") as (host, _):
        with subprocess.Popen(["nbdinfo", host.uri("python-flask:1")], stdout=subprocess.DEVNULL) as client:
            until(lambda: host.client.status()["fetch"]["bundle_bytes"])
            began = time.monotonic()
            assert host.stop() == 0
            took = time.monotonic() - began
            client.wait()
        host.serve("--no-learn")
    print(f"\nended after {took:.2f} s")
    assert took < 2
    assert "Traceback" not in host.said()
