"""The plugin's callbacks, and its parameters, without nbdkit around them."""

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace

import pytest

from blockmap.errors import UsageError
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.signature import PublicKey
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.server.registry import Opened
from blockmap.store.memory import MemoryStore
from nbdplugin.options import Options, OptionsParser
from nbdplugin.session import Session
from nbdplugin.threads import here
from tests.image.builder import bulk
from tests.volume.building import Watched, publish
from tests.volume.opened import opened
from tests.waiting import until


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that nbdkit loads; what it takes from nbdkit is not called here."""
    monkeypatch.setitem(sys.modules, "nbdkit", SimpleNamespace())  # type: ignore[arg-type]
    yield importlib.import_module("nbdplugin.plugin")
    del sys.modules["nbdplugin.plugin"]


def test_a_prefetch_returns_at_once_while_the_store_does_not_answer(tmp_path: Path, plugin: ModuleType) -> None:
    store = Watched(MemoryStore())
    data = bulk(1, 300 * BLOCK)
    root = publish(store, [(0, data)], SPAN)
    with opened(store, root, tmp_path) as view:
        session = Session(
            Opened(view.volume, view.start, OutagePolicy(0), True, lambda: None), is_local=True, is_labelled=False
        )

        def prefetch() -> None:
            here.tally = session.tally()  # a thread of Python's own keeps its state itself
            plugin.cache(session, SPAN * BLOCK, 0, 0)

        store.gate.clear()
        thread = threading.Thread(target=prefetch, daemon=True)
        thread.start()
        try:
            thread.join(10)
            assert not thread.is_alive()
        finally:
            store.gate.set()
        until(lambda: view.cache.status()["bytes"] >= len(data))


def test_all_that_lasts_is_in_one_object(plugin: ModuleType) -> None:
    plain = (int, float, str, type, ModuleType, FunctionType, logging.Logger)
    lasting = {name for name, value in vars(plugin).items() if name[:2] != "__" and not isinstance(value, plain)}
    assert lasting - {"nbdkit", "here"} == {"_plugin"}


# --- parameters


KEYS = (PublicKey(bytes(32)), PublicKey(bytes(range(32))))


def test_parameters() -> None:
    parser = OptionsParser()
    for key, value in (
        ("store", "/s"),
        ("cache", "/c"),
        ("cache_bytes", "0"),
        ("outage", "wait=90"),
        ("outage", "redis:7=fail"),
        ("control_fd", "3"),
        ("learn", "off"),
        ("trust", str(KEYS[0])),
        ("trust", str(KEYS[1])),
    ):
        parser.add(key, value)
    outages = {"": OutagePolicy(90), "redis:7": OutagePolicy(0)}
    given = Options("/s", Path("/c"), outages, cache_bytes=0, control_fd=3, learn=False, trust=KEYS)
    assert parser.options() == given


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "size",
            "1",
            "size= is not a parameter of this plugin: store, cache, cache_bytes, .* metrics_fd, learn, trust, hydrate and sign are",
        ),
        ("cache_bytes", "-1", "cache_bytes=-1 is not a number"),
        ("learn", "yes", "learn=yes is neither on nor off"),
        ("outage", "wait", "says nothing about outages"),
        ("trust", "a", "'a' is not a public key"),
    ],
)
def test_parameters_that_make_no_sense(key: str, value: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        OptionsParser().add(key, value)


def test_parameters_that_are_missing() -> None:
    parser = OptionsParser()
    parser.add("store", "/s")
    with pytest.raises(UsageError, match="the parameter cache= is missing"):
        parser.options()
