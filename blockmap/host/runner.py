"""`blockmap run`: attach, a scratch overlay, runc, and everything taken away again."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
from pathlib import Path
from types import FrameType

from blockmap.host import tools
from blockmap.host.attachments import Attachments
from blockmap.host.container import runtime_config
from blockmap.host.control import Client

_END_SECONDS = 10.0


def run(client: Client, attachments: Attachments, state: Path, name: str, command: list[str], terminal: bool) -> int:
    """Runs an image's program, or `command` in it, to its end; returns its exit status. HostError, ImageError."""
    tools.need_root("run")
    runc = tools.find("runc")
    export = str(client.request("resolve", export=name)["export"])
    config = str(client.request("config", export=export)["config"]).encode()
    runs = state / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        work = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=runs, prefix="run-", ignore_cleanup_errors=True))
        )
        lower, scratch, root = work / "image", work / "scratch", work / "root"
        for directory in (lower, scratch, root):
            directory.mkdir()
        attachments.attach(client.nbd_socket, export, name, lower)
        stack.callback(attachments.detach, lower)
        (scratch / "upper").mkdir()
        (scratch / "work").mkdir()
        (scratch / "upper").chmod(lower.stat().st_mode & 0o7777)
        options = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
        tools.run("mount", "-t", "overlay", "-o", options, "overlay", str(root))
        stack.callback(tools.run, "umount", str(root))
        identity = f"blockmap-{secrets.token_hex(6)}"
        bundle = runtime_config(config, command, root, identity[-12:], terminal)
        (work / "config.json").write_text(json.dumps(bundle))
        return _run_container(runc, work, identity)


def _run_container(runc: str, bundle: Path, identity: str) -> int:
    arguments = [runc, "--root", str(bundle / "runc"), "run", "--bundle", str(bundle), identity]
    process = subprocess.Popen(arguments)

    def forward(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)

    # runc passes them on to the program, which decides what they mean.
    old = {
        number: signal.signal(number, forward)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        code = process.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.kill()
            process.wait()
        subprocess.run(
            [runc, "--root", str(bundle / "runc"), "delete", "--force", identity], capture_output=True, check=False
        )
    return 128 - code if code < 0 else code


def is_terminal() -> bool:
    """Whether a person sits there."""
    return os.isatty(0) and os.isatty(1)
