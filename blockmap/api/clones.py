"""What is done with clones on this host: made, captured, published, forked, put back, removed."""

import logging
import os
import pwd
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockmap.api.detached import Versions, check_versions
from blockmap.api.freeze import moment_of
from blockmap.api.host import Host
from blockmap.api.regular import ASK_SECONDS, NOT_YET, RegularCommits
from blockmap.commit.config_changes import parse_changes
from blockmap.control.clone_messages import (
    AwaitPublished,
    Capture,
    Fork,
    MakeClone,
    RemoveClone,
    Rewind,
    SettleCaptures,
)
from blockmap.errors import AlreadyExists, UsageError
from blockmap.format.refs import parse_name
from blockmap.host.run import folders, runner
from blockmap.host.run.options import RunOptions

if TYPE_CHECKING:
    from blockmap.volume.clone_table import CloneUsage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Clone:
    """A clone of this host."""

    name: str
    store: str
    """The UUID of the store that has its image."""
    origin: str
    """The image as it was asked for."""
    base: str
    """The export name by digest of the version below what was written."""
    size: int
    """Bytes."""
    created: int
    """Unix time."""
    written_bytes: int
    unpublished: int
    """Captures that are not published yet."""
    conflict: str
    """Why the first of them waits for a decision; empty where none does."""
    in_use_by: str | None
    """Who has it open, for people."""
    origin_now: str | None
    """What the image's name stands for now, by its digest; None where no server says that."""
    has_origin_moved: bool
    """True if the name was moved since the clone was made, and not by a commit of the clone."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A moment of a clone that is safe on this host, and is published as soon as the store has it."""

    number: int
    sync_seconds: float
    """How long it took to write what waited, before; writers went on meanwhile."""
    stall_seconds: float
    """How long writers waited; 0 where no file system was frozen."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A captured moment that has become a version."""

    export: str
    """The version's export name by digest, REPO@sha256:HEX."""
    entry: int
    """The number of the name's entry."""
    sync_seconds: float = 0.0
    """How long it took to write what waited, before the capture; writers went on meanwhile."""
    stall_seconds: float = 0.0
    """How long writers waited; 0 where no file system was frozen."""
    seconds: float = 0.0
    """From the beginning of the capture until every host could see the version."""


class CloneHost(Host):
    """This host with its clones. Methods raise HostError, StoreError and UsageError, and what else they say."""

    def clone(self, name: str, clone: str, *, size: int | None = None) -> None:
        """Makes `clone`, a writable clone of the image `name`, of `size` bytes if that is given; AlreadyExists, NotFound,
        Untrusted."""
        self._check_free([clone])
        note = self.server().ask(MakeClone(name, clone, size)).note
        if note:
            _log.warning(note)

    def clones(self) -> list[Clone]:
        """Returns the clones of this host, by name; a server that does not run is not started for it."""
        from blockmap.volume.clone_table import read_clones  # imported here, as below: `clone` does without

        recorded = read_clones(self.state)
        stand = self._stand(self._client(), [each.record.name for each in recorded])
        return [self._clone(each, *stand.get(each.record.name, (None, 0))) for each in recorded]

    def commit(
        self,
        clone: str,
        name: str,
        *,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        force: bool = False,
    ) -> Commit:
        """Makes `name` stand for what a clone is at this moment, and returns when every host can see it.

        Arguments are those of `capture`. NameMoved where the name has moved on: the moment is kept then, and waits for `retry`
        or `drop`.
        """
        began = time.monotonic()
        captured = self.capture(clone, name, message=message, author=author, changes=changes, force=force)
        done = self.published(captured.number)
        seconds = time.monotonic() - began
        return Commit(done.export, done.entry, captured.sync_seconds, captured.stall_seconds, seconds)

    def capture(
        self,
        clone: str,
        name: str,
        *,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        force: bool = False,
    ) -> Captured:
        """Keeps what a clone is at this moment, also while it is mounted and written to; the server then publishes it as
        `name`, through restarts and outages.

        `author` is this user by default; `changes` are of the image's configuration, such as `ENV A=1`; `force` moves the name
        although it has moved on since the clone was made of it. DiskFull.
        """
        parse_name(name)
        wanted = Capture(clone, name, message, author or _user(), parse_changes(changes), force)
        client = self.server()
        with moment_of(self.attachments, client, clone) as moment:
            captured = client.ask(wanted).capture
        return Captured(captured, moment.sync_seconds, moment.stall)

    def published(self, capture: int) -> Commit:
        """Waits until a captured moment is published, however long the store is away; warns of each reason why it is not.

        NameMoved where a person must decide.
        """
        client, told = self.server(), ""
        while not (found := client.ask(AwaitPublished(capture, ASK_SECONDS))).export:
            if found.failure != told:
                told = found.failure
                _log.warning(NOT_YET, told)
        return Commit(found.export, found.entry)

    def run_versions(
        self,
        clone: str,
        command: Sequence[str] = (),
        options: RunOptions | None = None,
        *,
        to: str,
        every_seconds: float,
        message: str = "",
        terminal: bool = False,
        container: str | None = None,
    ) -> int:
        """Runs a program on a clone as `run` does, and meanwhile makes `to` stand for what the clone is, every so many seconds
        and at the end; returns the program's exit status once the last version is published.

        A moment at which nothing was written since the last one makes no version. Where somebody else has moved the name, that
        is logged, and no more are made: what is written stays in the clone.
        """
        versions = Versions(to, every_seconds, message)
        check_versions(versions)
        client, options = self._ready_to_run(clone, options, container, None)
        commits = self.regular_commits(clone, versions)
        program = runner.Program(clone, list(command), options, terminal, on_clone=True)
        status = runner.run(client, self.devices, self.state, program, [commits], name=container)
        commits.finish()
        return status

    def regular_commits(self, clone: str, versions: Versions) -> RegularCommits:
        """Returns the observer of a run that makes versions of a clone."""
        client = self.server()
        return RegularCommits(
            client, lambda: moment_of(self.attachments, client, clone), clone, versions.to, versions.every_seconds,
            versions.message, _user(),
        )  # fmt: skip

    def retry(self, clone: str, name: str | None = None, *, force: bool = False) -> Commit | None:
        """Publishes after all the first moment of a clone that waits for a decision: under another name, or by force; returns
        None where none waits. NameMoved."""
        if name is None and not force:
            raise UsageError("say how: --retry with another NAME, or with --force")
        chosen = self.server().ask(SettleCaptures(clone, name=name, force=force)).captures
        return self.published(chosen[0]) if chosen else None

    def drop(self, clone: str) -> int:
        """Forgets all moments of a clone that are captured and not published, and returns how many; what was written stays."""
        return len(self.server().ask(SettleCaptures(clone, drop=True)).captures)

    def fork(self, clone: str, names: Sequence[str]) -> None:
        """Makes clones of what a clone is at this moment, all or none, also while it is mounted and written to; nothing is
        copied. AlreadyExists, DiskFull."""
        self._check_free(names)
        client = self.server()
        with moment_of(self.attachments, client, clone):
            client.ask(Fork(clone, names))

    def rewind(self, clone: str, name: str) -> str:
        """Puts a clone that nobody uses on the version `name`, and forgets what was written to it; returns the version's
        export name by digest. NotFound, Untrusted."""
        return self.server().ask(Rewind(clone, name)).export

    def rm(self, clone: str) -> None:
        """Removes a clone that nobody uses, with all that was written to it; NotFound."""
        note = self.server().ask(RemoveClone(clone)).note
        if note:
            _log.warning("%s: %s", clone, note)

    def _check_free(self, names: Sequence[str]) -> None:
        """Raises AlreadyExists where a container has one of the names: `rm` must know which is meant."""
        for name in names:
            if folders.is_taken(runner.runs_of(self.state), name):
                raise AlreadyExists(
                    f"there is a container {name}, and `rm` must know which is meant: choose another name"
                )

    def _clone(self, usage: "CloneUsage", origin_now: str | None, moved: int) -> Clone:
        from blockmap.server.clones import clone_folder, holder_of

        record = usage.record
        return Clone(
            name=record.name,
            store=record.store,
            origin=record.origin,
            base=record.base,
            size=record.size,
            created=record.created,
            written_bytes=usage.written,
            unpublished=usage.unpublished,
            conflict=usage.conflict,
            in_use_by=holder_of(clone_folder(self.state, record.id)),
            origin_now=origin_now,
            has_origin_moved=origin_now not in (None, record.base) and moved >= record.created,
        )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
