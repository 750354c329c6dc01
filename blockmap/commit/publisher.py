"""Publishes what was captured of a clone; a server runs this in a process of its own:

    python -m blockmap.commit.publisher STORE STATE CAPTURE [KEYFILE]

The last line that it prints is JSON with the version, by its export name, and the number of the name's entry; or says why not.
It may be killed at any time, and run again: the entry's nonce was noted with the capture.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from blockmap.commit import CONFLICT_STATUS
from blockmap.commit.config_changes import changed_config
from blockmap.errors import BlockmapError, Collected, Corrupt, NameMoved, NotFound, UsageError
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.refs import parse_reference
from blockmap.format.version import Version
from blockmap.learn.bundler import put_bundles
from blockmap.publish.catalogue import Catalogue
from blockmap.publish.dedup_index import DedupIndex
from blockmap.publish.dirty import DirtyRange, block_runs, edits, write_runs
from blockmap.publish.publication import Publication
from blockmap.publish.stages import Stages
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionReader
from blockmap.store.key_files import read_signer
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import Format, open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Signer
from blockmap.store.volume_reader import stored_reader
from blockmap.volume.clone_table import CaptureRecord, CloneRecord, CloneTable
from blockmap.volume.overlay import Kind, OverlayMap, look
from blockmap.volume.scratch import ScratchFile, layer_file

_log = logging.getLogger("blockmap")

_LOOK_BYTES = 1 << 30
_CLOCKS_APART_S = 86400
"""Seconds by which clocks of two hosts may differ: entries that are older than a capture by more were made before it."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A capture that is a version now."""

    export: str
    """Its export name by digest."""
    entry: int
    """The number of the name's entry."""


@dataclass(frozen=True, slots=True)
class CapturedMoment:
    """The layers of a clone at one moment, the highest first, over the version below them."""

    base: Version
    size: int
    """Bytes."""
    layers: list[tuple[ScratchFile, OverlayMap]]

    def dirty(self) -> Iterator[DirtyRange]:
        """Yields what the layers have."""
        maps = [extents for _, extents in self.layers]
        for at in range(0, self.size, _LOOK_BYTES):
            for piece in look(maps, at, min(at + _LOOK_BYTES, self.size)):
                if piece.kind is not None:
                    yield DirtyRange(piece.start, piece.end, piece.kind == Kind.ZEROS)

    def reader(self, repository: Repository) -> Callable[[memoryview, int], None]:
        """Returns a function that fills a buffer; the store is read where a block was written in part, and only then."""
        maps = [extents for _, extents in self.layers]
        below = stored_reader(repository, self.base.root)
        base_size = self.base.root.size * BLOCK

        def read(buf: memoryview, offset: int) -> None:
            for start, end, level, kind in look(maps, offset, offset + len(buf)):
                part = buf[start - offset : end - offset]
                if kind == Kind.DATA:
                    self.layers[level][0].read(part, start)
                elif kind is None and start < base_size:
                    inside = min(end, base_size) - start
                    part[:inside] = below(start, inside)

        return read


def publish_capture(
    store: Pruner,
    form: Format,
    state: Path,
    number: int,
    warn: Callable[[str], None],
    signer: Signer | None = None,
) -> Committed:
    """Makes a version of a capture, unless that has happened already; the capture stays on record.

    Raises NameMoved where the name has moved on, NotFound, Corrupt, StoreError, HostError.
    """
    with ExitStack() as stack:
        table = CloneTable(state)
        stack.callback(table.close)
        capture = next((each for each in table.captures() if each.id == number), None)
        if capture is None:
            raise NotFound(f"there is no capture {number} any more")
        names = NameLog(store, signer=signer)
        try:
            return _publish(store, form, state, table, capture, names, warn, stack)
        except NameMoved:
            # Perhaps by an attempt that has outlived the server that made it, while this one was under way.
            done = _find_entry(names, capture)
            if done is None:
                raise
            return done


def _publish(
    store: Pruner,
    form: Format,
    state: Path,
    table: CloneTable,
    capture: CaptureRecord,
    names: NameLog,
    warn: Callable[[str], None],
    stack: ExitStack,
) -> Committed:
    draft = capture.draft
    target = NameTarget(draft.repo, draft.tag)
    # Before other attempts are looked for: one that is faster from now on takes the number of the entry.
    newest = names.newest(target.repo, target.tag)
    done = _find_entry(names, capture)
    if done is not None:
        return done
    clone = table.get(capture.clone)
    repository = Repository(store)
    base = find_version(repository, parse_reference(clone.base)).version
    after = None if draft.force else _expected(newest, target, clone, base.name)
    layers: list[tuple[ScratchFile, OverlayMap]] = []
    for layer, extents in table.layers(clone):
        if layers or layer == capture.layer:
            file = ScratchFile(layer_file(state, layer))
            stack.callback(file.close)
            layers.append((file, extents))
    if not layers:
        raise NotFound(f"capture {capture.id} has become a version meanwhile")
    moment = CapturedMoment(base, clone.size, layers)
    # A commit looks for nothing that it could share with other images: that would take longer than it saves.
    collections = CollectionReader(store).state()
    index = DedupIndex(repository, [], warn, {}, condemned=collections.condemned)
    catalogue = Catalogue({}, index, collections)
    with Publication(store, form, names, catalogue, warn) as publication:
        runs = block_runs(moment.dirty())
        with publication.chunk_writer(Stages()) as chunks:
            write_runs(chunks, runs, moment.reader(repository))
            chunks.finish()
            trees = publication.rewrite(base, edits(chunks, runs), clone.size // BLOCK, chunks)
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
            [lambda own: put_bundles(store, draft.repo, own.version, made.root, warn)],
            after,
            draft.nonce,
        )
    entry = published.entry or names.newest(target.repo, target.tag)  # the name stood for the same version already
    assert entry is not None
    return Committed(f"{draft.repo}@sha256:{published.version.hex()}", entry.n)


def _expected(newest: Entry | None, target: NameTarget, clone: CloneRecord, base: Digest) -> int:
    """Returns the number of the entry that the name has and must have when it is moved, 0 for none.

    NameMoved if the clone was made of the name, which stands for another version by now.
    """
    origin = parse_reference(clone.origin)
    if (origin.repo, origin.tag) == (target.repo, target.tag) and (newest is None or newest.version != base):
        now = "nothing" if newest is None or newest.version is None else f"sha256:{newest.version.hex()[:12]}"
        raise NameMoved(
            f"{target} has moved on since {clone.name} was made of it: it stands for {now}, and not for "
            f"sha256:{base.hex()[:12]}: commit under another name, or with --force"
        )
    return newest.n if newest is not None else 0


def _find_entry(names: NameLog, capture: CaptureRecord) -> Committed | None:
    """Returns what an attempt before this one has made."""
    draft = capture.draft
    for entry in names.history(draft.repo, draft.tag):
        if entry.nonce == draft.nonce and entry.version is not None:
            return Committed(f"{draft.repo}@sha256:{entry.version.hex()}", entry.n)
        if entry.time < capture.created - _CLOCKS_APART_S:
            return None
    return None


def _main(store_url: str, state: str, number: str, key: str | None = None) -> None:
    logging.basicConfig(format="%(message)s")
    try:
        signer = None if key is None else read_signer(Path(key))
        store, form = open_writer(store_url)
        try:
            done = publish_capture(store, form, Path(state), int(number), _log.warning, signer)
        except Collected:  # once more, over what is there now
            done = publish_capture(store, form, Path(state), int(number), _log.warning, signer)
    except (NameMoved, NotFound, Corrupt, UsageError) as error:  # trying again would not help
        print(error)
        sys.exit(CONFLICT_STATUS)
    except BlockmapError as error:
        sys.exit(str(error))
    print(json.dumps({"export": done.export, "entry": done.entry}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
