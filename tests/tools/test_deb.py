"""The Debian package, and `pip install`, as a host's administrator meets them."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PROBE = """[Unit]
After=basic.target
[Service]
Type=oneshot
StandardOutput=file:/root/said
StandardError=file:/root/said
ExecStart=/root/booted.sh
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
"""


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_package_is_built_installed_used_and_removed(
    need_root: None, need: Callable[..., None], suite: str
) -> None:
    need("mmdebstrap")
    command = [CHECKOUT / "tools/debian13", "--suite", suite, "--fresh", "tests/tools/installed.sh"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "== passed" in done.stdout


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def root(need_root: None, need: Callable[..., None], tmp_path: Path) -> Iterator[Path]:
    """A root of this machine's release with systemd in it."""
    need("mmdebstrap", "systemd-nspawn")
    made = tmp_path / "root"
    program = (
        "import sys; from pathlib import Path; from toolbox import *\n"
        "options = [f'--aptopt={line}' for line in apt_acquire_options()]\n"
        "packages = '--include=ca-certificates,dbus,procps,systemd-sysv'\n"
        "mmdebstrap(['--quiet', '--variant=minbase', packages, *options, *sys.argv[1:3], *apt_sources(sys.argv[1])])"
    )
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    subprocess.run([sys.executable, "-Bc", program, suite, made], cwd=CHECKOUT / "tools", check=True)
    yield made
    shutil.rmtree(made)


@pytest.mark.long
@pytest.mark.root
def test_the_units_serve_and_attach_under_systemd(root: Path, sample_image: Path, tmp_path: Path) -> None:
    """In a container: nbdfuse and loop devices, as that has no nbd of the kernel."""
    run(CHECKOUT / "tools/deb", tmp_path)
    (package,) = tmp_path.glob("*.deb")
    shutil.copy(package, root / "root/blockmap.deb")
    shutil.copy(CHECKOUT / "tests/tools/booted.sh", root / "root/booted.sh")
    shutil.copytree(sample_image, root / "root/image")
    (root / "etc/systemd/system/probe.service").write_text(PROBE)
    prepare = """
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o APT::Install-Recommends=false install /root/blockmap.deb
        echo 'store = "/srv/blockmap"' >>/etc/blockmap.toml
        echo 'try:latest /srv/try label=default' >>/etc/blockmaptab
        mkdir /srv/try
        blockmap create && blockmap import oci:/root/image:latest try:latest
        systemctl enable probe
    """
    nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-D", root, "--resolv-conf=copy-host"]
    run(*nspawn, "sh", "-euc", prepare)
    devices = ["/dev/fuse", "/dev/loop-control", *map(str, Path("/dev").glob("loop[0-9]*"))]
    boot = [*nspawn, "--boot", "--capability=all", *(f"--bind={each}" for each in devices)]
    subprocess.run(boot, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=True)
    said = (root / "root/said").read_text()
    assert said.splitlines()[-1] == "== passed", said


@pytest.mark.long
def test_pip_installs_a_checkout(tmp_path: Path) -> None:
    """Into an environment of its own, where the plugin loads."""
    sources = tmp_path / "sources"  # a build leaves files beside them
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache")
    shutil.copytree(CHECKOUT, sources, ignore=ignored)
    run("/usr/bin/python3", "-m", "venv", tmp_path / "venv")
    scripts = tmp_path / "venv" / "bin"
    run(scripts / "pip", "install", "--quiet", sources)
    environment = {**os.environ, "PATH": f"{scripts}:/usr/bin:/bin"}
    found = subprocess.run(
        ["blockmap", "config"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    what, plugin = found.stdout.splitlines()[-1].split()
    assert what == "plugin"
    assert plugin.startswith(str(tmp_path))
    done = subprocess.run(
        ["nbdkit", "python", plugin, "--dump-plugin"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
