"""A database in a clone is committed while it writes, and recovers in the version to a moment of the commit.

Run with -s: prints how fast it wrote, and the stall.
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serve.conftest import BLOCKMAP, Server, bare_server
from tests.waiting import free_ports, until

pytestmark = [pytest.mark.long, pytest.mark.root]

WRITERS = 4
ACCOUNTS = 1000
TOTAL = ACCOUNTS * 100
COMMITS = 3
SETUP = f"""
CREATE TABLE account (id int PRIMARY KEY, value int NOT NULL);
INSERT INTO account SELECT n, 100 FROM generate_series(0, {ACCOUNTS - 1}) n;
CREATE TABLE history (writer int NOT NULL, n int NOT NULL, PRIMARY KEY (writer, n));
"""


class Database:
    """A running postgres, by its port on loopback."""

    def __init__(self, port: int) -> None:
        self.psql = ["psql", "-X", "-A", "-t", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]

    def ask(self, statement: str) -> str:
        done = subprocess.run([*self.psql, "-v", "ON_ERROR_STOP=1"], input=statement, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def answers(self) -> bool:
        return subprocess.run([*self.psql, "-c", "SELECT 1"], capture_output=True).returncode == 0


class TransactionWriter:
    """Moves money between accounts, and notes the number of each transfer, as one transaction of one connection."""

    def __init__(self, database: Database, number: int) -> None:
        self.number = number
        self.asked = self.answered = 0
        self._ended = threading.Event()
        self._process = subprocess.Popen(
            database.psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._process.communicate()

    def _write(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        while not self._ended.is_set():
            n = self.asked = self.asked + 1
            one, other = (n * 7 + self.number) % ACCOUNTS, (n * 13 + self.number + 1) % ACCOUNTS
            stdin.write(
                f"BEGIN; UPDATE account SET value = value - 1 WHERE id = {min(one, other)}; "
                f"UPDATE account SET value = value + 1 WHERE id = {max(one, other)}; "
                f"INSERT INTO history VALUES ({self.number}, {n}); COMMIT;\n"
            )
            stdin.flush()
            while (said := stdout.readline().strip()) != "COMMIT":
                assert said in ("BEGIN", "UPDATE 1", "INSERT 0 1"), said
            self.answered = n


@contextmanager
def running(server: Server, clone: str) -> Iterator[Database]:
    """Runs the database on a clone."""
    (port,) = free_ports(1)
    log = server.where / f"{clone}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*BLOCKMAP, "run", "--clone", clone, "--", "-p", str(port)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=server.environment,
        )  # fmt: skip
    try:
        database = Database(port)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return database.answers()

        until(ready, lambda: log.read_text())
        yield database
    finally:
        process.terminate()
        process.wait(60)


def test_a_database_recovers_to_a_moment_of_the_commit(corpus: Path, where: Path, need: Callable[..., None]) -> None:
    need("nbdkit", "nbdfuse", "runc", "psql")
    with bare_server(where / "server") as server:
        server.run("import", f"oci:{corpus}/postgres:1", "db:1", "--quiet")
        server.start()
        server.run("clone", "db:1", "first")
        moments: list[list[tuple[int, int]]] = []
        with running(server, "first") as database:
            database.ask(SETUP)
            writers = [TransactionWriter(database, number) for number in range(WRITERS)]
            began = time.monotonic()
            try:
                until(lambda: all(each.answered for each in writers))
                for number in range(COMMITS):
                    before = [each.answered for each in writers]
                    done = json.loads(server.run("commit", "first", f"db:committed{number}", "--json").stdout)
                    moments.append(list(zip(before, [each.asked for each in writers], strict=True)))
                    print(f"stall {done['stall_seconds'] * 1e3:.1f} ms, published after {done['seconds'] * 1e3:.0f} ms")
                    assert done["stall_seconds"] > 0, "what `run --clone` has mounted is frozen"
            finally:
                for each in writers:
                    each.end()
            written = sum(each.answered for each in writers)
            print(f"{written / (time.monotonic() - began):.0f} transactions a second")
        for number, moment in enumerate(moments):
            server.run("clone", f"db:committed{number}", f"again{number}")
            with running(server, f"again{number}") as database:
                assert int(database.ask("SELECT sum(value) FROM account")) == TOTAL
                for writer, (least, most) in enumerate(moment):
                    own = database.ask(f"SELECT max(n), count(*) FROM history WHERE writer = {writer}")
                    newest, count = map(int, own.split("|"))
                    assert newest == count, "no transaction is missing before the last"
                    assert least <= newest <= most, "a state between the commit's begin and its end"
