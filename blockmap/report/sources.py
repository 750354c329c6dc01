"""Finds what a report is about: traces on this host, and what the store and a running server know of them."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from blockmap.control.client import Client
from blockmap.control.store_log import read_calls
from blockmap.errors import BlockmapError, FormatError, HostError, NotFound, UsageError
from blockmap.format.digest import Digest
from blockmap.format.filemap import File
from blockmap.format.profile import Profile
from blockmap.format.refs import Reference, parse_reference
from blockmap.format.trace import HEAD_BYTES, Trace, decode_head
from blockmap.learn.local_files import TraceFolder, load_trace
from blockmap.learn.port_profile import port
from blockmap.learn.stored_index import index_of
from blockmap.local.paths import TRACE_SUFFIX
from blockmap.report import files
from blockmap.report.data import Image, ReportRun, analyse, expand
from blockmap.report.files import Numbers
from blockmap.store.bundles import bundle_key, read_head
from blockmap.store.call import Call
from blockmap.store.profiles import ProfileReader
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.terminal.times import moment
from blockmap.upkeep.verify import usage

_APART_S = 0.3
"""Seconds without a call before an open, after which earlier calls belong to something else."""


def find_traces(words: Sequence[str], folder: Path, label: str | None, repository: Repository | None) -> list[Trace]:
    """Returns the traces that files or names stand for, of a name given n times its n latest, the oldest first; UsageError."""
    found: list[Trace] = []
    kept = TraceFolder(folder, lambda text: None)
    taken: dict[str, list[Path]] = {}
    for word in words:
        if word.endswith(TRACE_SUFFIX) or (folder / f"{word}{TRACE_SUFFIX}").is_file():
            found.append(_read(kept.find(word)))
            continue
        if word not in taken:
            wanted = words.count(word)
            taken[word] = _latest(word, folder, label, repository)[:wanted]
            if len(taken[word]) < wanted:
                raise UsageError(
                    f"{folder} has {len(taken[word])} traces of {word}, not {wanted}: start it, and see `blockmap trace list`"
                )
        found.append(_read(taken[word].pop()))
    return found


def _latest(word: str, folder: Path, label: str | None, repository: Repository | None) -> list[Path]:
    """Returns traces of a name, the newest first: of any version, unless a tag or digest was typed."""
    reference = parse_reference(word)
    label = label or reference.label
    version = _version_of(word, reference, repository)
    heads: list[tuple[int, Path]] = []
    for path in folder.glob(f"*{TRACE_SUFFIX}"):
        with suppress(FormatError, OSError), open(path, "rb") as file:
            head = decode_head(file.read(HEAD_BYTES))
            if head.repo == reference.repo and label in (None, head.label) and version in (None, head.version):
                heads.append((head.started_us, path))
    return [path for _, path in sorted(heads, reverse=True)]


def _version_of(word: str, reference: Reference, repository: Repository | None) -> Digest | None:
    name = word.partition("+")[0]
    if name == reference.repo:
        return None
    if repository is None:
        raise UsageError(
            f"which version {word} is, only the store knows: add --store URL, or name {reference.repo} alone"
        )
    return find_version(repository, reference).name


def _read(path: Path) -> Trace:
    try:
        return load_trace(path)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def load_run(trace: Trace, repository: Repository | None, say: Callable[[str], None]) -> ReportRun:
    """Returns a start, with what the store has of its version."""
    head = trace.head
    listed: Sequence[File] = []
    owned: dict[bytes, str] = {}
    data_bytes = None
    if repository is not None:
        try:
            listed = repository.file_map(head.root)
            root = repository.version(head.version).root
            data_bytes = usage(repository, root).data_bytes
            owned = files.owners(listed, stored_reader(repository, root))
        except BlockmapError as error:
            opened = f"{moment(head.started_us / 1e6)} UTC"
            say(f"the report says less about the start of {head.repo} at {opened}: {error}")
    numbered = files.index(listed)
    packages = numbered.labels(files.packager(owned))
    return analyse(trace, Image(numbered, packages, data_bytes, bool(owned)))


@dataclass(frozen=True, slots=True)
class Profiled:
    """The blocks of a profile in one version, and where they come from."""

    profile: Profile
    blocks: Numbers
    replayed: bool
    """True if this start replayed the profile."""


def find_profile(run: ReportRun, repository: Repository, number: int | None) -> Profiled | str:
    """Returns profile `number` of a start's repository and label, else the one that it replayed, else the newest; or why not.

    Its blocks are those of the start's version: as the bundle says, else ported.
    """
    head = run.head
    reader = ProfileReader(repository.store)
    chosen = number or head.profile or reader.number(head.repo, head.label)
    if not chosen:
        return f"{head.repo} has no profile for the label {head.label} yet."
    try:
        found = reader.get(head.repo, head.label, chosen)
        key = bundle_key(repository.store, head.version, head.label, chosen)
        if key is not None:
            read_items = read_head(repository.store, key).read_items
            return Profiled(found, expand([(item.start, item.blocks) for item in read_items]), chosen == head.profile)
        items = found.items
        if found.root != head.root:
            items = port(items, found.root, index_of(repository, repository.version(head.version).root))
        return Profiled(found, expand([(item.start, item.blocks) for item in items]), chosen == head.profile)
    except NotFound as error:
        return f"Profile {chosen} cannot be compared: {error}."


def server_calls(client: Client, run: ReportRun) -> list[Call] | str:
    """Returns what a server asked the store for before and during a start, in seconds since its open, or why it is unknown.

    The log has the monotonic clock, a trace the wall clock: if the wall clock was set in between, the two do not match.
    """
    try:
        status = client.status()
        calls, noted = read_calls(client, 0)
    except HostError:
        return f"no server answers at {client.nbd_socket}"
    opened_s = run.head.started_us / 1e6
    to_wall = time.time() - time.monotonic()
    if float(status["started"]) > opened_s:
        return f"the server at {client.nbd_socket} began only after this start"
    if not any(str(each["export"]).endswith(run.head.version.hex()) for each in status["reads"]):
        return f"the server at {client.nbd_socket} has not served this version"
    if len(calls) < noted and (not calls or calls[0].start_s + to_wall > opened_s):
        return f"the server at {client.nbd_socket} has forgotten its calls of that time"
    moved = [replace(call, start_s=call.start_s + to_wall - opened_s) for call in calls]
    return during(moved, run.end_s)


def during(calls: Sequence[Call], end_s: float) -> list[Call]:
    """Returns the calls of a start, by their start: from those that led to its open, of which no two are far apart."""
    found, begin_s = [], 0.0
    for call in sorted(calls, key=lambda call: call.start_s + call.seconds, reverse=True):
        if call.start_s + call.seconds < begin_s - _APART_S:
            break
        if call.start_s < end_s:
            found.append(call)
            begin_s = min(begin_s, call.start_s)
    return sorted(found, key=lambda call: call.start_s)
