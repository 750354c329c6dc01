"""Checks of the programs that blockmap runs."""

import re
import subprocess
import tempfile

from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.host.devices import mounts
from blockmap.host.doctor.finding import Check, Examined, Finding, fault, ok, skipped, warning
from blockmap.host.serve import nbdkit

_LOAD_SECONDS = 60.0


def _nbdkit(subject: Examined) -> Finding:
    lacking = tools.missing(["nbdkit"])
    if lacking:
        return fault("nbdkit is not installed", f"apt-get install {' '.join(lacking)}")
    major, minor = nbdkit.version()
    if (major, minor) < nbdkit.ABORTS_BELOW:
        return ok(
            f"version {major}.{minor}, which ends when a client hangs up badly, and is started again (mended in 1.34)"
        )
    return ok(f"version {major}.{minor}")


def _python(subject: Examined) -> Finding:
    if tools.missing(["nbdkit"]):
        return skipped("nbdkit is not installed")
    try:
        nbdkit.check_python()
    except HostError as error:
        said, _, advice = str(error).partition(": ")
        return fault(said, advice)
    return ok(f"its Python plugin has {nbdkit.own_python()}, as blockmap does")


def _packages(subject: Examined) -> Finding:
    """Has nbdkit load the plugin, and say what it is."""
    if tools.missing(["nbdkit"]):
        return skipped("nbdkit is not installed")
    command = [tools.find("nbdkit"), "python", str(nbdkit.plugin_script()), "--dump-plugin"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=nbdkit.environment(), cwd=tempfile.gettempdir(),
            timeout=_LOAD_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return fault(f"nbdkit does not load blockmap within {_LOAD_SECONDS:.0f} s", "see what the disk does")
    if done.returncode == 0:
        return ok("nbdkit loads blockmap and all that it needs")
    said = [line.strip() for line in done.stderr.splitlines() if re.search(r"\w+(Error|Exception)\b|error:", line)]
    return fault(
        f"nbdkit does not load blockmap: {said[-1] if said else f'exit status {done.returncode}'}",
        "install blockmap again, into a virtual environment made with /usr/bin/python3 -m venv",
    )


def _runc(subject: Examined) -> Finding:
    if tools.missing(["runc"]):
        return warning("runc is not installed: `blockmap run` needs it", "apt-get install runc")
    if not mounts.cgroups():
        return warning(
            "no control groups are mounted: `blockmap run` needs them", "mount -t cgroup2 none /sys/fs/cgroup"
        )
    return ok(tools.run("runc", "--version").partition("\n")[0])


def _skopeo(subject: Examined) -> Finding:
    if tools.missing(["skopeo"]):
        return warning(
            "skopeo is not installed: import and export need it for docker:// and docker-daemon:",
            "apt-get install skopeo",
        )
    return ok(tools.run("skopeo", "--version").strip())


CHECKS = (
    Check("nbdkit", _nbdkit),
    Check("nbdkit-python", _python),
    Check("packages", _packages),
    Check("runc", _runc),
    Check("skopeo", _skopeo),
)
