"""What is done with containers of this host, whoever started them: listed, read, stopped, entered, forgotten."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blockmap.api.host import Host
from blockmap.errors import HostError, NotFound, UsageError
from blockmap.host import tools
from blockmap.host.run import containers, folders, runner
from blockmap.host.run.containers import Execution
from blockmap.host.run.folders import HostContainer
from blockmap.host.run.log_file import read_log


class ContainerHost(Host):
    """This host with its containers; no server is needed. Methods need root, and raise NotFound, UsageError and HostError."""

    def containers(self, *, ended: bool = False) -> list[HostContainer]:
        """Returns the containers that run, those started last first; with `ended`, also those that have ended and are kept."""
        tools.need_root("ps")
        return [each for each in folders.read_all(self._runs) if ended or each.state != "ended"]

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[bytes]:
        """Yields what a detached container has said, its last `tail` lines if that is given; with `follow`, until it has
        ended."""
        path = self._find(name, "logs")
        log = path / folders.LOG
        if not log.exists():
            raise UsageError(f"{name} does not run detached: what it says is where it was started")

        def goes_on() -> bool:
            found = folders.read(path)
            return found is not None and found.state != "ended"

        try:
            yield from read_log(log, tail, goes_on if follow else None)
        except OSError as error:
            raise HostError(f"cannot read {log}: {error.strerror}") from error

    def stop(self, name: str, *, seconds: float = 10.0) -> None:
        """Asks a container's program to end, with its image's StopSignal, and ends it by force after so many seconds; returns
        when nothing of it is left. One that has ended stays so."""
        containers.stop(self.devices, self._find(name, "stop"), seconds)

    def kill(self, name: str, signal: str = "KILL") -> None:
        """Sends a signal to a container's program."""
        path, number = self._find(name, "kill"), containers.parse_signal(signal)
        if folders.has_ended(path):
            raise UsageError(f"{name} does not run: see `blockmap ps -a`")
        containers.kill(self.devices, path, number)

    def execute(self, name: str, wanted: Execution) -> int:
        """Runs a program in a container, with this process's standard streams, and returns its status as `run` does. ImageError;
        only the main thread can call this."""
        return containers.execute(self._find(name, "exec"), wanted)

    def forget(self, name: str, *, force: bool = False) -> bool:
        """Removes a container that has ended, with its log; with `force`, one that runs is ended first. Returns False where no
        container has the name."""
        with suppress(NotFound):
            path = self._find(name, "rm")
            if force and not folders.has_ended(path):
                with suppress(FileNotFoundError):
                    containers.kill(self.devices, path, containers.parse_signal("KILL"))
            containers.remove(self.devices, path)
            return True
        return False

    @property
    def _runs(self) -> Path:
        return runner.runs_of(self.state)

    def _find(self, name: str, what: str) -> Path:
        tools.need_root(what)
        return folders.find(self._runs, name)
