"""The publisher of a commit is given what this host has of the version below, and reads none of that from the store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.commit.publisher import Publisher
from blockmap.commit.task import PublishedCapture, PublishTask
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.publish.dirty import BlockRuns
from blockmap.server.server import Server
from blockmap.store.base import Pruner
from blockmap.store.opening import create_store, open_writer
from blockmap.volume.clone_table import CaptureDraft
from nbdplugin.session import Sessions
from tests.image.builder import bulk
from tests.volume.building import Watched, name, publish
from tests.waiting import until

SPANS = 300


class PublisherBeside:
    """Publishes in this process, and notes what it is given and what it reads of packs."""

    def __init__(self, store: Path, state: Path) -> None:
        self.prepared = 0
        self.tasks: list[PublishTask] = []
        writer, form = open_writer(str(store))
        self.watched = Watched(writer)
        self.publisher = Publisher(self.watched, form, state, lambda said: None)  # type: ignore[arg-type]

    def prepare(self) -> None:
        self.prepared += 1

    def publish(self, task: PublishTask) -> PublishedCapture:
        self.tasks.append(task)
        return self.publisher.publish(task)


@pytest.fixture
def store(tmp_path: Path) -> Pruner:
    made = create_store(str(tmp_path / "store"))[0]
    name(made, publish(made, [(span * SPAN, bulk(span, 3 * BLOCK)) for span in range(SPANS)], SPANS * SPAN), "app", "1")
    return made


@pytest.fixture
def beside(store: Pruner, tmp_path: Path) -> Iterator[PublisherBeside]:
    made = PublisherBeside(tmp_path / "store", tmp_path / "state")
    yield made
    made.publisher.close()


def test_a_commit_reads_no_node_that_a_write_had_fetched(beside: PublisherBeside, tmp_path: Path) -> None:
    server = Server(str(tmp_path / "store"), tmp_path / "cache", 1 << 28, state=tmp_path / "state", publisher=beside)
    server._fetcher._ranges.store.local = False  # as of one that takes time
    try:
        sessions = Sessions(server)
        server.clone("app:1", "c", None)
        client = sessions.open("c", True)
        assert beside.prepared == 1
        for round_ in range(3):
            spans = (0, 7 + round_, 290)
            for span in spans:
                client.writable.write(bulk(1000 + round_, BLOCK), (span * SPAN + 1) * BLOCK)
            runs = BlockRuns([(span * SPAN + 1, span * SPAN + 2) for span in spans], [])
            root = server._find("c").resolved.root
            # They come in the background: the root, two nodes below it, a leaf of each span.
            until(lambda root=root, runs=runs: len(server._exchange.collect(root, runs)) == 1 + 2 + 3)  # type: ignore[misc]
            server.prepare_capture("c")
            number = server.capture("c", CaptureDraft("app", "2", False, "", "", "[]", str(round_)))
            done = server.published(number, 60)
            assert isinstance(done, PublishedCapture)
            assert done.entry == round_ + 1
        assert [task.is_first for task in beside.tasks] == [True] * 3
        assert all(task.base for task in beside.tasks)
        assert beside.watched.ranges == [], "all nodes were handed over"
        sessions.close(client)
    finally:
        server.close()
