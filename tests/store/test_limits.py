"""Objects of any size, which whoever reads them refuses by name, in little memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from blockmap.errors import FormatError
from blockmap.format import catalogue, entry, hint, keys, pack_log, record
from blockmap.format.digest import Digest
from blockmap.store import limits
from blockmap.store.directory import DirectoryStore
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.opening import create_store
from tests.store import servers

HUGE_BYTES = 2 << 30
ENTRY = keys.entry("a", "1", 1)

READ = """
import resource, sys
from blockmap.errors import BlockmapError
from blockmap.format import digest, keys
from blockmap.store import opening, names, profiles, repository, resolver
from blockmap.format.refs import parse_reference
url = sys.argv[1]
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
store = opening.reach(url)
reader = names.NameReader(store)
some = digest.Digest(bytes(32))
for call in (
    lambda: opening.open_store(url),
    lambda: reader.newest("a", "1"),
    lambda: reader.told(),
    lambda: repository.Repository(store).version(some),
    lambda: repository.Repository(store).file_map(some),
    lambda: resolver.by_digest(repository.Repository(store), parse_reference("a@sha256:" + "00" * 32), some),
    lambda: profiles.ProfileReader(store).get("a", "b", 1),
):
    try:
        print("read:", call())
    except BlockmapError as error:
        print("refused:", error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
"""Reads of each kind, which say how they ended."""


@pytest.fixture
def huge(tmp_path: Path) -> str:
    """A store whose objects are all too long, as a writer or what lies under it can make them."""
    root = tmp_path / "served"
    some = Digest(bytes(32))
    for key in (
        keys.FORMAT,
        keys.CATALOGUE,
        ENTRY,
        keys.name_hint("a", "1"),
        keys.version(some, 1),
        keys.filemap(some, 1),
        keys.oci(some, 1),
        keys.profile("a", "b", 1),
    ):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        with (root / key).open("wb") as file:
            file.truncate(HUGE_BYTES)
    return str(root)


@pytest.fixture
def reach(request: pytest.FixtureRequest, need: Callable[..., None], tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """reach(directory) gives the URL by which a store is read: a directory, or a web server over it."""
    with ExitStack() as stack:

        def start(directory: str) -> str:
            if request.param == "directory":
                return directory
            need("nginx")
            (tmp_path / "nginx").mkdir()
            return stack.enter_context(servers.nginx(tmp_path / "nginx", Path(directory)))

        yield start


@pytest.mark.parametrize("reach", ["directory", "web"], indirect=True)
def test_what_is_too_long_is_refused_by_name_in_little_memory(huge: str, reach: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ, reach(huge)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *lines, peak_kb = done.stdout.splitlines()
    assert len(lines) == 7
    for line in lines:
        assert "2,147,483,648 bytes where at most" in line
    assert int(peak_kb) < 100 << 10


@pytest.mark.parametrize("reach", ["directory", "web"], indirect=True)
def test_a_hint_or_a_catalogue_that_is_too_long_is_advice_that_is_not_taken(
    reach: Callable[[str], str], tmp_path: Path
) -> None:
    root = tmp_path / "served"
    create_store(str(root))
    log = NameLog(DirectoryStore(root))
    made = log.set(NameTarget("a", "1"), EntryDraft(Digest(bytes(32)), 1))
    assert made is not None
    for key in (keys.CATALOGUE, keys.name_hint("a", "1")):
        (root / key).unlink()
        with (root / key).open("wb") as file:
            file.truncate(HUGE_BYTES)
    script = (
        "import resource, sys\n"
        "from blockmap.store import names, opening\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "print(names.NameReader(opening.open_store(sys.argv[1])[0]).newest('a', '1').nonce)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, reach(str(root))], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == made.nonce, done.stderr
    again = log.set(NameTarget("a", "1"), EntryDraft(Digest(bytes(32)), 2))
    assert again is not None
    assert log.hint("a", "1") is not None, "it is mended by who moves the name"


def test_limits_are_those_of_the_formats() -> None:
    for most, decode in (
        (limits.ENTRY, lambda data: entry.decode(data, ENTRY)),
        (limits.HINT, lambda data: hint.decode(data, "a", "1")),
        (limits.CATALOGUE, catalogue.decode),
        (limits.VERSION, record.unseal),
        (limits.PACK_LOG, lambda data: pack_log.decode_moved(data, Digest(bytes(32)))),
    ):
        with pytest.raises(FormatError, match="too long"):
            decode(bytes(most + 1))
