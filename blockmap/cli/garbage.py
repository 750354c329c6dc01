"""The command `blockmap gc`."""

from typing import Any

import click

from blockmap.image.layer import config_chains
from blockmap.store.opening import open_writer
from blockmap.terminal.durations import Duration
from blockmap.terminal.machine import tell_json
from blockmap.terminal.options import json_option, need_store, store_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.units import size
from blockmap.upkeep.collect import Collector, Plan


@click.command()
@store_option
@click.option("--dry-run", is_flag=True, help="Show what nothing needs; change nothing.")
@click.option(
    "--keep", type=Duration(), default="30d", show_default=True, help="Keep what names stood for in this time."
)
@click.option(
    "--grace",
    type=Duration(),
    default="24h",
    show_default=True,
    help="From condemning to deleting; longer than any import or commit, and any host's sleep that should not cost one.",
)
@json_option
def gc(store: str | None, dry_run: bool, keep: float, grace: float, as_json: bool) -> None:
    """Delete what no name needs, in two runs.

    One condemns; one after the grace deletes, and condemns anew. Of packs that are mostly garbage, the rest is moved to new
    packs. Other hosts may import and serve meanwhile. What is in the recent history of a name, or pinned, is kept.
    """
    opened, _ = open_writer(need_store(store))
    collector = Collector(opened, keep, grace, config_chains)
    state = collector.state()
    said: dict[str, Any] = {}
    due = collector.due_in(state) if state.condemnation is not None else 0.0
    if state.condemnation is not None and not dry_run and (due <= 0 or state.sweeping):
        swept = collector.sweep(state)
        said |= {"deleted_objects": swept.objects, "deleted_bytes": swept.bytes}
        if not as_json:
            tell(f"deleted {swept.objects:,} objects, {size(swept.bytes)}")
        state = collector.state()
    if state.condemnation is None or dry_run:
        plan = collector.plan(state)
        said |= {
            "garbage_objects": len(plan.garbage),
            "garbage_bytes": sum(plan.garbage.values()),
            "young_objects": len(plan.young),
            "young_bytes": sum(plan.young.values()),
            "kept_bytes": plan.kept,
            "sparse_packs": len(plan.sparse),
            "sparse_bytes": plan.freed,
        }
        if not as_json:
            _tell_plan(plan)
        if not dry_run and (plan.garbage or plan.sparse) and collector.condemn(state, plan):
            copied, errors = collector.compact(plan)
            said["copied_bytes"] = copied
            for error in errors:
                warn(f"a pack that is mostly garbage stays as it is: {error}; `blockmap fsck` says more")
            if not as_json:
                tell(f"condemned: `blockmap gc` deletes it, from {_hours(grace)} on")
    else:
        said["due_in_seconds"] = max(due, 0)
        if not as_json:
            tell(f"{len(state.condemned):,} objects are condemned: `blockmap gc` deletes them, from {_hours(due)} on")
    if not dry_run:
        leftovers = collector.remove_leftovers()
        said["leftovers"] = leftovers
        if leftovers and not as_json:
            tell(f"removed {leftovers:,} files that killed writers had left")
    if as_json:
        tell_json(said)


def _tell_plan(plan: Plan) -> None:
    kinds: dict[str, tuple[int, int]] = {}
    for key, length in plan.garbage.items():
        count, total = kinds.get(kind := key.partition("/")[0], (0, 0))
        kinds[kind] = count + 1, total + length
    for kind, (count, total) in sorted(kinds.items()):
        tell(f"{kind:<10} {count:>9,}  {size(total):>8}")
    tell(
        f"{len(plan.garbage):,} objects, {size(sum(plan.garbage.values()))}, are needed by nothing; {size(plan.kept)} stay"
    )
    if plan.sparse:
        tell(
            f"{len(plan.sparse):,} packs are mostly garbage: with them go {size(plan.freed)} more, and the "
            f"{size(plan.copied)} that are needed of them are moved to new packs"
        )
    if plan.young:
        tell(
            f"{len(plan.young):,} objects, {size(sum(plan.young.values()))}, are not needed yet: they are younger than the grace, "
            "and may be in the making"
        )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.0f} hours" if seconds >= 5400 else f"{max(seconds, 0):.0f} s"
