"""The recipe: the order of writes, what is taken back, the question before the name, and edits over a version."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.errors import Corrupt, NotAStore, StoreError, StoreReadOnly, StoreUnavailable
from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT
from blockmap.format.extent import Extent, zeros
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.publish.catalogue import read_catalogue
from blockmap.publish.dirty import BlockRuns
from blockmap.publish.local import LocalCatalogue
from blockmap.publish.publication import Publication, Published
from blockmap.publish.stages import Stages
from blockmap.publish.trees import Trees
from blockmap.store.base import Buffer, Pruner
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.opening import create_store, open_store
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from tests.format.trees import check
from tests.image.builder import bulk
from tests.store.faulty import Faulty
from tests.volume.building import model

Pieces = Sequence[tuple[int, bytes]]
NAME = NameTarget("a", "1")
SIZE = 3 * SPAN
PIECES = [(0, bulk(1, 90 * BLOCK)), (SPAN + 100, bulk(2, 40 * BLOCK)), (2 * SPAN + 7, bulk(3, 200 * BLOCK))]


@pytest.fixture
def store(tmp_path: Path) -> Pruner:
    return create_store(str(tmp_path / "store"))[0]


def begin(store: Pruner, warnings: list[str] | None = None) -> Publication:
    names, warn = NameLog(store), pytest.fail if warnings is None else warnings.append
    catalogue = read_catalogue(store, names, LocalCatalogue(None), warn)
    return Publication(store, open_store(store.url)[1], names, catalogue, warn)


def assembled(
    publication: Publication, pieces: Pieces, size: int = SIZE, hidden: Sequence[tuple[int, int]] = ()
) -> Trees:
    with publication.chunk_writer(Stages()) as chunks:
        for block, data in pieces:
            chunks.write(block, data)
        chunks.finish()
        return publication.assemble(chunks, size, list(hidden))


def version_of(trees: Trees) -> Version:
    return Version(trees.root, trees.extra, WriterLayout(0, 0), run=trees.run)


def publish(store: Pruner, pieces: Pieces, hidden: Sequence[tuple[int, int]] = ()) -> Version:
    with begin(store) as publication:
        version = version_of(assembled(publication, pieces, hidden=hidden))
        publication.publish(NAME, version, "whole")
    return version


class CallRecorder(Faulty):
    """Records the keys that are created and read, in order."""

    def __init__(self, inner: Pruner) -> None:
        super().__init__(inner)
        self.created: list[str] = []
        self.read: list[str] = []

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        super().create(key, parts)
        self.created.append(key)

    def get(self, key: str, *most: int) -> bytes:
        self.read.append(key)
        return super().get(key, *most)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self.read.append(key)
        return super().get_range(key, start, end)


# --- order, failure


def test_packs_then_the_version_then_the_name_then_what_is_derived(store: Pruner) -> None:
    recorder = CallRecorder(store)
    seen: list[Published] = []
    with begin(recorder) as publication:
        version = version_of(assembled(publication, PIECES))
        recorder.created.append("assembled")
        publication.publish(NAME, version, "whole", [seen.append, lambda _: recorder.created.append("derived")])
    kinds = [key.split("/")[0] for key in recorder.created]
    assert kinds == ["packs"] * kinds.count("packs") + ["assembled", "versions", "names", "hooks", "derived"]
    entry = NameLog(store).newest("a", "1")
    assert seen == [Published(version.name, 1, entry, version.root)]
    assert entry is not None
    assert (entry.root, entry.run, entry.message) == (version.root.placement, version.run, "whole")


def test_what_was_stored_goes_where_no_name_is_moved(store: Pruner) -> None:
    before = store.list("")
    with begin(store) as publication:
        assembled(publication, PIECES)
        assert store.list("packs/")
    assert store.list("") == before


def test_a_name_can_be_moved_to_and_fro(store: Pruner) -> None:
    for _ in range(6):
        for at in (0, 1):
            publish(store, [PIECES[at]])
    newest = NameLog(store).newest("a", "1")
    assert newest is not None
    assert newest.n == 12
    assert len(store.list("versions/")) == 2, "a version for which the name stood lately keeps its record"


def test_what_cannot_be_derived_is_a_warning(store: Pruner) -> None:
    warnings: list[str] = []

    def fail(_: Published) -> None:
        raise StoreUnavailable("no room left")

    with begin(store, warnings) as publication:
        version = version_of(assembled(publication, PIECES))
        publication.publish(NAME, version, "whole", [fail, lambda _: pytest.fail("it follows what failed")])
    assert len(warnings) == 1
    assert warnings[0].startswith("a:1 is in the store; ")
    assert NameLog(store).newest("a", "1") is not None


# --- what was deduplicated against


def fails_after(store: Pruner, change: Callable[[], None], error: type[StoreError], why: str) -> None:
    """Publishes, while somebody changes the store before the name is moved."""
    with begin(store) as publication:
        version = version_of(assembled(publication, PIECES))
        change()
        with pytest.raises(error, match=why):
            publication.publish(NAME, version, "whole")


def test_a_store_that_was_made_anew_gets_no_name(store: Pruner, tmp_path: Path) -> None:
    publish(store, PIECES[:2])
    other = create_store(str(tmp_path / "other"))[0]

    def make_anew() -> None:
        for key in store.list(""):
            store.delete(key)
        store.create(keys.FORMAT, [other.get(keys.FORMAT)])

    fails_after(store, make_anew, NotAStore, "another store was made")
    assert store.list("") == [keys.FORMAT]


def test_a_store_that_got_a_feature_of_another_release_gets_no_name(store: Pruner) -> None:
    before = store.list("")
    changed = store.get(keys.FORMAT).replace(b'"may": []', b'"may": ["x"]')
    fails_after(store, lambda: store.replace(keys.FORMAT, changed), StoreReadOnly, "upgrade")
    assert store.list("") == before


def test_who_loses_a_race_asks_again_before_the_next_number(store: Pruner) -> None:
    recorder = CallRecorder(store)
    with begin(recorder) as publication:
        version = version_of(assembled(publication, PIECES))
        recorder.read.clear()

        def move() -> None:
            NameLog(store).append(NAME, None, EntryDraft(ABSENT, 1))

        # In front of the version's create; the entry's comes next.
        recorder.before_create = lambda: setattr(recorder, "before_create", move)
        published = publication.publish(NAME, version, "whole")
    assert published.entry is not None
    assert published.entry.n == 2
    assert recorder.read.count(keys.FORMAT) == 2


# --- edits


def rewritten(
    store: Pruner, base: Version, edits: Pieces, trimmed: Sequence[tuple[int, int]] = (), size: int = SIZE
) -> tuple[Trees, Version]:
    with begin(store) as publication:
        with publication.chunk_writer(Stages()) as chunks:
            for block, data in edits:
                chunks.write(block, data)
            chunks.finish()
            extents: list[Extent] = [own for _, part in chunks.extents.spans(chunks.table) for own in part]
            changed = sorted([*extents, *(zeros(*own) for own in trimmed)])
            runs = BlockRuns([(own.start, own.end) for own in extents], trimmed)
            nodes = publication.nodes_above(base, runs, Repository(store).packs.nodes)
            trees = publication.rewrite(base, changed, size, chunks, nodes)
        version = replace(version_of(trees), parents=(base.name,))
        publication.publish(NAME, version, "edits")
    return trees, version


@pytest.mark.parametrize(
    ("edits", "trimmed"),
    [
        ([PIECES[1]], []),
        (PIECES[1:], []),
        ([(SPAN + 100, bulk(9, 40 * BLOCK))], []),
        ([(SPAN + 20, bulk(9, 30 * BLOCK))], [(2 * SPAN, 3 * SPAN)]),
        ([], [(0, SIZE)]),
        ([], [(2 * SPAN, 2 * SPAN + 300)]),
    ],
)
def test_edits_over_a_version_give_the_root_of_the_whole(
    store: Pruner, tmp_path: Path, edits: Pieces, trimmed: Sequence[tuple[int, int]]
) -> None:
    base = publish(store, [PIECES[0], (SPAN + 100, bulk(8, 40 * BLOCK)), PIECES[2]])
    trees, _ = rewritten(store, base, edits, trimmed)
    after = {PIECES[0][0]: PIECES[0][1], SPAN + 100: bulk(8, 40 * BLOCK), PIECES[2][0]: PIECES[2][1], **dict(edits)}
    whole = [
        (block, data)
        for block, data in sorted(after.items())
        if not any(start <= block < end for start, end in trimmed)
    ]
    alone = create_store(str(tmp_path / "alone"))[0]
    expected = publish(alone, whole)
    assert (trees.root.digest, trees.root.size) == (expected.root.digest, SIZE)
    repository = Repository(store)
    check(trees.root, repository.packs.nodes)
    assert stored_reader(repository, trees.root)(0, SIZE * BLOCK) == bytes(model(whole, SIZE))


def test_edits_store_what_they_change_alone(store: Pruner) -> None:
    base = publish(store, [(span * SPAN + 5, bulk(span, 50 * BLOCK)) for span in range(3)])
    before = set(store.list("packs/"))
    trees, version = rewritten(store, base, [(SPAN + 1000, bulk(77, 20 * BLOCK))])
    assert not trees.known
    assert trees.hooks == []
    new = set(store.list("packs/")) - before
    assert len(new) == 2, "one of chunks, one of nodes"
    assert trees.root.placement is not None
    assert keys.pack(trees.root.placement.pack) in new
    entry = NameLog(store).newest("a", "1")
    assert entry is not None
    assert (entry.n, entry.version, entry.run) == (2, version.name, trees.run)


def test_edits_that_change_nothing_store_no_tree(store: Pruner) -> None:
    base = publish(store, PIECES, hidden=[(10, 20)])
    before = store.list("packs/")
    for edits in ([], PIECES[1:2]):
        trees, _ = rewritten(store, base, edits)
        assert trees.known
        assert (trees.root, trees.extra, trees.run) == (base.root, base.extra, base.run)
        assert store.list("packs/") == before


def test_a_volume_grows_with_what_it_hides(store: Pruner) -> None:
    size, pieces = 300 * SPAN, PIECES[:1]
    with begin(store) as publication:
        base = version_of(assembled(publication, pieces, SPAN, [(10, 20)]))
        publication.publish(NAME, base, "small")
    trees, version = rewritten(store, base, [(299 * SPAN, bulk(4, 30 * BLOCK))], size=size)
    repository = Repository(store)
    assert (trees.root.level, trees.extra.level) == (2, 2)
    for root in (trees.root, trees.extra):
        check(root, repository.packs.nodes)
    hidden = pieces[0][1][10 * BLOCK : 20 * BLOCK]
    assert stored_reader(repository, trees.extra)(10 * BLOCK, 10 * BLOCK) == hidden
    assert stored_reader(repository, trees.root)(299 * SPAN * BLOCK, 30 * BLOCK) == bulk(4, 30 * BLOCK)
    assert repository.version(version.name) == version
    assert version.root == Root(trees.root.digest, size, trees.root.placement)


def test_edits_beside_what_is_lost_are_refused_until_it_is_stored_again(store: Pruner) -> None:
    base = publish(store, PIECES)
    _, leaf = next(iter(leaves(base.root, Repository(store).packs.nodes)))
    place = leaf.placements[0]
    assert place is not None
    store.delete(keys.pack(place.pack))
    edits = [(10, bulk(9, 30 * BLOCK))]
    before = store.list("")
    with pytest.raises(Corrupt, match="is lost with pack"):
        rewritten(store, base, edits)
    assert store.list("") == before
    publish(store, PIECES)
    trees, _ = rewritten(store, base, edits)
    packs = {at.pack for _, leaf in leaves(trees.root, Repository(store).packs.nodes) for at in leaf.placements if at}
    assert place.pack in packs, "leaves that do not change say what they said"
    _, leaf = next(iter(leaves(trees.root, Repository(store).packs.nodes)))
    assert place.pack not in {at.pack for at in leaf.placements if at}
    whole = [(0, PIECES[0][1][: 10 * BLOCK]), *edits, (40, PIECES[0][1][40 * BLOCK :]), *PIECES[1:]]
    assert stored_reader(Repository(store), trees.root)(0, SIZE * BLOCK) == bytes(model(whole, SIZE))
