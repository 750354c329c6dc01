"""Two workloads of one version at once: each start has its own bundle, spares its own reads, and leaves its own trace."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.format import BLOCK, hint, keys
from blockmap.format.trace import decode
from blockmap.server.server import Server
from blockmap.store.opening import create_store
from nbdplugin.session import Sessions
from tests.volume.building import name, publish
from tests.volume.bundled import DATA, SIZE, bundled

HINT = keys.name_hint("app", "1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves app:1, whose starts have profile 1 as `default` and 3 as `migrate`."""
    store = create_store(str(tmp_path / "store"))[0]
    root = publish(store, [(0, DATA)], SIZE)
    made = name(store, root, "app", "1")
    default = bundled(store, root, [0, 1, 2], keys.bundle(made.name, "default", 1, 1))
    migrate = bundled(store, root, [100, 101], keys.bundle(made.name, "migrate", 3, 1), ported=True)
    told = replace(hint.decode(store.get(HINT), "app", "1"), bundles=(default, replace(migrate, label="migrate")))
    store.replace(HINT, hint.encode(told))
    opened = Server(str(tmp_path / "store"), tmp_path / "cache", 1 << 28)
    yield opened
    opened.close()


def test_two_labels_of_one_version_are_two_starts(server: Server, tmp_path: Path) -> None:
    sessions = Sessions(server)
    default, migrate = sessions.open("app:1", True), sessions.open("app:1+migrate", True)
    assert default.volume is migrate.volume
    bundles = [each.start.replay for each in (default, migrate)]
    assert [bundle and bundle.number for bundle in bundles] == [1, 3]
    assert all(bundle and bundle.wait_end(30) for bundle in bundles)
    assert [server.readings(export)[0] for export in ("app:1", "app:1+migrate")] == [1, 3]
    buf = memoryview(bytearray(BLOCK))
    migrate.read(buf, 500 * BLOCK)
    assert [each.start.skips_readahead() for each in (default, migrate)] == [True, False]
    assert [bundle and bundle.missed_reads for bundle in bundles] == [0, 1]
    default.read(buf, 0)
    pinned = server.resolve("app:1")
    assert [server.traces.follows_profile(pinned, label) for label in ("default", "migrate")] == [True, False]
    server.traces.ready(pinned, "default")
    assert not server.traces.follows_profile(pinned, "default"), "once it is ready, that is over"
    for each in (default, migrate):
        sessions.close(each)
    heads = [decode(path.read_bytes()).head for path in (tmp_path / "cache" / "traces").iterdir()]
    assert {head.label: head.profile for head in heads} == {"default": 1, "migrate": 3}


def test_connections_of_one_start_share_it_until_the_last_is_closed(server: Server) -> None:
    one, two = server.open("app:1"), server.open(server.resolve("app:1"))
    assert one.start is two.start
    assert (one.is_first, two.is_first) == (True, False)
    one.close()
    server.readings("app:1")
    assert two.start.profile == 1
    two.close()
    assert server.open("app:1").start.profile == 0, "another device's kernel was warmed"
