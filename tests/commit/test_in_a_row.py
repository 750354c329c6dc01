"""Commits one after the other: each tree is that of its extents, and neither a commit nor a read costs more with time."""

import random
import time
from collections import Counter
from contextlib import closing
from itertools import groupby
from pathlib import Path
from statistics import median

import pytest

from blockmap.commit.publisher import Publisher
from blockmap.commit.task import PublishTask
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.node import leaf
from blockmap.format.refs import parse_reference
from blockmap.format.tree import Root, assemble
from blockmap.store.opening import open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from tests.commit.disk_clone import CloneOnDisk
from tests.image.builder import bulk
from tests.store.faulty import Counted

SPANS = 3
READS = 40
SLOWER = 1.5
"""How much longer the last tenth may take than the first, on a machine that does other things as well."""


def built(repository: Repository, root: Root) -> Root:
    """Returns the root of the tree that is built of all extents of a tree."""
    extents = [each for span, own in leaves(root, repository.packs.nodes) for each in own.extents(span * SPAN)]
    made = [(span, leaf(list(own), span * SPAN, {})) for span, own in groupby(extents, lambda each: each.start // SPAN)]
    return assemble([(span, own) for span, own in made if own is not None], root.size).root


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_commits_in_a_row(tmp_path: Path, count: int) -> None:
    base = bulk(1, SPAN * BLOCK // 4) + bytes(SPAN * BLOCK * SPANS - SPAN * BLOCK // 4)
    clone = CloneOnDisk(tmp_path, base)
    noise = random.Random(5)
    store, form = open_writer(str(clone.store))
    counted = Counted(store)
    repository = Repository(counted)
    calls: list[int] = []
    read_calls: list[int] = []
    seconds: list[float] = []
    with closing(clone.table), closing(Publisher(counted, form, clone.state, lambda said: None)) as publisher:
        for number in range(count):
            for _ in range(4):
                start = noise.randrange(len(base) // BLOCK) * BLOCK
                if noise.random() < 0.2:
                    clone.zero(start, start + BLOCK)
                else:
                    clone.write(start, noise.randbytes(noise.choice((100, BLOCK))))
            capture = clone.capture("disk:1", nonce=str(number))
            before, began = counted.calls, time.monotonic()
            done = publisher.publish(PublishTask(capture, is_first=True))
            seconds.append(time.monotonic() - began)
            calls.append(counted.calls - before)
            assert done.entry == number + 2
            clone.finish(capture, done)
            root = find_version(repository, parse_reference(done.export)).root
            assert built(repository, root).digest == root.digest
            before = counted.calls
            read = stored_reader(repository, root)
            for at in noise.sample(range(len(base) // BLOCK), READS):
                assert read(at * BLOCK, BLOCK) == clone.content[at * BLOCK : (at + 1) * BLOCK]
            read_calls.append(counted.calls - before)
    share = count // 10
    # The first commits find few packs in the leaves that they change.
    assert median(calls[-share:]) <= median(calls[share : 2 * share]) + 2, Counter(calls)
    assert median(read_calls[-share:]) <= 2 * READS + SPANS + 2, "a read is at most a way down the tree and a chunk"
    if count >= 1000:
        first, last = median(seconds[share : 2 * share]), median(seconds[-share:])
        print(f"{first * 1e3:.1f} ms a commit in the second tenth, {last * 1e3:.1f} ms in the last")
        assert last < SLOWER * first
