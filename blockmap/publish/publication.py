"""Publishes a version, in the same steps for all: packs, trees, record, name, and then what is derived.

    chunk_writer   the new blocks, cut into chunks; packs of those chunks that the catalogue lacks
    assemble       the trees of a whole volume, from all of its chunks; or
    rewrite        the trees of edits over a version, from the chunks of the edits
    publish        the version's record under a number; the name's entry; what is derived

The entry is the only commit point: an error before it takes packs and record back, an error after it is a warning.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType

from blockmap.errors import BlockmapError, Corrupt, NotFound
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.extent import Extent
from blockmap.format.node import Inner, Node
from blockmap.format.pack import Pack
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import NodeRun, Version
from blockmap.publish.catalogue import Catalogue, Warn, put_hooks
from blockmap.publish.chunks import ChunkWriter, Counts
from blockmap.publish.dirty import BlockRuns, nodes_above
from blockmap.publish.healing import heal
from blockmap.publish.local import Numbered
from blockmap.publish.object_writer import ObjectWriter
from blockmap.publish.reliance import ExpectedEntry, Reliance
from blockmap.publish.stages import Stages
from blockmap.publish.trees import TreeDrafts, Trees, draft_rewrite, draft_whole, store_trees
from blockmap.store.base import Pruner
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.opening import Format, check_unchanged
from blockmap.store.repository import Repository
from blockmap.store.walk import LoadNodes

_LATELY = 32
"""The newest entries of a name that are looked through; they come in six round trips."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version that a name stands for."""

    version: Digest
    number: int
    """The number of the version's record."""
    entry: Entry | None
    """The entry that was made; None where the name stood for the version already."""
    root: Root
    """The root of the version's volume, with the place that the record has."""


Derive = Callable[[Published], object]
"""Stores something that can be derived from a published version at any time, and may be missing."""


class Publication:
    """Publishes one version; a context manager, which deletes what it stored if it is left before the name is moved."""

    def __init__(self, store: Pruner, form: Format, names: NameLog, catalogue: Catalogue, warn: Warn) -> None:
        self._store = store
        self._form = form
        self._names = names
        self._catalogue = catalogue
        self._warn = warn
        self._repository = Repository(store)
        self._objects = ObjectWriter(store)
        self._hooks: list[tuple[Digest, bytes]] = []
        self.known = catalogue.known
        """What the store has already."""
        self.collections = catalogue.collections
        """What the log of collections said when it was last looked at."""
        self.frames: dict[Digest, bytes] = {}
        """The frames of nodes that `rewrite` stored, by their names."""
        self._attempt: tuple[NameTarget, Digest, int] | None = None
        """The name that may stand for the version by now, the version, the number of its record."""
        self._is_named = False
        self._counts = Counts()
        """The counts of the chunk writer."""
        self._other: tuple[int, Root] | None = None
        """The number and root of the record by which another import of the image named the version meanwhile."""

    def __enter__(self) -> "Publication":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_named:
            self._take_back()

    def chunk_writer(self, stages: Stages) -> ChunkWriter:
        """Returns the writer that takes the volume's blocks, or those of the edits."""
        writer = ChunkWriter(self._put_pack, self._catalogue.known.lookup, self._form.chunker, stages)
        self._counts = writer.counts
        return writer

    def assemble(self, chunks: ChunkWriter, size: int, hidden: list[tuple[int, int]]) -> Trees:
        """Stores the trees of a volume of `size` blocks, all of which `chunks` took; `hidden` blocks go to `extra`."""
        return self._put_trees(draft_whole(chunks, size, hidden), chunks, lambda name, frame: None)

    def nodes_above(self, base: Version, runs: BlockRuns, load: LoadNodes) -> dict[Digest, Node]:
        """Reads the nodes of a version that a rewrite of these blocks needs, and asks for the packs that it relies on; may run
        while the chunks are stored."""
        found = nodes_above(base.root, runs, load)
        self._catalogue.known.health.ask(pack for node in found.values() for pack in node.placements.ends())
        return found

    def rewrite(
        self, base: Version, edits: list[Extent], size: int, chunks: ChunkWriter, nodes: Mapping[Digest, Node]
    ) -> Trees:
        """Stores the trees of `edits` over a version: of chunks that `chunks` took, or zeros; `nodes` has nodes of the version.

        Raises Corrupt where the nodes that change refer to a pack of the base that has lost what they need.
        """
        read = dict(nodes)

        def load(name: Digest, place: Placement | None) -> Node:
            if name not in read:
                read[name] = self._repository.node(name, place)
            return read[name]

        drafts = draft_rewrite(base, edits, size, load)
        # A new leaf refers to what the leaf before it does, and to new chunks; inner nodes are few.
        is_sound = all(map(self._catalogue.known.health.all_sound, (node.placements for node in read.values())))
        for draft in (drafts.volume, drafts.extra):
            for name, node in draft.nodes.items():
                if not is_sound or isinstance(node, Inner):
                    draft.nodes[name] = self._confirmed(node)
        return self._put_trees(drafts, chunks, self.frames.__setitem__)

    def publish(
        self,
        target: NameTarget,
        version: Version,
        message: str,
        derived: Iterable[Derive] = (),
        after: ExpectedEntry | None = None,
        nonce: str = "",
    ) -> Published:
        """Stores the record of a version whose trees are stored, moves the name to it, and makes what is derived.

        Before each attempt to move the name, the store must still be the one whose catalogue was read: one that was made
        anew, or is no longer mounted, has nothing of what was deduplicated against. With `after`, the name must stand for what
        that says, and the checks are made while the record is stored. Where another import has named the same version
        meanwhile, its record and its packs stand, and these are deleted again. NameMoved, Collected, NotAStore, StoreError.
        """
        name, root = version.name, version.root
        for own in (root, version.extra):
            if not own.is_placed:
                raise Corrupt(f"nothing says where the tree {own.digest.hex()} of the new version is stored")
        reliance = Reliance(self._store, self._names, self._catalogue.collections, self._warn)
        numbered: Future[int] = Future()
        if after is not None:
            reliance.check_ahead(version, numbered, self._check_store)
        try:
            number, standing = self._put_record(target, version)
            numbered.set_result(number)
        except BaseException as error:
            numbered.set_exception(error)
            raise
        self._attempt = target, name, number

        draft = replace(EntryDraft.of(version, number, message), nonce=nonce)
        entry = reliance.name(target, version, draft, self._check_store, after, self._is_of_another)
        self._is_named = True
        self.collections = reliance.seen
        reused = standing.get((name, number))
        if self._other is None and reused is not None:
            self._other = number, reused.root
        if entry is None and self._other is not None:
            number, root = self._other
            self._withdraw()
        published = Published(name, number, entry, root)
        try:
            for tree, sample in self._hooks:
                put_hooks(self._store, self._warn, tree, sample)
            for derive in derived:
                derive(published)
        except BlockmapError as error:
            self._warn(f"{target} is in the store; what speeds its use up is not, until it is imported again: {error}")
        return published

    def _check_store(self) -> None:
        check_unchanged(self._store, self._form)

    def _put_record(self, target: NameTarget, version: Version) -> tuple[int, dict[Numbered, Version]]:
        """Stores the record of a version, unless a name stands for one or stood for it lately; returns its number, and those
        records."""
        name, signer = version.name, self._names.signer
        signed = version if signer is None else signer.version(version)
        retired = self._catalogue.collections.retired_number(name)
        standing = self._standing(name)
        number = None if standing else self._objects.put_first_version(signed, retired)
        if number is None:
            standing = standing or self._stood(target, name, retired)
            number = self._objects.put_version(signed, standing, retired)
        return number, standing

    def _is_of_another(self, entry: Entry) -> bool:
        """Returns True if an entry of the version came after the catalogue was read, and what it leads to can be relied on.

        One that is older leads to a record that this import found damaged, or to packs that lost something.
        """
        assert entry.version is not None
        if (entry.version, entry.number) in self._catalogue.versions:
            return False
        try:
            found = self._repository.version_at(entry.version, entry.number)
        except (NotFound, Corrupt):
            return False
        signer = self._names.signer
        if signer is not None and not signer.has_signed_version(found):
            return False
        health = self._catalogue.known.health
        if any(root.placement != health.find(root.digest, root.placement) for root in (found.root, found.extra)):
            return False
        self._other = entry.number, found.root
        return True

    def _withdraw(self) -> None:
        """Deletes what this import stored, of which the store has another copy."""
        try:
            self._objects.withdraw()
            self._counts.forget_new()
        except BlockmapError as error:
            self._warn(f"packs that turned out to be of no use take room in the store: {error}")

    def _put_pack(self, pack: Pack) -> None:
        """Stores a pack; nobody asks for its length later, not even those who rely on it for the next version."""
        self._objects.put_pack(pack)
        self._catalogue.known.health.know({pack.name: sum(map(len, pack.parts))})

    def _put_trees(self, drafts: TreeDrafts, chunks: ChunkWriter, keep: Callable[[Digest, bytes], object]) -> Trees:
        """Stores trees; where they are stored already, drops packs of chunks that were not found although these have them.

        What these trees have, and others have in packs that lost it, is found through the logs of those packs from then on.
        """
        known = self._catalogue.known
        trees = store_trees(drafts, chunks.table.placement, known, self._put_pack, keep)
        self._hooks = trees.hooks
        healed = heal(
            self._store, known.health, trees.nodes, lambda name: chunks.table.placement(name) or known.leaf(name)
        )
        if healed:
            self._objects.keep_packs()  # logs lead to them
        if not trees.known:
            return trees
        if not healed:
            self._withdraw()
        return replace(trees, run=self._run(trees.root))

    def _confirmed(self, node: Node) -> Node:
        """Returns a node with what it refers to where it can be relied on."""
        health = self._catalogue.known.health
        if health.all_sound(node.placements):
            return node
        places = health.find_all(node.references, node.placements)
        for name, before, place in zip(node.references, node.placements, places, strict=True):
            if before is not None and place is None:
                raise Corrupt(
                    f"{name.hex()} of the version below is lost with pack {before.pack.hex()}: import that version's image "
                    "again, which stores it again, then repeat this"
                )
        return node.with_placements(places)

    def _run(self, root: Root) -> NodeRun | None:
        """Returns the run that an open of an already stored tree should read first, as a version with that tree says."""
        for (name, number), (other, _) in self._catalogue.versions.items():
            if (other.digest, other.placement) == (root.digest, root.placement):
                with suppress(BlockmapError):
                    return self._repository.version(name, number).run
        return None

    def _standing(self, name: Digest) -> dict[Numbered, Version]:
        """Returns the records of a version that a name stands for and that are sound."""
        named = {at: roots for at, roots in self._catalogue.versions.items() if at[0] == name}
        return self._sound(named)

    def _stood(self, target: NameTarget, name: Digest, retired: int) -> dict[Numbered, Version]:
        """Returns those records of a version, above `retired`, for which the name stood lately: it may be moved to and fro."""
        try:
            lately = list(islice(self._names.history(target.repo, target.tag), _LATELY))
        except Corrupt as error:
            self._warn(f"version {name.hex()} is stored again: {error}")
            return {}
        numbers = {entry.number for entry in lately if entry.version == name and entry.number > retired}
        return self._sound({(name, number): None for number in numbers})

    def _sound(self, records: Mapping[Numbered, tuple[Root, Root] | None]) -> dict[Numbered, Version]:
        """Returns those records, given the places of the roots where they are known, that can be read, have the signature that
        they would get here, and whose trees are whole."""
        signer = self._names.signer
        found: dict[Numbered, Version] = {}
        for (name, number), roots in records.items():
            try:
                record = self._repository.version_at(name, number)
            except BlockmapError as error:
                self._warn(f"version {name.hex()} is stored again: {error}")
                continue
            whole = all(map(self._catalogue.known.whole, roots or (record.root, record.extra)))
            if whole and (signer is None or signer.has_signed_version(record)):
                found[name, number] = record
        return found

    def _take_back(self) -> None:
        """Deletes what was stored, unless the name's entry stands, or may stand, in spite of the failure."""
        try:
            if self._attempt is None or not self._stands(*self._attempt):
                self._objects.withdraw()
        except BlockmapError as error:
            self._warn(f"stored objects could not be deleted again, and take room in the store: {error}")

    def _stands(self, target: NameTarget, version: Digest, number: int) -> bool:
        history = self._names.history(target.repo, target.tag)
        return any((entry.version, entry.number) == (version, number) for entry in history)
