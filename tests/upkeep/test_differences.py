"""Two versions compared: by blocks against a brute-force model, and by files."""

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.format.refs import parse_reference
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.upkeep.differences import Change, compare_files, compare_trees
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, hardlink, layout
from tests.volume.building import publish

SIZE = 3 * SPAN
pieces = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(1, 12)), max_size=4)


@given(pieces, pieces)
def test_ranges_hold_every_block_that_differs_and_none_that_is_the_same_piece(
    left: list[tuple[int, int, int]], right: list[tuple[int, int, int]]
) -> None:
    store = MemoryStore()
    roots, models = [], []
    for chosen in (left, right):
        model: dict[int, bytes] = {}
        for place, seed, length in chosen:
            # Around the edge between two spans, and far apart enough not to meet.
            start = SPAN - 20 + place * 20
            data = bulk(seed, length * BLOCK)
            model.update({start + at: data[at * BLOCK :][:BLOCK] for at in range(length)})
        runs: list[tuple[int, bytes]] = []
        for block in sorted(model):
            if runs and runs[-1][0] + len(runs[-1][1]) // BLOCK == block:
                runs[-1] = (runs[-1][0], runs[-1][1] + model[block])
            else:
                runs.append((block, model[block]))
        roots.append(publish(store, runs, SIZE))
        models.append(model)
    found = compare_trees(Repository(store), *roots)
    told = {block for start, end in found.ranges for block in range(start, end)}
    differ = {block for block in models[0].keys() | models[1].keys() if models[0].get(block) != models[1].get(block)}
    assert differ <= told
    assert found.ranges == sorted(found.ranges)
    assert all(one.end < two.start for one, two in zip(found.ranges, found.ranges[1:], strict=False))
    assert all(found.touches(block, 1) == (block in told) for block in range(SPAN - 25, SPAN + 900))
    if models[0] == models[1]:
        assert not told
        assert found.added_bytes == 0


def test_only_what_the_first_has_not_is_added() -> None:
    store = MemoryStore()
    one = publish(store, [(0, bulk(1, 64 * BLOCK))], SIZE)
    two = publish(store, [(0, bulk(1, 64 * BLOCK)), (SPAN, bulk(1, 64 * BLOCK)), (2 * SPAN, bulk(2, 9 * BLOCK))], SIZE)
    found = compare_trees(Repository(store), one, two)
    assert found.blocks == 73
    assert found.added_bytes == 9 * BLOCK + 64 * BLOCK, "what another span has is not looked for"
    assert compare_trees(Repository(store), two, one).added_bytes == 0


def test_files_are_compared_by_content(tmp_path: Path) -> None:
    data = random.Random(1).randbytes
    kept, moved, changed, same_size = data(300_000), data(50_000), data(100_000), data(5_000)
    one = [
        file("kept", kept), file("old/name", moved), file("changed", changed), file("size", same_size),
        file("gone", b"x"), file("twice", moved), file("empty"), hardlink("link", "kept"), file("a\x1bb", b"1"),
    ]  # fmt: skip
    two = [
        file("added", data(70_000)), file("kept", kept, uid=7), file("new/name", moved), file("changed", changed[:-1]),
        file("size", same_size[::-1]), file("void"), hardlink("link", "kept"), file("twice", moved), file("a\x1bb", b"2"),
    ]  # fmt: skip
    store = tmp_path / "store"
    for number, members in enumerate((one, two), 1):
        import_image(store, f"oci:{layout(tmp_path / str(number), [archive(members)])}", f"it:{number}", tmp_path)
    repository = Repository(open_store(str(store))[0])
    old, new = (find_version(repository, parse_reference(f"it:{number}")).root for number in (1, 2))
    expected = [
        (Change.MODIFIED, b"a\x1bb", 1, b""),
        (Change.ADDED, b"added", 70_000, b""),
        (Change.MODIFIED, b"changed", 99_999, b""),
        (Change.DELETED, b"empty", 0, b""),
        (Change.DELETED, b"gone", 1, b""),
        (Change.RENAMED, b"new/name", 50_000, b"old/name"),
        (Change.MODIFIED, b"size", 5_000, b""),
        (Change.ADDED, b"void", 0, b""),
    ]
    trees = compare_trees(repository, old, new)
    assert compare_files(repository, old, new, trees) == expected
    assert compare_files(repository, old, old, compare_trees(repository, old, old)) == []
    for root in (old, new):  # without file maps, the file systems themselves say it
        for key in repository.store.list(f"filemaps/{root.digest.hex()}"):  # type: ignore[attr-defined]
            (store / key).unlink()
    assert compare_files(repository, old, new, trees) == expected
    assert keys.filemap(old.digest, 1) not in repository.store.list("filemaps/")  # type: ignore[attr-defined]
