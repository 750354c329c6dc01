"""Publishes what was captured of clones, one capture after another; a server runs this in a process of its own:

    python -m blockmap.commit.publisher STORE STATE DESCRIPTOR [KEYFILE]

By the socket DESCRIPTOR it is given a PublishTask, and answers with a PublishedCapture or a PublishFailure, and with False where
it ends thereafter. It may be killed at any time, and begun again: the entry's nonce was noted with the capture.
"""

import gc
import logging
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from blockmap.commit.config_changes import changed_config
from blockmap.commit.moment import CapturedMoment
from blockmap.commit.task import HANDED_BYTES, Frames, PublishedCapture, PublishFailure, PublishTask
from blockmap.errors import BlockmapError, Collected, Corrupt, FormatError, NameMoved, NotFound, UsageError
from blockmap.format import BLOCK, node, version
from blockmap.format import entry as entries
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference, pinned_export
from blockmap.format.version import Version
from blockmap.learn.bundler import put_bundles
from blockmap.publish.catalogue import Catalogue
from blockmap.publish.dedup_index import DedupIndex
from blockmap.publish.dirty import block_runs, edits, write_runs
from blockmap.publish.publication import Publication
from blockmap.publish.reliance import ExpectedEntry, still_stands
from blockmap.publish.stages import Stages
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionReader, CollectionState
from blockmap.store.concurrent import spawn
from blockmap.store.key_files import read_signer
from blockmap.store.names import NameLog, NameTarget, StoredEntry
from blockmap.store.opening import Format, open_writer
from blockmap.store.packs import NodeRef
from blockmap.store.plan import node_at
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Signer
from blockmap.store.walk import LoadNodes
from blockmap.volume.clone_table import CaptureDraft, CaptureRecord, CloneRecord, CloneTable
from blockmap.volume.overlay import OverlayMap
from blockmap.volume.scratch import ScratchFile, layer_file

_log = logging.getLogger("blockmap")

_CLOCKS_APART_S = 86400
"""Seconds by which clocks of two hosts may differ: entries that are older than a capture by more were made before it."""
_MOST_BYTES = 512 << 20
"""Bytes of memory beyond which a process ends after its task, as one large commit needs; idle it has some 50 MB."""
_COLLECT_AFTER = 100_000
"""Objects made between two runs of the garbage collector: a tree has no cycles, and is made of many objects."""


class Publisher:
    """Publishes captures of the clones of one host into one store; for one thread at a time."""

    def __init__(
        self, store: Pruner, form: Format, state: Path, warn: Callable[[str], None], signer: Signer | None = None
    ) -> None:
        """Reads the log of collections, before anything that a version will rely on. Raises Corrupt, StoreError, HostError."""
        self._store = store
        self._form = form
        self._state = state
        self._warn = warn
        self._names = NameLog(store, signer=signer)
        self._repository = Repository(store)
        self._collections = CollectionReader(store).state()
        self._lengths: dict[Digest, int] = {}
        """The lengths of packs that were asked for since `_collections`."""
        self._created: dict[NameTarget, StoredEntry] = {}
        """By name, the last entry that was created here: likely the newest."""
        self._table = CloneTable(state)

    def close(self) -> None:
        self._table.close()

    def publish(self, task: PublishTask) -> PublishedCapture:
        """Makes a version of a capture, unless that has happened already; the capture stays on record.

        Raises NameMoved where the name has moved on, NotFound, Corrupt, StoreError, HostError.
        """
        capture = next((each for each in self._table.captures() if each.id == task.capture), None)
        if capture is None:
            raise NotFound(f"there is no capture {task.capture} any more")
        try:
            try:
                return self._publish(capture, task)
            except Collected:  # once more, over what is there now; an entry that was made was taken back
                self._forget(CollectionReader(self._store).state())
                return self._publish(capture, PublishTask(task.capture, is_first=True))
            except (NotFound, Corrupt):
                if not task.base:
                    raise
                # What was handed over may say where things were before a collection.
                self._forget(CollectionReader(self._store).state())
                return self._publish(capture, PublishTask(task.capture, task.is_first))
        except NameMoved:
            # Perhaps by an attempt that has outlived the server that made it, while this one was under way.
            done = self._find_entry(capture)
            if done is None:
                raise
            return done

    def _publish(self, capture: CaptureRecord, task: PublishTask) -> PublishedCapture:
        """Publishes in as few round trips as can be, one after another: packs, beside what is read; the record of the version,
        beside the checks; the entry."""
        draft, clone = capture.draft, self._table.get(capture.clone)
        target = NameTarget(draft.repo, draft.tag)
        with ExitStack() as stack:
            layers = self._layers(capture, clone, stack)
            base_name = parse_reference(clone.base).digest
            assert base_name is not None

            def expect() -> Future[ExpectedEntry] | None:
                return None if draft.force else spawn(lambda: self._expected(draft, clone, Digest(base_name)))

            after = None
            if not task.is_first:
                # In this order: an attempt that is faster from now on takes the number of the entry.
                after = expect()
                if after is not None:
                    after.result()
                done = self._find_entry(capture)
                if done is not None:
                    return done
            if not layers:
                raise NotFound(f"capture {capture.id} has become a version meanwhile")
            base = self._base(task, clone)
            # What hosts know by a hint does not say where `extra` is, which is needed last.
            placed = None if base.extra.is_placed else spawn(lambda: self._stored_base(clone))
            moment = CapturedMoment(base, clone.size, layers)
            # A commit looks for nothing that it could share with other images: that would take longer than it saves.
            known = DedupIndex(self._repository, [], self._warn, {}, condemned=self._collections.condemned)
            known.health.know(self._lengths)
            catalogue = Catalogue({}, {}, known, self._collections)
            publication = stack.enter_context(Publication(self._store, self._form, self._names, catalogue, self._warn))
            runs = block_runs(moment.dirty())
            reading = spawn(lambda: publication.nodes_above(base, runs, self._load(task.nodes)))
            with publication.chunk_writer(Stages()) as chunks:
                write_runs(chunks, runs, moment.reader(self._repository))
                chunks.settle()
                after = after or expect()  # beside the packs, which take longer
                below = base if placed is None else placed.result()
                trees = publication.rewrite(below, edits(chunks, runs), clone.size // BLOCK, chunks, reading.result())
                chunks.finish()
            made = replace(
                base,
                root=trees.root,
                extra=trees.extra,
                manifest=None,
                config=changed_config(base.config, draft.changes),
                parents=(base.name,),
                author=draft.author,
                message=draft.message,
                run=trees.run,
                signature=None,
            )
            published = publication.publish(
                target,
                made,
                draft.message,
                [lambda own: put_bundles(self._store, draft.repo, own.version, made.root, self._warn)],
                None if after is None else after.result(),
                draft.nonce,
            )
        if published.entry is not None:
            self._created[target] = StoredEntry(published.entry, entries.encode(published.entry))
        entry = published.entry or self._names.newest(target.repo, target.tag)  # it stood for the same version already
        assert entry is not None
        self._lengths = known.health.lengths
        if publication.collections.newest != self._collections.newest:
            self._forget(publication.collections)
        frames = {node_at(name, trees.nodes[name]).key: frame for name, frame in publication.frames.items()}
        if sum(map(len, frames.values())) > HANDED_BYTES:
            frames = {}
        return PublishedCapture(pinned_export(draft.repo, published.version), entry.n, frames)

    def _layers(
        self, capture: CaptureRecord, clone: CloneRecord, stack: ExitStack
    ) -> list[tuple[ScratchFile, OverlayMap]]:
        """Returns the layers of a capture, the highest first; `stack` closes them."""
        layers: list[tuple[ScratchFile, OverlayMap]] = []
        for layer, extents in self._table.layers(clone):
            if layers or layer == capture.layer:
                file = ScratchFile(layer_file(self._state, layer))
                stack.callback(file.close)
                layers.append((file, extents))
        return layers

    def _base(self, task: PublishTask, clone: CloneRecord) -> Version:
        reference = parse_reference(clone.base)
        if task.base and reference.digest is not None:
            with suppress(FormatError):
                return version.decode(task.base, Digest(reference.digest))
        return self._stored_base(clone)

    def _stored_base(self, clone: CloneRecord) -> Version:
        try:
            return find_version(self._repository, parse_reference(clone.base)).version
        except NotFound as error:
            raise NotFound(
                f"the version that {clone.name} is above, {clone.base}, has gone from {self._store.url}: import its image again, "
                f"then `blockmap commit {clone.name} NAME --retry`"
            ) from error

    def _load(self, handed: Frames) -> LoadNodes:
        """Returns a function that gives nodes from those that were handed over, or from the store; all are verified."""

        def held(ref: NodeRef) -> node.Node | None:
            name, place = ref
            if place is None or (frame := handed.get(node_at(name, place).key)) is None:
                return None
            try:
                return node.decode(frame, place.pack, name)
            except FormatError:
                return None

        def load(refs: Sequence[NodeRef]) -> list[node.Node | BlockmapError]:
            found = {ref: held(ref) for ref in dict.fromkeys(refs)}
            missing = [ref for ref, each in found.items() if each is None]
            stored = dict(zip(missing, self._repository.packs.nodes(missing), strict=True))
            return [found[ref] or stored[ref] for ref in refs]

        return load

    def _expected(self, draft: CaptureDraft, clone: CloneRecord, base: Digest) -> ExpectedEntry:
        """Returns the entry that the name must have when it is moved: that of the draft, or the one that it has.

        NameMoved if the clone was made of the name, which stands for another version by now.
        """
        target = NameTarget(draft.repo, draft.tag)
        if draft.expected is not None:
            stored = self._names.entry(draft.repo, draft.tag, draft.expected) if draft.expected else None
            return ExpectedEntry(None if stored is None else StoredEntry(*stored))
        newest = self._names.newest_stored(target.repo, target.tag, self._created.get(target))
        stands_for = None if newest is None else newest.entry.version
        origin = parse_reference(clone.origin)
        if (origin.repo, origin.tag) == (target.repo, target.tag) and stands_for != base:
            now = "nothing" if stands_for is None else f"sha256:{stands_for.hex()[:12]}"
            raise NameMoved(
                f"{target} has moved on since {clone.name} was made of it: it stands for {now}, and not for "
                f"sha256:{base.hex()[:12]}: commit under another name, or with --force"
            )
        return ExpectedEntry(newest)

    def _find_entry(self, capture: CaptureRecord) -> PublishedCapture | None:
        """Returns what an attempt before this one has made, unless that was collected as garbage meanwhile."""
        draft = capture.draft
        for entry in self._names.history(draft.repo, draft.tag):
            if entry.nonce == draft.nonce and entry.version is not None:
                stands = still_stands(self._repository, entry)
                return PublishedCapture(pinned_export(draft.repo, entry.version), entry.n) if stands else None
            if entry.time < capture.created - _CLOCKS_APART_S:
                return None
        return None

    def _forget(self, collections: CollectionState) -> None:
        """Forgets what was read before garbage was collected."""
        self._collections = collections
        self._lengths = {}


def serve(connection: Connection, start: Callable[[], Publisher]) -> None:
    """Answers tasks until whoever asks hangs up, or much memory was used; `start` is called again after it fails."""
    publisher: Publisher | None = None
    with suppress(BlockmapError):  # the first task says why
        publisher = start()
    stays = True
    with suppress(EOFError, OSError):
        while stays:
            task = connection.recv()
            try:
                publisher = publisher or start()
                answer: PublishedCapture | PublishFailure = publisher.publish(task)
            except (NameMoved, NotFound, Corrupt, UsageError) as error:
                answer = PublishFailure(str(error), is_final=True)
            except BlockmapError as error:
                answer = PublishFailure(str(error), is_final=False)
            stays = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < _MOST_BYTES
            connection.send((answer, stays))


def _main(store_url: str, state: str, descriptor: str, key: str | None = None) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")

    def start() -> Publisher:
        signer = None if key is None else read_signer(Path(key))
        return Publisher(*open_writer(store_url), Path(state), _log.warning, signer)

    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    with Connection(int(descriptor)) as connection:
        serve(connection, start)


if __name__ == "__main__":
    _main(*sys.argv[1:])
