"""What is done with a server's exports on this host: attach, detach, run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from blockmap.api.devices import attach
from blockmap.api.server import find_server
from blockmap.control.client import Client
from blockmap.control.messages import Hydrate, Stands
from blockmap.errors import AlreadyExists, BlockmapError
from blockmap.host import followers, tools
from blockmap.host.attachments import Attachments
from blockmap.host.devices.kinds import HostDevices
from blockmap.host.manager.client import Devices
from blockmap.host.run import runner
from blockmap.host.run.options import RunOptions
from blockmap.local.paths import default_socket, default_state

if TYPE_CHECKING:
    from blockmap.api.detached import DetachedRun

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attachment:
    """Something that is attached at a directory, or as a device."""

    directory: str
    """The device's own path where it is not mounted."""
    name: str
    """The name as it was asked for."""
    export: str
    """The export that is mounted: an image by its digest, or a clone."""
    device: str
    kind: str
    """How the device was made: nbd, which is the kernel's, or nbdfuse."""
    is_followed: bool
    """True if the newest version is mounted in its place whenever the name has moved."""
    newest: str | None
    """What the name stands for now, by its digest; the export where it is unknown, None where it stands for nothing that can be
    opened here."""

    @property
    def has_moved(self) -> bool:
        """Returns True if the name stands for something else than what is mounted."""
        return self.newest != self.export.partition("+")[0]


class Host:
    """This host, with the server of one store, and what is attached; only `run` needs the main thread."""

    def __init__(
        self,
        url: str | None = None,
        *,
        cache: Path | str | None = None,
        socket: Path | str | None = None,
        state: Path | str | None = None,
        trust: Sequence[str] = (),
        sign: Path | str | None = None,
    ) -> None:
        """`url` is the store's: a directory, s3://BUCKET/PREFIX, and so on; without it, that of the server that answers.

        `cache`, `socket` and `state` are where this host keeps things, by default where the commands do; `socket` may be
        HOST:PORT of a server on another host, which can be attached from. `trust` has keys,
        or files of keys, of which one must have signed what is opened; `sign` is the file of the private key that signs what
        `tag` and `untag` write. Nothing is asked for before a method needs it.
        """
        self._url = url
        self._cache = _path(cache)
        self._socket = _path(socket)
        self._trust = tuple(trust)
        self._sign = _path(sign)
        self.state = Path(state or default_state())
        """The folder for attachments and clones, and for what containers write."""

    def server(self) -> Client:
        """Returns the server, which is started where none answers, and ends a minute after its last use; HostError,
        UsageError, StoreError."""
        return find_server(self._url, self._cache, self._socket, self._trust)

    @property
    def devices(self) -> Devices:
        """Returns what attaches on this host."""
        return Devices(self.state)

    @cached_property
    def attachments(self) -> Attachments:
        """Returns what is attached on this host."""
        return Attachments(self.state, HostDevices(self.state), _log.warning)

    def attached(self) -> list[Attachment]:
        """Returns what is attached, by directory; a server that does not run is not started for it. HostError."""
        there = self.attachments.list()
        client = self._client()
        images = [each for each in there if "@sha256:" in each.export and each.socket == str(client.nbd_socket)]
        stand = self._stand(client, sorted({each.name for each in images}))
        newest = {each.directory: stand[each.name][0] for each in images if each.name in stand}
        return [
            Attachment(
                each.directory,
                each.name,
                each.export,
                each.device,
                each.kind,
                followers.is_followed(self.state, each.directory),
                newest.get(each.directory, each.export.partition("+")[0]),
            )
            for each in there
        ]

    def _client(self) -> Client:
        """Returns the server, which need not run."""
        return Client((self._socket or default_socket()).absolute())

    @staticmethod
    def _stand(client: Client, names: Sequence[str]) -> dict[str, tuple[str | None, int]]:
        """Returns what names stand for now, and since when, as `Stands` has it; nothing where no server says that."""
        try:
            answer = client.ask(Stands(names)) if names else None
        except BlockmapError as error:
            _log.info("what names stand for now is not known: %s", error)
            return {}
        return {} if answer is None else dict(zip(names, zip(answer.exports, answer.times, strict=True), strict=True))

    def attach(self, name: str, directory: Path | str, *, hydrate: bool | None = None, follow: bool = False) -> str:
        """Mounts an image read-only at a directory, or a clone writable; returns the export that is there, an image's by its
        digest.

        With a label, as in `redis:7+default`, a program is about to start from it: what that reads is learnt for all hosts.
        With `hydrate`, the rest is brought as well, after what the start reads; with False, nothing but what is read, or
        known to be. With `follow`, a process stays that mounts the newest version in its place whenever the name has moved.
        Needs root. HostError, UsageError, NotFound, Untrusted, StoreError.
        """
        answer = attach(
            self.state, name, Path(directory), store=self._url, cache=self._cache, socket=self._socket, trust=self._trust,
            hydrate=hydrate, follow=follow,
        )  # fmt: skip
        for note in answer.notes:
            _log.warning(note)
        return answer.export

    def attach_device(self, name: str) -> tuple[str, str]:
        """Makes a device of an image or a clone, for whoever mounts it or reads it as it is; returns the export, an image's by
        its digest, and the device's path.

        Needs root. HostError, UsageError, NotFound, Untrusted, StoreError.
        """
        answer = attach(
            self.state, name, None, store=self._url, cache=self._cache, socket=self._socket, trust=self._trust,
            hydrate=None, follow=False,
        )  # fmt: skip
        return answer.export, answer.device

    def detach(self, directory: Path | str) -> None:
        """Unmounts what is attached at a directory, or takes apart what is attached as a device; UsageError, HostError."""
        for note in self.devices.detach(Path(directory)):
            _log.warning(note)

    def run(
        self,
        name: str,
        command: Sequence[str] = (),
        options: RunOptions | None = None,
        *,
        clone: bool = False,
        hydrate: bool | None = None,
        terminal: bool = False,
        container: str | None = None,
    ) -> int:
        """Runs the program of an image in a container, with this process's standard input and output.

        `command` takes the place of the image's Cmd, and `options` say what else differs from the image. With `clone`, `name` is
        one: the program runs on it, and what it writes stays there. The container is called `container`, or after the image.
        Returns the program's exit status, 128 + n where signal n ended it, 127 or 126 where it is absent or cannot be executed.
        Signals are passed on to it, so only the main thread can call this. Needs root.
        HostError, ImageError, UsageError, NotFound, AlreadyExists, Untrusted, StoreError.
        """
        client, options = self._ready_to_run(name, options, container, hydrate)
        program = runner.Program(name, list(command), options, terminal, clone)
        return runner.run(client, self.devices, self.state, program, name=container)

    def start(self, wanted: "DetachedRun", *, hydrate: bool | None = None, container: str | None = None) -> str:
        """Starts a container that goes on when this process has ended, and returns its name once its program runs, and is ready
        if it is to say so; arguments and errors as for `run`, and CannotStart where there is no such program to run.

        HostError where it ended before it was ready, or is not ready in time; then it goes on.
        """
        client, _ = self._ready_to_run(wanted.image, wanted.options, container, hydrate)
        from blockmap.api.detached import start  # imported here: what waits for its program does without

        return start(client, self.devices, self.state, wanted, container)

    def _ready_to_run(
        self, name: str, options: RunOptions | None, container: str | None, hydrate: bool | None
    ) -> tuple[Client, RunOptions]:
        tools.need_root("run")
        options = options or RunOptions()
        if container is not None and has_clone(self.state, container):
            raise AlreadyExists(f"there is a clone {container}, and `rm` must know which is meant: choose another name")
        client = self.server()
        if hydrate is not None:
            client.ask(Hydrate(name, hydrate))
        for source in runner.make_sources(options):
            _log.warning("%s was not there, and is made", source)
        return client, options


def has_clone(state: Path, name: str) -> bool:
    """Returns True if a clone of this host has a name."""
    if not (state / "clones.db").exists():
        return False
    from blockmap.volume.clone_table import read_clones  # imported here: few containers are given a name

    return any(each.record.name == name for each in read_clones(state))


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)
