"""Looks after one container that runs detached. A process of its own does it:

    python -m blockmap.api.monitor FOLDER LOCK REPORT SOCKET STATE

LOCK and REPORT are descriptors: of the lock of the container's folder, and of the pipe to whoever waits for the start. What is
reported are lines of JSON with an `event`: running, ready, late, ended, cannot, failed.
"""

import contextlib
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path

from blockmap.api.detached import DetachedRun, read_job
from blockmap.api.host import Host
from blockmap.errors import BlockmapError
from blockmap.host.run import folders, runc, runner
from blockmap.host.run.folders import ContainerFolder
from blockmap.host.run.readiness import parse_readiness
from blockmap.host.run.streams import detached_streams
from blockmap.host.run.watch import ReadinessWatch

_SAID_BYTES = 500
"""Bytes of a program's output that are passed on where it ended too early."""


class _Reporter:
    """Tells whoever waits for the start, if anybody still does."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def tell(self, event: dict[str, object]) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, (json.dumps(event) + "\n").encode())

    def close(self) -> None:
        """Says that there is nothing more to wait for."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _monitor(folder: ContainerFolder, reporter: _Reporter, nbd_socket: Path, state: Path, job: DetachedRun) -> None:
    host = Host(socket=nbd_socket, state=state)
    client, log = host.server(), folder.path / folders.LOG
    began = folders.about(folder.path)["created"]

    def on_ready(is_ready: bool) -> None:
        if is_ready:
            folder.write(folders.READY, {"seconds": time.time() - began})
        reporter.tell({"event": "ready" if is_ready else "late"})
        reporter.close()

    watch = commits = None
    if job.ready is not None:
        watch = ReadinessWatch(client, parse_readiness(job.ready), log, job.ready_seconds, on_ready)
    if job.versions is not None:
        from blockmap.api.clones import CloneHost  # imported here: other runs do without

        commits = CloneHost(socket=nbd_socket, state=state).regular_commits(job.image, job.versions)

    def on_running(pid: int) -> None:
        reporter.tell({"event": "running"})
        if watch is None:
            reporter.close()
        else:
            watch.begin(pid)

    program = runner.Program(job.image, list(job.command), job.options, job.terminal, job.clone)
    end = _End(folder.path)
    observers = [each for each in (watch, commits, end) if each is not None]
    with detached_streams(log, terminal=job.terminal, interactive=job.interactive) as streams:
        place = runner.Detached(folder, streams, on_running, job.keep)
        runner.run(client, host.devices, host.state, program, observers, detached=place)
    reporter.tell(end.event)
    reporter.close()
    if commits is not None:
        commits.finish()


class _End:
    """An observer of a run: notes how it ended, while what it said is there."""

    def __init__(self, work: Path) -> None:
        self.event: dict[str, object] = {}
        self._work = work

    def starts(self, export: str) -> None:
        pass

    def ended(self, code: int | None) -> None:
        reason = runc.failure(self._work)
        if reason is not None:
            self.event = {"event": "cannot", "status": code, "message": reason}
        else:
            self.event = {"event": "ended", "status": code, "said": _tail(self._work / folders.LOG)}


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), open(log, "rb") as said:
        said.seek(max(os.fstat(said.fileno()).st_size - _SAID_BYTES, 0))
        return said.read().decode(errors="replace")
    return ""


def _main(path: str, lock: str, report: str, nbd_socket: str, state: str) -> None:
    for fd in (lock, report):
        os.set_inheritable(int(fd), False)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    reporter = _Reporter(int(report))
    folder = folders.adopt(Path(path), int(lock))
    try:
        job = read_job(folders.about(folder.path))
        _monitor(folder, reporter, Path(nbd_socket), Path(state), job)
    except BlockmapError as error:
        logging.error("%s", error)
        reporter.tell(_failed(type(error).__name__, str(error)))
    except KeyboardInterrupt:
        reporter.tell(_failed("HostError", f"{folder.name} was told to end before it ran"))
    except BaseException:
        said = traceback.format_exc()
        logging.error("%s", said)
        reporter.tell(_failed("HostError", f"the monitor of {folder.name} failed: {said}"))


def _failed(kind: str, message: str) -> dict[str, object]:
    return {"event": "failed", "kind": kind, "message": message}


if __name__ == "__main__":
    _main(*sys.argv[1:])
