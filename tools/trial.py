"""What tools/try does once all is set up."""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True

from toolbox import CHECKOUT, ToolError, end_with_parent, exit_on_sigterm, fail, run, stop  # noqa: E402

NAME = "try:latest"
SAMPLE_READY = "ready to accept connections"
SERVER_S = 30.0
READY_S = 120.0
LOOK_S = 10.0  # how long a program is watched when nothing says what it prints once it is ready
BLOCKMAP = str(CHECKOUT / ".venv" / "bin" / "blockmap")


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def say(step: str, text: str) -> None:
    print(f"{step:<8} {text}", flush=True)


class Trial:
    """Store, cache, server and attachments, all in one temporary folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.log = work / "server.log"
        (work / "run").mkdir()
        self.environment = {
            **os.environ,
            "BLOCKMAP_STORE": str(work / "store"),
            "BLOCKMAP_CACHE": str(work / "cache"),
            "BLOCKMAP_SOCKET": str(work / "run" / "nbd.sock"),
            "BLOCKMAP_STATE": str(work / "state"),
        }

    def blockmap(self, *arguments: str) -> str:
        return run([BLOCKMAP, *arguments], env=self.environment)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.blockmap("status", "--json"))
        return found

    def fetched(self) -> tuple[int, int]:
        """Bytes and requests that the server has fetched from the store."""
        fetch = self.status()["fetch"]
        return fetch["bytes"], fetch["requests"]

    def start(self, *arguments: str, output: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BLOCKMAP, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )

    @contextlib.contextmanager
    def server(self) -> Any:
        with self.log.open("w") as log:
            process = self.start("serve", output=log)
        try:
            deadline = time.monotonic() + SERVER_S
            while True:
                try:
                    self.status()
                    break
                except ToolError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise ToolError(f"no server after {SERVER_S:g} s: {error}\n{self.log.read_text()}") from error
                    time.sleep(0.05)
            yield
        finally:
            stop(process, grace_s=30)

    def start_program(self, program: str | None, ready: str | None) -> tuple[str, float]:
        """Runs the image's program, or `program` in it, until it is ready; returns what it did, and after how many seconds."""
        began = time.monotonic()
        process = self.start("run", *(["--entrypoint", program] if program else []), NAME, output=subprocess.PIPE)
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        printed: list[str] = []
        limit = READY_S if ready else LOOK_S
        try:
            while (left := began + limit - time.monotonic()) > 0:
                try:
                    line = lines.get(timeout=left)
                except queue.Empty:
                    break
                seconds = time.monotonic() - began
                if line is None:
                    status = process.wait(limit)
                    if status or ready:
                        raise ToolError(f"the program ended with status {status}:\n{''.join(printed)}")
                    return "ended with status 0", seconds
                printed.append(line)
                if ready and ready.lower() in line.lower():
                    return repr(ready), seconds
            if ready:
                raise ToolError(f"did not print {ready!r} within {limit:g} s:\n{''.join(printed)}")
            return "still runs", limit
        finally:
            stop(process, grace_s=30)
            reader.join()


def pull(layout: str, work: Path) -> float:
    """Returns how many seconds it takes to copy an image from a layout, and to unpack it, as every engine does before a start."""
    began = time.monotonic()
    copy = ["skopeo", "copy", "--insecure-policy", "--quiet", "--dest-oci-accept-uncompressed-layers"]
    run([*copy, layout, f"oci:{work / 'pulled'}:latest"])
    run(["umoci", "raw", "unpack", "--image", f"{work / 'pulled'}:latest", work / "unpacked"])
    return time.monotonic() - began


def local_layout(source: str, work: Path) -> str:
    """Returns the source on this machine's disk: what a registry or an engine has is copied into a layout, once."""
    if not source.startswith(("docker://", "docker-daemon:")):
        return source
    say("image", f"{source}: downloading")
    began = time.monotonic()
    copy = ["skopeo", "copy", "--insecure-policy", "--dest-oci-accept-uncompressed-layers"]
    run([*copy, source, f"oci:{work / 'image'}:latest"])
    say("image", f"is here after {time.monotonic() - began:.1f} s")
    return f"oci:{work / 'image'}:latest"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/try", description="Imports, serves and starts an image.")
    parser.add_argument("source", nargs="?", help="default: a small image of Debian packages, made here")
    parser.add_argument("--ready", metavar="TEXT", help="what its program prints once it is ready")
    options = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="blockmap-try-") as folder:
        trial = Trial(Path(folder))
        sample = options.source is None
        source, ready = options.source, options.ready
        if sample:
            began = time.monotonic()
            say("image", "redis-server on Debian: made of packages, which takes half a minute at the first time")
            run([CHECKOUT / "tools" / "sample-image", trial.work / "image"])
            source, ready = f"oci:{trial.work / 'image'}:latest", ready or SAMPLE_READY
            say("image", f"is an OCI layout after {time.monotonic() - began:.0f} s")
        else:
            source = local_layout(source, trial.work)
        trial.blockmap("create")
        say("import", "reads the image, and stores what is not there yet")
        summary = json.loads(trial.blockmap("import", "--json", source, NAME))
        data = summary["data_bytes"]
        say(
            "import",
            f"{megabytes(data)} of data became {summary['chunks']:,} chunks, {megabytes(summary['stored_bytes'])} "
            f"stored, in {summary['seconds']:.1f} s",
        )
        with trial.server():
            say("serve", "nbdkit serves every image in the store; nothing is read yet")
            how, started_s = trial.start_program(None, ready)
            first, requests = trial.fetched()
            say("start", f"{how} after {started_s:.2f} s")
            say("read", f"{megabytes(first)} over {requests} requests, for an image of {megabytes(data)}: "
                        f"{100 * first / data:.0f} % came before the program was up")  # fmt: skip
            how, again_s = trial.start_program("/usr/local/bin/answer" if sample else None, "PONG" if sample else ready)
            second, _ = trial.fetched()
            say(
                "again",
                f"{how} after {again_s:.2f} s, with {megabytes(second - first)} more from the store: the rest was in the cache",
            )
        if not 0 < first < data:
            raise ToolError(f"{first} bytes were fetched for an image of {data}: this was no lazy start")
        if source.startswith(("oci:", "oci-archive:", "docker-archive:")):
            pulled_s = pull(source, trial.work)
            say("pull", f"the same image, copied and unpacked by skopeo and umoci from the same disk, takes {pulled_s:.2f} s "
                        "before its program can begin")  # fmt: skip
            if ready:
                say("so", f"blockmap had it ready after {started_s:.2f} s, {pulled_s / started_s:.1f} times as fast as it could "
                          f"have been unpacked, and read {100 * first / data:.0f} % of it")  # fmt: skip
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ToolError, OSError) as error:
        fail(error)
