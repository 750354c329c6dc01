"""A store with one image whose names attack the page that shows them, and traces of it, all made up."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from blockmap.format import BLOCK, keys, profile
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.format.trace import (
    EXACT,
    FOR_PREFETCH,
    FOR_STORE,
    NEW,
    READ,
    WAIT,
    End,
    Trace,
    TraceHead,
    encode_head,
    encode_waits,
)
from blockmap.store.opening import open_store
from blockmap.store.packs import compress
from blockmap.store.repository import Repository
from blockmap.store.resolver import Resolved, find_version
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, directory, file, layout

TAGS = b"<img src=x onerror=window.attacked=1>"
CLOSING = b"a<"
"""A folder: with the slash behind it, the path holds the end of a script."""
NAMES = [
    b"a</script><script>window.attacked=1<",
    TAGS,
    b"'+(window.attacked=1)+'",
    b"$$\\href{http://example.com/}{x}$$",
    b"\\(\\alpha\\)",
    b"line\nbreak\x1b[31m",
    b"bytes\xff\xfe",
    "right\u202eleft\u2028".encode(),
    b"&lt;b&gt;",
    b"@{time}",
]
OWNED = b"usr/bin/owned"
PACKAGE = b"<b>pack"


@dataclass(frozen=True, slots=True)
class Made:
    store: Path
    cache: Path
    found: Resolved

    @property
    def head(self) -> TraceHead:
        root = self.found.root
        return TraceHead(
            "evil", "default", self.found.name, root.digest, root.size * BLOCK, 1_700_000_000_000_000, NEW | EXACT, End.READY,
            3_000,
        )  # fmt: skip

    def runs(self) -> dict[bytes, tuple[int, int]]:
        """The first run of each file."""
        listed = Repository(open_store(str(self.store))[0]).file_map(self.found.root.digest)
        return {each.path: each.runs[0] for each in listed if each.runs}

    def write_trace(self, name: str, trace: Trace) -> Path:
        path = self.cache / "traces" / f"{name}.trace"
        path.parent.mkdir(parents=True, exist_ok=True)
        waits = b"" if trace.waits is None else encode_waits(trace.waits)
        path.write_bytes(encode_head(trace.head) + trace.reads.tobytes() + waits)
        return path

    def write_profile(self, *items: tuple[int, int]) -> None:
        """Profile 1 of the image, of runs (start, blocks)."""
        head = self.head
        listed = [profile.ProfileItem(start, blocks, Digest(bytes(32)), 0, None, 0, 1, 1) for start, blocks in items]
        made = profile.Profile(head.repo, head.label, 1, head.version, head.root, 3, listed, time=1_600_000_000)
        path = self.store / keys.profile(head.repo, head.label, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(profile.encode(made, compress))


def reads_of(*reads: tuple[int, int, int]) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """Reads (milliseconds, first block, blocks)."""
    return np.array([(ms * 1000, blocks * BLOCK, start * BLOCK) for ms, start, blocks in reads], READ)


def waits_of(*waits: tuple[int, int, int, int, int]) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """Waits (milliseconds, milliseconds that it took, first block, blocks, reason)."""
    return np.array(
        [(ms * 1000, took * 1000, start * BLOCK, blocks * BLOCK, why, b"") for ms, took, start, blocks, why in waits],
        WAIT,
    )


def make(folder: Path) -> Made:
    """The store, with a trace of every file, one after the other, and a later one of all but one."""
    members = [
        *(directory(name) for name in (b"a<", b"a</script><script>window.attacked=1<", b"usr", b"usr/bin")),
        *(directory(b"/".join(b"var/lib/dpkg/info".split(b"/")[: n + 1])) for n in range(4)),
        file(OWNED, bulk(99, 3 * BLOCK)),
        file(b"var/lib/dpkg/info/" + PACKAGE + b":amd64.list", b"/.\n/usr\n/" + OWNED + b"\n"),
    ]
    names = [name if not name.endswith(b"<") else name + b"/x" for name in NAMES]
    members += [file(name, bulk(n, 2 * BLOCK)) for n, name in enumerate(names)]
    store = folder / "store"
    import_image(store, f"oci:{layout(folder / 'image', [archive(members)])}", "evil:1", folder)
    repository = Repository(open_store(str(store))[0])
    made = Made(store, folder / "cache", find_version(repository, parse_reference("evil:1")))
    runs = [run for path, run in sorted(made.runs().items()) if not path.startswith(b"var/")]
    reads = [(100 + 50 * n, *run) for n, run in enumerate(runs)]
    made.write_trace("first", Trace(made.head, reads_of((10, 0, 1), *reads)))
    later = replace(made.head, started_us=made.head.started_us + 60_000_000, ready_ms=2_000)
    waits = waits_of(
        *((ms, 30, start, blocks, (FOR_STORE, FOR_PREFETCH)[ms // 50 % 2]) for ms, start, blocks in reads[:-4])
    )
    made.write_trace("second", Trace(later, reads_of((5, 0, 1), *reads[:-2], reads[-1]), waits))
    made.write_profile(runs[0], runs[1])
    return made
