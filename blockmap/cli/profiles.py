"""Commands about profiles: build, show, list; others have modules of their own."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from blockmap.cli import profile_history
from blockmap.cli.record import record
from blockmap.errors import BlockmapError, NotFound, UsageError
from blockmap.format import BLOCK
from blockmap.format.profile import Profile, ProfileItem
from blockmap.format.refs import DEFAULT_LABEL, parse_reference
from blockmap.learn.learner import Learnt, ProfileLearner, find_subject, fresh_traces
from blockmap.learn.local_files import LocalProfiles, TraceFolder, load_trace
from blockmap.local.paths import default_cache, profiles_folder, traces_folder
from blockmap.store.base import Reader
from blockmap.store.bundles import newest_bundles
from blockmap.store.key_files import read_trusted
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from blockmap.store.profiles import ProfileReader
from blockmap.store.signing import Trust
from blockmap.terminal.machine import digest, tell_json, timestamp
from blockmap.terminal.options import cache_option, json_option, need_store, store_option, trust_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.units import size


@click.group()
def profile() -> None:
    """What starts of images read, learnt and shared by all hosts."""


for command in (record, profile_history.log, profile_history.use, profile_history.reset):
    profile.add_command(command)


@profile.command()
@click.argument("name")
@click.argument("traces", nargs=-1, metavar="[TRACE]...")
@store_option
@trust_option
@cache_option
@click.option("--label", help="Which workload of the image.  [default: default]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def build(
    name: str,
    traces: tuple[str, ...],
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
    label: str | None,
    as_json: bool,
) -> None:
    """Learn from starts of NAME what its next starts read.

    It is stored for all hosts. Merges each TRACE (a file, or a name from `blockmap trace list`) with the newest profile;
    without any, the traces on this host that are not in it yet, of starts on a host that had nothing of the image.
    """
    reference = parse_reference(name if label is None else f"{name}+{label}")
    trusted = Trust(read_trusted(trust))
    opened, _ = open_store(need_store(store))
    subject = find_subject(opened, reference, trusted)
    where = cache or default_cache()
    folder = TraceFolder(traces_folder(where), warn)
    chosen = [load_trace(folder.find(each)) for each in traces]
    if any((trace.head.repo, trace.head.label) != (subject.repo, subject.label) for trace in chosen):
        raise UsageError(f"a trace is not of {subject.repo}+{subject.label}: see `blockmap trace list`")
    if not chosen:
        found = [trace for trace in folder.of(subject.repo, subject.label) if trace.head.is_evidence]
        chosen = fresh_traces(opened, found, subject.repo, subject.label)
        if not chosen:
            raise NotFound(
                f"{traces_folder(where)} has no trace of {subject.repo}+{subject.label} that is not in its profile yet: start "
                "the image, or name traces"
            )
    learner = ProfileLearner(opened, subject, LocalProfiles(profiles_folder(where)), warn, trusted)
    _tell(learner.learn(chosen), as_json)


def _tell(learnt: Learnt, as_json: bool) -> None:
    made, merged = learnt.profile, learnt.merged
    data = sum(item.blocks for item in made.items) * BLOCK
    if as_json:
        summary = {
            "repo": made.repo,
            "label": made.label,
            "n": made.n,
            "starts": made.starts,
            "new_starts": merged.whole,
            "adding_starts": merged.added,
            "items": len(made.items),
            "bytes": data,
            "bundles": [{"version": digest(own.version), "bytes": own.stored_bytes} for own in learnt.bundles],
            "local": None if learnt.kept is None else str(learnt.kept),
        }
        tell_json(summary)
    else:
        tell(
            f"profile {made.n or 'of this host'} of {made.repo}+{made.label}: {size(data)} in {len(made.items):,} items, "
            f"from {made.starts} starts"
        )
        for own in learnt.bundles:
            data = own.blocks * BLOCK
            tell(f"  {size(own.stored_bytes)} for version {own.version.hex()[:12]}, {size(data)} before compression")
    if merged.is_guess:
        warn("no start was on a host that had nothing of the image: what its kernel still had may be missing")
    if learnt.kept is not None:
        warn(f"the store cannot be written from here: the profile stays on this host, in {learnt.kept}")


@profile.command()
@click.argument("name")
@store_option
@cache_option
@click.option("--label", help="Which workload of the image.  [default: default]")
@click.option("--limit", default=40, show_default=True, help="Rows to show; 0 for all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all rows.")
def show(name: str, store: str | None, cache: Path | None, label: str | None, limit: int, as_json: bool) -> None:
    """Show what starts of NAME read, in which order."""
    reference = parse_reference(name if label is None else f"{name}+{label}")
    opened, _ = open_store(need_store(store))
    repo, own = reference.repo, reference.label or DEFAULT_LABEL
    found = ProfileReader(opened).newest(repo, own)
    if found is None:
        found = LocalProfiles(profiles_folder(cache or default_cache())).get(repo, own)
    if found is None:
        raise NotFound(f"there is no profile of {repo}+{own}: `blockmap profile build` makes one of traces")
    bundles = _bundles(opened, found)
    data = sum(item.blocks for item in found.items) * BLOCK
    if as_json:
        head = {
            "repo": repo,
            "label": own,
            "n": found.n,
            "version": digest(found.version),
            "starts": found.starts,
            "host": found.host,
            "time": timestamp(found.time),
            "bytes": data,
            "bundles": [
                {"version": digest(version), "names": names, "bytes": length} for version, names, length in bundles
            ],
            "items": item_rows(found.items, found.starts),
        }
        tell_json(head)
        return
    tell(f"profile     {found.n or 'of this host'} of {repo}+{own}, made on {found.host}")
    tell(f"items       {len(found.items):,}, {size(data)}, from {found.starts} starts")
    for version, names, length in bundles:
        tell(f"bundle      {size(length)} for {version.hex()[:12]} ({', '.join(names)})")
    tell_table(item_table(found.items[: limit or None], found.starts))
    if limit and len(found.items) > limit:
        tell(f"... {len(found.items) - limit:,} more: --limit 0 shows all")


def _bundles(store: Reader, found: Profile) -> list[tuple[bytes, list[str], int]]:
    """Returns the versions of names that have a bundle of the label: digest, names, bytes."""
    names = NameReader(store)
    versions: dict[bytes, list[str]] = {}
    rows = []
    try:
        for (repo, tag), n in sorted(names.catalogue().items()):
            entry = names.entry(repo, tag, n)[0] if repo == found.repo else None
            if entry is not None and entry.version is not None:
                versions.setdefault(entry.version, []).append(f"{repo}:{tag}")
                if len(versions[entry.version]) == 1:
                    rows += [
                        (entry.version, own.length)
                        for own in newest_bundles(store, entry.version)
                        if own.label == found.label
                    ]
    except BlockmapError as error:
        warn(f"which versions have bundles is not known: {error}")
    return [(version, versions[version], length) for version, length in rows]


def item_rows(items: Sequence[ProfileItem], starts: int) -> list[dict[str, object]]:
    """Returns items for machines."""
    return [
        {
            "time_ms": item.time_ms,
            "path": None if item.path is None else item.path.decode("utf-8", "backslashreplace"),
            "file_offset": item.at * BLOCK,
            "offset": item.start * BLOCK,
            "bytes": item.blocks * BLOCK,
            "share": item.touched / starts,
        }
        for item in items
    ]


def item_table(items: Sequence[ProfileItem], starts: int) -> Table:
    """Returns a table of items for people."""
    table = Table(box=None, pad_edge=False)
    for title in ("#", "MS", "SIZE", "BLOCKS", "STARTS"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("PATH", overflow="fold")
    for number, item in enumerate(items, 1):
        first = item.start if item.path is None else item.at
        path = "-" if item.path is None else "/" + item.path.decode("utf-8", "backslashreplace")
        blocks = f"{first}-{first + item.blocks - 1}"
        share = f"{item.touched / starts:.0%}"
        table.add_row(*cells(number, item.time_ms, size(item.blocks * BLOCK), blocks, share, path))
    return table


@profile.command("list")
@click.argument("repo", required=False)
@store_option
@json_option
def list_(repo: str | None, store: str | None, as_json: bool) -> None:
    """List the profiles in the store, or those of REPO."""
    opened, _ = open_store(need_store(store))
    reader = ProfileReader(opened)
    rows = []
    for (own, label), n in reader.all().items():
        if repo is not None and own != repo:
            continue
        try:
            found = reader.get(own, label, n)
        except BlockmapError as error:
            warn(str(error))
            continue
        data = sum(item.blocks for item in found.items) * BLOCK
        rows.append({"repo": own, "label": label, "n": n, "starts": found.starts, "bytes": data, "host": found.host})
    if as_json:
        tell_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("REPO", "LABEL", "PROFILE", "STARTS", "DATA", "HOST"):
        table.add_column(title, overflow="fold")
    for row in rows:
        values = (row["repo"], row["label"], row["n"], row["starts"], size(float(str(row["bytes"]))), row["host"])
        table.add_row(*cells(*values))
    tell_table(table)
