"""Commands about the history of profiles: log, use, reset. A profile is never changed, only followed by another."""

from collections.abc import Callable
from dataclasses import replace

import click
from rich.table import Table

from blockmap.errors import Corrupt, NotFound
from blockmap.format import BLOCK
from blockmap.format.profile import Profile
from blockmap.format.refs import parse_reference
from blockmap.learn.learner import ProfileLearner, Subject, find_subject
from blockmap.learn.local_files import LocalProfiles
from blockmap.local.paths import default_cache, profiles_folder
from blockmap.store.base import Reader
from blockmap.store.opening import open_store
from blockmap.store.profiles import ProfileReader
from blockmap.terminal.machine import tell_json, timestamp
from blockmap.terminal.options import json_option, label_option, labelled, need_store, store_option
from blockmap.terminal.output import tell, warn
from blockmap.terminal.tables import cells, tell_table
from blockmap.terminal.times import moment
from blockmap.terminal.units import size


@click.command()
@click.argument("name")
@store_option
@label_option
@click.option("--limit", default=20, show_default=True, help="Profiles to show; 0 for all.")
@json_option
def log(name: str, store: str | None, label: str | None, limit: int, as_json: bool) -> None:
    """Show the profiles that NAME had, the newest first."""
    opened, subject = _subject(name, store, label)
    reader = ProfileReader(opened)
    newest = reader.number(subject.repo, subject.label)
    rows = []
    for n in range(newest, max(newest - limit, 0) if limit else 0, -1):
        try:
            found = reader.get(subject.repo, subject.label, n)
        except Corrupt as error:
            warn(str(error))
            continue
        rows.append(
            {"n": n, "time": found.time, "host": found.host, "starts": found.starts, "bytes": _bytes(found)}
        )  # fmt: skip
    if as_json:
        tell_json([{**row, "time": timestamp(float(str(row["time"])))} for row in rows])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("PROFILE", "MADE", "HOST", "STARTS", "DATA"):
        table.add_column(title, overflow="fold")
    for row in rows:
        made = moment(int(str(row["time"])))
        table.add_row(*cells(row["n"], made, row["host"], row["starts"], size(float(str(row["bytes"])))))
    tell_table(table)


@click.command()
@click.argument("name")
@click.argument("number", type=click.IntRange(min=1), metavar="N")
@store_option
@label_option
def use(name: str, number: int, store: str | None, label: str | None) -> None:
    """Have starts of NAME use what profile N says, as a new profile."""
    _follow(name, store, label, lambda reader, subject: reader.get(subject.repo, subject.label, number))


@click.command()
@click.argument("name")
@store_option
@label_option
def reset(name: str, store: str | None, label: str | None) -> None:
    """Have starts of NAME use an empty profile.

    The next of them teaches another.
    """

    def empty(reader: ProfileReader, subject: Subject) -> Profile:
        if not reader.number(subject.repo, subject.label):
            raise NotFound(f"there is no profile of {subject.repo}+{subject.label}")
        return Profile(subject.repo, subject.label, 0, subject.version, subject.root.digest, 0, [])

    _follow(name, store, label, empty)


def _follow(
    name: str, store: str | None, label: str | None, choose: Callable[[ProfileReader, Subject], Profile]
) -> None:
    """Publishes the profile that is chosen as the newest."""
    opened, subject = _subject(name, store, label)
    chosen = replace(choose(ProfileReader(opened), subject), n=0)
    learner = ProfileLearner(opened, subject, LocalProfiles(profiles_folder(default_cache())), warn)
    made, bundles = learner.publish(chosen)
    about = f"profile {made.n} of {made.repo}+{made.label}: {size(_bytes(made))}, from {made.starts} starts"
    tell(f"{about}, with bundles for {len(bundles)} versions")


def _subject(name: str, store: str | None, label: str | None) -> tuple[Reader, Subject]:
    opened, _ = open_store(need_store(store))
    return opened, find_subject(opened, parse_reference(labelled(name, label)))


def _bytes(profile: Profile) -> int:
    return sum(item.blocks for item in profile.items) * BLOCK
