"""The command `blockmap fsck`."""

import click

from blockmap.cli.images import heal_from
from blockmap.errors import Corrupt, StoreError
from blockmap.image.layer import config_chains
from blockmap.store.base import Pruner
from blockmap.store.opening import open_writer
from blockmap.terminal.durations import Duration
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import json_option, max_size_option, need_store, store_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.units import size
from blockmap.upkeep.findings import Problem, Report
from blockmap.upkeep.fsck import StoreCheck
from blockmap.upkeep.verify import record_faults

_ROUNDS = 8
"""Times that a store is mended and checked again: what was below a lost node is seen when that node is back."""


@click.command()
@store_option
@click.option("--read", is_flag=True, help="Read every byte that is needed, and check it against its digest.")
@click.option("--repair", is_flag=True, help="Mend what can be mended from what the store has.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Also store again what was lost of this image, as `import` names it. Implies --repair; once for each of several.",
)
@click.option("--platform", metavar="OS/ARCH", help="Which image of SOURCE's index.")
@max_size_option
@click.option(
    "--keep",
    type=Duration(),
    default="30d",
    show_default=True,
    help="Check what names stood for in this time: what `gc --keep` keeps.",
)
@json_option
def fsck(
    store: str | None,
    read: bool,
    repair: bool,
    sources: tuple[str, ...],
    platform: str | None,
    max_size: float,
    keep: float,
    as_json: bool,
) -> None:
    """Check the whole store: everything that names and pins need.

    Names, versions and trees are read; packs are looked at, or with --read read whole. What is damaged is recorded, so that no
    import relies on it. Garbage is no error. The exit status is 0 if nothing is damaged or lost, or all of it was mended, else 1.
    """
    opened, _ = open_writer(need_store(store))
    check = StoreCheck(opened, keep, config_chains, warn)
    report = check.run(read)
    _record(opened, report)
    found = report.problems
    for attempt in range(_ROUNDS if repair or sources else 0):
        before = report.problems
        if not before:
            break
        check.mend(report)
        for source in sources if attempt == 0 else ():
            heal_from(opened.url, source, platform, max_size)
        report = check.run(read)
        _record(opened, report)
        found = found + [problem for problem in report.problems if problem not in found]
        if report.problems == before:
            break
    mended = [problem for problem in found if problem not in report.problems]
    if as_json:
        tell_json(_machine(report, mended))
    else:
        _tell(report, mended, read)
    if report.problems:
        hint = "" if repair or sources else ": `blockmap fsck --repair` mends what the store itself has another copy of"
        raise Corrupt(f"{opened.url} has {len(report.problems):,} problems{hint}")


def _record(store: Pruner, report: Report) -> None:
    try:
        record_faults(store, report.faults)
    except StoreError as error:
        warn(f"the store keeps no record of this damage: {error}")


def _machine(report: Report, mended: list[Problem]) -> dict[str, object]:
    garbage = report.garbage
    return {
        "names": report.names,
        "versions": report.versions,
        "packs": report.packs,
        "needed_bytes": report.bytes,
        "problems": [_about(problem) for problem in report.problems],
        "mended": [_about(problem) for problem in mended],
        "notes": report.notes,
        "garbage_objects": None if garbage is None else len(garbage.old) + len(garbage.young),
        "garbage_bytes": None if garbage is None else sum(garbage.old.values()) + sum(garbage.young.values()),
    }


def _about(problem: Problem) -> dict[str, str]:
    return {"what": problem.what, "message": problem.message, "action": problem.action}


def _tell(report: Report, mended: list[Problem], read: bool) -> None:
    for problem in mended:
        tell(f"mended: {problem.what}: {problem.message}")
    for problem in report.problems:
        tell(f"{problem.what}: {problem.message}", f"    what to do: {problem.action}")
    for note in report.notes:
        tell(f"note: {note}")
    how = "every byte was read" if read else "their lengths were looked at, `--read` reads them"
    tell(f"{report.names:,} names, {report.versions:,} versions, {size(report.bytes)} in {report.packs:,} packs: {how}")
    if report.garbage is None:
        tell("what of the rest is garbage is not known while something is lost")
    else:
        count = len(report.garbage.old) + len(report.garbage.young)
        total = sum(report.garbage.old.values()) + sum(report.garbage.young.values())
        tell(
            f"{count:,} objects, {size(total)}, are needed by nothing: `blockmap gc` deletes what of them is old enough"
        )
