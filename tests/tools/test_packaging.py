"""What the Debian package has beside the program: units, manual pages, what attaches at boot."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.cli.exit_codes import EXIT_CODES
from blockmap.cli.main import program
from blockmap.local.settings_file import KEYS, Settings

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGING = CHECKOUT / "tools" / "packaging"
UNITS = sorted(path.name for path in (PACKAGING / "systemd").iterdir())


def test_the_units_are_right(need: Callable[..., None], tmp_path: Path) -> None:
    need("systemd-analyze")
    (tmp_path / "units").mkdir()
    for name in UNITS:
        text = (PACKAGING / "systemd" / name).read_text()
        text = text.replace("/usr/bin/blockmap", "/bin/true").replace("/usr/lib/blockmap/attach-listed", "/bin/true")
        (tmp_path / "units" / name).write_text(text)
    assert UNITS == ["blockmap-attach@.service", "blockmap-devices.service", "blockmap.service"]
    names = [name.replace("@", "@srv-redis") for name in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", *(str(tmp_path / "units" / name) for name in names)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}/units:"},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual")
    subprocess.run([sys.executable, "-B", CHECKOUT / "tools/manual.py", folder], check=True)
    return folder


def test_each_command_has_a_page_and_troff_finds_nothing_to_complain_of(
    manual: Path, need: Callable[..., None]
) -> None:
    need("mandoc")
    names = {path.name for path in manual.rglob("*.?")}
    commands = program.list_commands(None)  # type: ignore[arg-type]
    assert {f"blockmap-{name}.1" for name in commands} <= names
    assert {"blockmap.1", "blockmap.toml.5", "blockmaptab.5", "blockmap-nbdkit-plugin.1"} <= names
    pages = sorted(map(str, manual.rglob("*.?")))
    done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", *pages], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def shown(page: Path) -> str:
    done = subprocess.run(["mandoc", "-Tascii", "-Owidth=400", page], capture_output=True, text=True, check=True)
    return " ".join("".join(after for after in _without_overstrikes(done.stdout)).split())


def _without_overstrikes(text: str) -> list[str]:
    out: list[str] = []
    for each in text:
        if each == "\b":
            out.pop()
        else:
            out.append(each)
    return out


def test_pages_say_what_help_says(manual: Path, need: Callable[..., None]) -> None:
    need("mandoc")
    serve = shown(manual / "man1/blockmap-serve.1")
    assert "blockmap serve [OPTIONS]" in serve
    assert "--cache-size BYTES Of the cache; 20 GB or a quarter of the free disk by default." in serve
    key = shown(manual / "man1/blockmap-key.1")
    assert "blockmap key create [OPTIONS] FILE" in key
    settings = shown(manual / "man5/blockmap.toml.5")
    assert all(f"{name} {key.meaning[:1].upper()}{key.meaning[1:]} (" in settings for name, key in KEYS.items())
    main = shown(manual / "man1/blockmap.1")
    assert "blockmap-import(1)" in main
    assert all(f"{code} {meaning[:1].upper()}{meaning[1:]}." in main for code, meaning in EXIT_CODES)
    assert "@" not in (manual / "man1/blockmap.1").read_text().replace("@{", "").replace("@sha256", "")


def test_the_file_of_settings_that_is_installed_names_the_group_and_its_examples_are_right(tmp_path: Path) -> None:
    path = tmp_path / "blockmap.toml"
    shutil.copy(PACKAGING / "blockmap.toml", path)
    path.chmod(0o640)
    (file,) = Settings({}, (path,)).files
    assert (file.values, file.variables) == ({"group": "blockmap"}, {})
    examples = [
        line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#") and " = " in line
    ]
    plain, variables = ([line for line in examples if line.startswith("AWS_") is is_one] for is_one in (False, True))
    path.write_text("\n".join([*plain, "[environment]", *variables]))
    (file,) = Settings({}, (path,)).files
    assert len(file.values) + len(file.variables) == len(examples) >= 8


TAB = """
# a comment
redis:7   /srv/redis    label=default,hydrate
  mine /srv/my-own
app:1  /srv/later  follow,noauto
"""


def with_tab(script: str, tmp_path: Path) -> Path:
    """A copy of a script that reads another file, and starts another program."""
    (tmp_path / "blockmaptab").write_text(TAB)
    (tmp_path / "blockmap").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "blockmap").chmod(0o755)
    text = (PACKAGING / script).read_text()
    text = text.replace("/etc/blockmaptab", f"{tmp_path}/blockmaptab").replace(
        "/usr/bin/blockmap", f"{tmp_path}/blockmap"
    )
    copy = tmp_path / script
    copy.write_text(text)
    copy.chmod(0o755)
    return copy


def test_each_line_but_noauto_is_wanted_at_boot(need: Callable[..., None], tmp_path: Path) -> None:
    need("systemd-escape")
    out = tmp_path / "out"
    subprocess.run([with_tab("blockmap-generator", tmp_path), out, out, out], check=True)
    links = sorted((out / "remote-fs.target.wants").iterdir())
    assert [link.name for link in links] == [
        "blockmap-attach@srv-my\\x2down.service",
        "blockmap-attach@srv-redis.service",
    ]
    assert os.readlink(links[0]) == "/usr/lib/systemd/system/blockmap-attach@.service"


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("/srv/redis", ["attach", "--label=default", "--hydrate", "redis:7", "/srv/redis"]),
        ("/srv/my-own", ["attach", "mine", "/srv/my-own"]),
        ("/srv/later", ["attach", "--follow", "app:1", "/srv/later"]),
    ],
)
def test_what_is_listed_is_attached_with_its_options(directory: str, words: list[str], tmp_path: Path) -> None:
    done = subprocess.run([with_tab("attach-listed", tmp_path), directory], capture_output=True, text=True, check=True)
    assert done.stdout.split() == words


def test_what_is_not_listed_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run([with_tab("attach-listed", tmp_path), "/srv"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "has nothing for /srv" in done.stderr
