"""Starts of real programs over a link that fails in every way that netshape knows: each succeeds, with the right bytes.

Run with -s: prints how much slower each start was than over the same link without faults.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.refs import parse_reference
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.walk import leaves
from tests.faults.conftest import IMAGES, check_bytes, serving, start
from tests.serve.nbd import Nbd
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.root]

FAULTS = {
    "1 % of requests fail": ("--fail-rate", "0.01", "--fail-mode", "mix", "--stall-s", "5", "--seed", "7"),
    "reset every 256 KiB": ("--drop-after", "262144"),
    "a stall of 5 s in each connection": ("--stall-after", "1000000", "--stall-s", "5"),
    "a corrupt byte in each connection": ("--corrupt-after", "700000"),
    "refused for 10 s": ("--refuse-s", "10"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_starts_succeed_whatever_the_link_does(
    name: str, corpus_store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    with serving(tmp_path / "plain", corpus_store, ()) as (host, _):
        plain = start(host, name)
        check_bytes(host, corpus_store, name)
    print(f"\n{name}: {plain:.1f} s over 20 ms and 1 Gbit/s")
    for number, (fault, arguments) in enumerate(FAULTS.items()):
        with serving(tmp_path / str(number), corpus_store, arguments) as (host, relay):
            refuse = arguments[0] == "--refuse-s"
            took = start(host, name, lambda: os.kill(relay, signal.SIGUSR1) if refuse else None)  # noqa: B023
            check_bytes(host, corpus_store, name)
            status = host.client.status()["fetch"]
        print(f"{name}: {fault}: {took:.1f} s, {took - plain:+.1f} s; {status}")


def test_a_minute_without_a_store_costs_patient_readers_no_error(
    corpus_store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    with serving(tmp_path, corpus_store, ("--refuse-s", "60"), "--outage", "wait=90") as (host, relay):
        took = start(host, "redis", lambda: os.kill(relay, signal.SIGUSR1))
        check_bytes(host, corpus_store, "redis")
        assert host.client.status()["fetch"]["failed_reads"] >= 1
    print(f"\nredis: away for 60 s: {took:.1f} s")
    assert took > 55


def content_offsets(store: Path, image: str, count: int) -> list[int]:
    """Offsets in bytes, all over the volume, where it has content: holes are read without the store."""
    repository = Repository(open_store(str(store))[0])
    root = find_version(repository, parse_reference(image)).version.root
    found = [
        (span * SPAN + start) * BLOCK
        for span, leaf in leaves(root, repository.packs.nodes)
        for start in leaf.starts.tolist()
    ]
    return found[len(found) // count :: len(found) // count][:count]


def test_impatient_readers_fail_at_once_and_recover(
    corpus_store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "nbdkit")
    with serving(tmp_path, corpus_store, ("--refuse-s", "20"), "--outage", "fail") as (host, relay):
        with Nbd(host.socket, "postgres:1") as nbd:
            os.kill(relay, signal.SIGUSR1)
            took = []
            for offset in content_offsets(corpus_store, "postgres:1", 50):
                began = time.monotonic()
                with pytest.raises(OSError, match="error"):
                    nbd.read(offset, 4096)
                took.append(time.monotonic() - began)
            print(f"\nfirst failure after {took[0]:.2f} s, the others after {max(took[1:]):.3f} s at most")
            assert max(took[1:]) < 1.0
            until(lambda: not host.client.status()["fetch"]["store_away"])
        check_bytes(host, corpus_store, "postgres")
