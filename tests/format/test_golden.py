"""One golden digest for each format, from content to root: a change here breaks every store there is."""

import hashlib

import numpy as np

from blockmap.format import BLOCK, entry, keys, node, version
from blockmap.format.chunker import SPAN, Parameters, hashes, split, zero_blocks
from blockmap.format.codec import RAW
from blockmap.format.digest import ABSENT, Digest, block_digests, chunk_digest
from blockmap.format.extent import Extent, zeros
from blockmap.format.node import Inner, Leaf
from blockmap.format.pack import PackedFrame, PackKind, seal
from blockmap.format.placement import Placement
from blockmap.format.tree import Root, build, coverage, rewrite
from blockmap.format.version import Version, WriterLayout

SALT = bytes(range(16))
SIZE = coverage(1) + SPAN // 2
BLOCKS = 1000


def content() -> bytes:
    """Returns a thousand blocks: each holds its number 512 times; every 97th is zero."""
    numbers = np.repeat(np.arange(BLOCKS, dtype="<u8"), BLOCK // 8).reshape(BLOCKS, -1)
    numbers[::97] = 0
    return numbers.tobytes()


DATA = content()


def chunks() -> list[Extent]:
    of = hashes(DATA)
    found = []
    for start, end in split(of, zero_blocks(DATA, of), 0, True, Parameters()).chunks:
        name = chunk_digest(block_digests(DATA[start * BLOCK : end * BLOCK]))
        found.append(Extent(start, end - start, name, end - start, 0))
    return found


def extents() -> list[Extent]:
    """Returns the extents of the chunks, of the second again at the end of a span, and of a piece of the first above 4 GiB."""
    first, second, *_ = own = chunks()
    return [
        *own,
        second._replace(start=3 * SPAN - second.length),
        first._replace(start=coverage(1) + 7, length=2, first=1),
    ]


def place(chunk: Digest) -> Placement:
    return Placement(Digest(bytes(reversed(chunk))), chunk[0] % 2, chunk[1] << 8, 1 + chunk[2], 4096)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree() -> dict[str, str]:
    made = build(extents(), SIZE, {extent.chunk: place(extent.chunk) for extent in chunks() if extent.chunk})
    made.check()
    found = {"root": made.root.digest.hex()}
    for at, (name, one) in enumerate(made.nodes.items()):
        kind = f"node {at}, level {one.level}"
        found[kind] = name.hex()
        if isinstance(one, Leaf):
            found[f"{kind}, as stored"] = sha(node.encode(one))
    cut = chunks()[5]
    edits = [zeros(10, 60), cut._replace(start=SPAN - 2, length=4), zeros(coverage(1), SIZE)]
    again = rewrite(made.root, edits, SIZE, lambda name, _: made.nodes[name], {})
    return {**found, "root after edits": again.root.digest.hex()}


def inner() -> dict[str, str]:
    names = [Digest(bytes([at]) * 32) for at in (1, 2, 3)]
    made = Inner(3, [0, 7, 255], names, [Placement(ABSENT, RAW, 80, 1000, 1000), *map(place, names[1:])])
    return {"inner node": made.digest.hex(), "inner node, as stored": sha(node.encode(made))}


def pack() -> dict[str, str]:
    frames = []
    for extent in chunks()[:3]:
        assert extent.chunk is not None
        stored = DATA[extent.start * BLOCK : extent.end * BLOCK]
        frames.append(PackedFrame(extent.chunk, RAW, stored, len(stored)))
    made = seal(PackKind.CHUNKS, frames, SALT)
    return {"pack": made.name.hex(), "pack, as stored": sha(b"".join(made.parts))}


def records() -> dict[str, str]:
    root = build(extents(), SIZE, {}).root
    record = Version(
        Root(root.digest, SIZE, place(root.digest)),
        Root(ABSENT, SIZE),
        WriterLayout(1, 2),
        manifest=b"{}",
        config=b'{"os":"linux"}',
        created="2020-01-01T00:00:00Z",
    )
    first = entry.Entry(
        key=keys.entry("redis", "7", 1),
        n=1,
        version=record.name,
        number=1,
        root=record.root.placement,
        run=version.NodeRun(place(root.digest).pack, 80, 5000),
        oci=bytes(range(32)),
        previous=None,
        nonce="00",
        time=1_700_000_000,
        host="builder",
        message="",
    )
    return {
        "version": record.name.hex(),
        "version, as stored": sha(version.encode(record)),
        "entry, as stored": sha(entry.encode(first)),
    }


def test_nothing_that_is_stored_has_changed() -> None:
    cuts = [(extent.start, extent.end) for extent in chunks()]
    assert cuts[:5] == [(1, 18), (18, 48), (48, 58), (58, 62), (62, 68)]
    found = {
        "content": sha(DATA),
        "cuts": sha(repr(cuts).encode()),
        "chunk": chunk_digest(block_digests(DATA[BLOCK : 5 * BLOCK])).hex(),
        **tree(),
        **inner(),
        **pack(),
        **records(),
    }
    assert found == GOLDEN


GOLDEN = {
    "content": "631b0b5f939c554cbdec9e2516e43af224d1d20165bdacf1bcce76406ad5723b",
    "cuts": "714e0558360db5503a44f105dcfcb5adfb0c55f0950f53e119a293c070662622",
    "chunk": "7f394be71bb4bf0e8e33d8dc3088452bcb8d11cb1d47d533501824d3e983268c",
    "root": "239983f47d6fa99be780fa5533aa8dfd5a5d08d3b87858207bbd4b89026e85af",
    "node 0, level 0": "92af7605b8141d0d94ef1c2540067c2b677c6e7171908f0246fe8d6d19e072e2",
    "node 0, level 0, as stored": "eec14f720d4f99d83ee7fe1631de74d3c1529ddb3cc34a058f1d2a00f6bc59df",
    "node 1, level 0": "d74e114104ccc552127bbe8f40c6bc2d471ea1feab1ff953f5f3f8c1416d2f1b",
    "node 1, level 0, as stored": "b2046164fb90c717d8f8713b7fdac390bdbca192ed0fc5d7b13a79868a82686a",
    "node 2, level 0": "4cb4b50c94f32261db50e38432e5c8608de1f37fbcf13309ca3da555acc2e0ea",
    "node 2, level 0, as stored": "0abfbe2e52cbc9148cc0bc7363caf980e6a09060b0c6105cf18adcfbc040c1e2",
    "node 3, level 1": "34ff2c6ad59eda1957d6ccb3e96b82b285826cf599d986dd28d68d101de9ff24",
    "node 4, level 1": "9f96cfa437b0078dbc5f44228c596f268527b8d87add0718b7437d29e7e6181c",
    "node 5, level 2": "239983f47d6fa99be780fa5533aa8dfd5a5d08d3b87858207bbd4b89026e85af",
    "root after edits": "2865bc14e670f554cf4155e1d2c4e90003975b9d75f5f9b8a4bf2a0f03317a09",
    "inner node": "0909b116c736b6ee893e5dea1b6ca0d982ba00fe47aa654c19e87e30eb5d481b",
    "inner node, as stored": "3095574436ec2c9ae1b34d13f7fe92d7bfaf7847f916d34ef1b764fcdd1dd140",
    "pack": "ffc61d2ca1ad3ac97683e1fd4404a78245acf077919df8a02bd1c3ddb485d2cb",
    "pack, as stored": "5ec2ef2d3cc34e0ef8f7d19687f7c2e7e19f07a11873dac0b3801c96e55c68f8",
    "version": "5dae27db24273ed7603df55d75ebd2b541c612530505055d63a18bb622c818d3",
    "version, as stored": "6f8fb0b0990841e30217880184626b2a3f6283da5320d9332c4ee711fd611bce",
    "entry, as stored": "0a99d996151c2b6926690001ce738ad9c8009470aa384a431991b34bda502299",
}
