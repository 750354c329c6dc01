"""Which nbdkit there is, and what its Python sees."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.errors import HostError
from blockmap.host.serve import nbdkit

SCRIPT = """
import json, sys
import numpy, xxhash, zstandard, isal, ssl
import blockmap.server.server, nbdplugin.control, nbdplugin.sockets, nbdplugin.threads
import nbdkit

API_VERSION = 2
found = {"prefix": sys.prefix, "modules": sorted(sys.modules), "file": blockmap.__file__, "path": sys.path}
open(%r, "w").write(json.dumps(found))
def open(readonly): return 1
def get_size(h): return 0
def pread(h, buf, offset, flags): pass
"""


def test_the_packages_import_inside_nbdkit(need: Callable[..., None], tmp_path: Path) -> None:
    need("nbdkit")
    script, answer = tmp_path / "script.py", tmp_path / "answer"
    script.write_text(SCRIPT % str(answer))
    done = subprocess.run(
        ["nbdkit", "python", str(script), "--dump-plugin"],
        env=nbdkit.environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(answer.read_text())
    assert found["prefix"] == sys.prefix
    import blockmap

    assert found["file"] == blockmap.__file__


ENGINES = ("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AZURE_STORAGE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS")
NETWORK = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE")


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in (
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONPATH",
        "LISTEN_FDS",
        "LD_PRELOAD",
        "XAWS_",
        "PATH",
        "BLOCKMAP_STORE",
    ):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert nbdkit.environment() == {
        "TZ": "Europe/Berlin",
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "PYTHONNOUSERSITE": "1",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "67108864",
        "OPENBLAS_NUM_THREADS": "1",
    }


def test_an_engine_finds_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", *ENGINES, *NETWORK):
        monkeypatch.setenv(name, f"of {name}")
    made = nbdkit.environment()
    assert {name: made[name] for name in ("HOME", *ENGINES, *NETWORK)} == {
        name: f"of {name}" for name in ("HOME", *ENGINES, *NETWORK)
    }


def fake(bin: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (bin / "nbdkit").write_text(f"#!/bin/sh\n{script}\n")
    (bin / "nbdkit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, expected in (("nbdkit 1.32.5", (1, 32)), ("nbdkit 1.42.3 (debian)", (1, 42)), ("nbdkit 2.0", (2, 0))):
        fake(tmp_path, monkeypatch, f"echo '{said}'")
        assert nbdkit.version() == expected
    fake(tmp_path, monkeypatch, "echo none")
    with pytest.raises(HostError, match="is not understood"):
        nbdkit.version()


def test_another_python_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor = sys.version_info[:2]
    fake(tmp_path, monkeypatch, f"echo python_version={major}.{minor}.9")
    nbdkit.check_python()
    fake(tmp_path, monkeypatch, "echo python_version=3.2.1")
    with pytest.raises(HostError, match=r"nbdkit's Python is 3\.2.*/usr/bin/python3 -m venv"):
        nbdkit.check_python()
    fake(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(HostError, match="apt-get install nbdkit-plugin-python"):
        nbdkit.check_python()
