"""Stores the new nodes of drafts, so that the nodes of a version lie together and an open reads them in one range.

A pack of nodes begins with the inner nodes from the root down, raw, since digests do not compress; then come the leaves
in volume order. Leaves beyond the first 16 MiB go into packs of their own, which are stored first. A leaf that is stored
already is not stored again if it would lie behind the run: what an open reads stays in one place.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from blockmap.format.digest import ABSENT, DIGEST_BYTES, HEADER, Digest
from blockmap.format.node import Inner, Leaf, encode
from blockmap.format.pack import TARGET_BYTES, Pack, PackedFrame, PackKind, head_bytes, seal
from blockmap.format.placement import Placement
from blockmap.format.tree import Draft, Root
from blockmap.format.version import NodeRun
from blockmap.store.packs import UNCOMPRESSED, Sealer

RUN_BYTES = 256 << 10
"""Bytes that an open reads in one range, at most."""


@dataclass(frozen=True, slots=True)
class StoredTrees:
    roots: list[Root]
    """The roots of the drafts, in order, with their placements."""
    run: NodeRun | None
    """None where nothing new was stored."""
    stored_bytes: int
    places: dict[Digest, Placement]
    """The placements of the nodes of the drafts, but for those of the trees below them."""


def store_nodes(
    drafts: list[Draft],
    place: Callable[[Digest], Placement | None],
    put: Callable[[Pack], None],
    stored_leaf: Callable[[Digest], Placement | None] = lambda _: None,
    salt: Callable[[], bytes] = lambda: secrets.token_bytes(16),
    keep: Callable[[Digest, bytes], object] = lambda name, frame: None,
) -> StoredTrees:
    """Stores the new nodes of `drafts`; `place` has the placements of chunks that the drafts' leaves do not know.

    `stored_leaf` finds placements of leaves that are in the store already; `keep` is given the frames of the others, before
    they are compressed.
    """
    inner: dict[Digest, Inner] = {}
    leaves: dict[Digest, Leaf] = {}
    for draft in drafts:
        _collect(draft, inner, leaves)
    sealer = Sealer()
    where: dict[Digest, Placement] = {}
    first: list[PackedFrame] = []
    later: list[PackedFrame] = []
    stored = 0
    inner_bytes = sum(_encoded_bytes(node, len(node.children)) for node in inner.values())
    budget, run = TARGET_BYTES - inner_bytes, RUN_BYTES - inner_bytes
    overflowing = False

    def flush() -> None:
        nonlocal stored
        pack = seal(PackKind.NODES, later, salt())
        put(pack)
        stored += sum(map(len, pack.parts))
        where.update(zip((frame.digest for frame in later), pack.placements, strict=True))
        later.clear()

    for name, leaf in leaves.items():
        old = stored_leaf(name) if run <= 0 else None
        if old is not None:
            where[name] = old
            continue
        raw = encode(leaf.with_placements(leaf.placements.filled(leaf.chunks, place)))
        keep(name, raw)
        frame = PackedFrame(name, *sealer.seal(raw), len(raw))
        budget -= len(frame.data)
        run -= len(frame.data)
        overflowing = overflowing or budget < 0
        if not overflowing:
            first.append(frame)
            continue
        if sum(len(frame.data) for frame in later) + len(frame.data) > TARGET_BYTES:
            flush()
        later.append(frame)
    if later:
        flush()
    pack = _seal_first(inner, first, where, salt(), keep)
    if pack is None:
        return StoredTrees([draft.root for draft in drafts], None, stored, where)
    put(pack)
    names = [*inner, *(frame.digest for frame in first)]
    where.update(zip(names, pack.placements, strict=True))
    start = pack.placements[0].offset
    ends = [at.offset + at.stored for at in pack.placements]
    end = max((end for end in ends if end - start <= RUN_BYTES), default=start)
    roots = [replace(draft.root, placement=where.get(draft.root.digest, draft.root.placement)) for draft in drafts]
    return StoredTrees(roots, NodeRun(pack.name, start, end), stored + sum(map(len, pack.parts)), where)


def _collect(draft: Draft, inner: dict[Digest, Inner], leaves: dict[Digest, Leaf]) -> None:
    """Adds the new nodes of a draft: inner nodes level by level from the top, leaves in volume order."""
    level = [draft.root.digest]
    while level:
        below: list[Digest] = []
        for name in level:
            node = draft.nodes.get(name)
            if isinstance(node, Inner):
                inner[name] = node
                below.extend(node.children)
            elif node is not None:
                leaves[name] = node
        level = below


def _seal_first(
    inner: dict[Digest, Inner],
    leaves: list[PackedFrame],
    where: dict[Digest, Placement],
    salt: bytes,
    keep: Callable[[Digest, bytes], object],
) -> Pack | None:
    """Makes the pack of inner nodes and first leaves, whose placements within the pack are known beforehand."""
    if not inner and not leaves:
        return None
    here = dict.fromkeys((*inner, *(frame.digest for frame in leaves)), ABSENT)
    sizes: list[int] = []
    for node in inner.values():
        packs = set()
        for child, old in zip(node.children, node.placements, strict=True):
            place = here.get(child) or (where[child].pack if child in where else old.pack if old else None)
            assert place is not None, f"child {child.hex()} was never stored"
            packs.add(place)
        sizes.append(_encoded_bytes(node, len(packs)))
    offset = head_bytes(len(here))
    local: dict[Digest, Placement] = {}
    for name, size in zip(inner, sizes, strict=True):
        local[name] = Placement(ABSENT, UNCOMPRESSED, offset, size, size)
        offset += size
    for frame in leaves:
        local[frame.digest] = Placement(ABSENT, frame.codec, offset, len(frame.data), frame.raw)
        offset += len(frame.data)
    frames = []
    for name, node in inner.items():
        known = [
            local.get(child) or where.get(child) or old
            for child, old in zip(node.children, node.placements, strict=True)
        ]
        raw = encode(node.with_placements(known))
        assert len(raw) == local[name].raw
        keep(name, raw)
        frames.append(PackedFrame(name, UNCOMPRESSED, raw, len(raw)))
    return seal(PackKind.NODES, [*frames, *leaves], salt)


def _encoded_bytes(node: Inner, packs: int) -> int:
    """Returns the length of a stored inner node that refers to `packs` packs."""
    return HEADER.size + len(node.children) * (1 + DIGEST_BYTES + 16) + 4 + DIGEST_BYTES * packs
