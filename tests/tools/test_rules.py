"""The rules of the project: names of classes, the page of helpers, and tests that skip or leave something behind."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests

TESTS = Path(__file__).resolve().parents[1]


def product() -> Iterator[tuple[Path, ast.Module]]:
    """Yields the modules of the product, parsed."""
    for folder in ("blockmap", "nbdplugin"):
        for path in sorted((TESTS.parent / folder).rglob("*.py")):
            yield path.relative_to(TESTS.parent), ast.parse(path.read_bytes())


def test_no_class_name_stands_twice() -> None:
    nodes = (node for _, module in product() for node in ast.walk(module))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def test_no_docstring_begins_with_a_fragment() -> None:
    """Docstrings of modules, classes, functions and attributes are understood without the line above them."""
    found = []
    for path, module in product():
        for node in ast.walk(module):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                words = str(node.value.value).split(maxsplit=1)
                if words and words[0] in ("Of", "That", "Those"):
                    found.append(f"{path}:{node.lineno}: {words[0]}")
    assert not found, "\n".join(found)


def test_docstrings_of_predicates_say_what_they_return() -> None:
    """A function that returns bool "returns True if ..."."""
    found = [
        f"{path}:{node.lineno}: {node.name}"
        for path, module in product()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "bool"
        if (ast.get_docstring(node) or "").startswith("Whether")
    ]
    assert not found, "\n".join(found)


def test_the_page_of_helpers_names_each_of_them() -> None:
    helpers = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py") if not path.name.startswith("test_")}
    helpers = {path for path in helpers if Path(path).name not in ("__init__.py", "conftest.py")}
    listed = {word for word in str(tests.__doc__).split() if word.endswith(".py")} - {"conftest.py"}
    assert listed == helpers


def session(folder: Path, body: str, *arguments: str, require: str = "") -> subprocess.CompletedProcess[str]:
    """Runs pytest on a test module of its own, with this checkout's conftest."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    long: x\n    guest: x\n    root: x\n")
    (folder / "test_it.py").write_text(f"import os, subprocess, pytest\n{body}")
    environment = {**os.environ, "BLOCKMAP_REQUIRE": require, "PYTEST_ADDOPTS": "", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/base", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


SKIPS = """
def test_runs(): pass
def test_skips(need): need("no-such-nbdkit")
"""


@pytest.mark.parametrize(("require", "status"), [("", 0), ("guest", 1), ("nbdkit", 1), ("fio", 0)])
def test_a_required_skip_is_a_failure(tmp_path: Path, require: str, status: int) -> None:
    body = SKIPS + "@pytest.mark.guest\ndef test_in_guest(): pytest.skip('no qemu')\n"
    assert session(tmp_path, body, require=require).returncode == status


def test_a_required_module_must_not_skip_itself(tmp_path: Path) -> None:
    body = "pytest.skip('needs nbdkit', allow_module_level=True)\n"
    assert "must not be skipped" in session(tmp_path, body, require="nbdkit").stdout


def test_no_test_of_the_guest_at_all_is_a_failure(tmp_path: Path) -> None:
    assert session(tmp_path, "def test_it(): pass", require="guest").returncode == 1
    passing = "@pytest.mark.guest\ndef test_it(): pass"
    assert session(tmp_path, passing, require="guest").returncode == 0


def test_long_tests_run_when_asked_for(tmp_path: Path) -> None:
    body = "def test_it(): pass\n@pytest.mark.long\ndef test_long(): pass\n"
    assert "1 passed, 1 deselected" in session(tmp_path, body).stdout
    assert "2 passed" in session(tmp_path, body, "--long").stdout
    assert "1 passed, 1 deselected" in session(tmp_path, body, "-m", "long").stdout


def test_a_process_left_behind_fails_the_session_and_is_ended(tmp_path: Path) -> None:
    body = """
def test_it(tmp_path):
    left = subprocess.Popen(["sh", "-c", "sleep 300 & echo $! && exit"], stdout=subprocess.PIPE, text=True)
    (tmp_path / "pid").write_text(left.stdout.readline())
    left.wait()
    left.stdout.close()
"""
    done = session(tmp_path, body)
    assert done.returncode == 1
    assert "sleep 300" in done.stdout
    (pid,) = [int(path.read_text()) for path in tmp_path.rglob("pid")]
    line = Path(f"/proc/{pid}/cmdline")
    assert not line.exists() or not line.read_bytes()  # gone, or a zombie that nobody waited for


@pytest.mark.root
def test_a_mount_left_behind_fails_the_session_and_is_ended(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    done = session(
        tmp_path, "def test_it(tmp_path): subprocess.run(['mount', '-t', 'tmpfs', 'x', tmp_path], check=True)"
    )
    assert done.returncode == 1
    assert f"mount {tmp_path}/base" in done.stdout
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_the_walks_through_the_folders_name_modules_that_are_there() -> None:
    walks = (TESTS.parent / "blockmap/__init__.py").read_text()
    named = set(re.findall(r"\b([a-z0-9]+(?:\.[a-z0-9_]+)+)\b", walks)) - {"setup.cfg", "0.1.0"}
    missing = [
        name
        for name in named
        if not any((TESTS.parent / top / f"{name.replace('.', '/')}.py").exists() for top in ("blockmap", "."))
    ]
    assert len(named) > 25
    assert not missing
