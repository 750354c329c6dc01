"""The control socket's answers, whatever the question."""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blockmap import errors
from blockmap.api.images import NamedImage
from blockmap.commit.task import PublishedCapture
from blockmap.control import clone_messages, messages
from blockmap.control.dispatch import Dispatcher
from blockmap.control.encoding import ERRORS, decode_answer
from blockmap.control.messages import Calls, Resolve
from blockmap.control.operation import Operation
from blockmap.errors import BlockmapError, HostError, NotFound, StoreUnavailable
from blockmap.format.digest import Digest
from blockmap.format.profile import Profile, ProfileItem
from blockmap.format.reading_list import ReadItem
from blockmap.learn.local_files import LocalProfiles
from blockmap.server.opener import Standing
from blockmap.server.store_log import CallLog
from blockmap.store.call import Call
from blockmap.store.names import NameTarget
from blockmap.volume.clone_table import CaptureDraft
from nbdplugin.control import dispatcher
from tests.waiting import until

PINNED = f"app@sha256:{bytes(32).hex()}"

# What a client asks that need not see this checkout.
ASK = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
try:
    client.sendall(b'{"v":1,"op":"status"}\\n')
    client.shutdown(socket.SHUT_WR)
    sys.stdout.buffer.write(client.makefile("rb").read())
except (BrokenPipeError, ConnectionResetError):
    pass
"""


class Served:
    """What a server serves; one store that is away, and one that is broken."""

    def __init__(self) -> None:
        self.calls = CallLog(10)
        self.expected: tuple[str, str, bool, bool] | None = None
        self.failed: bool | None = None
        for number in range(15):
            self.calls.note(Call("get", f"key {number}", float(number), 0.5, 100, None))

    def status(self) -> dict[str, object]:
        return {"pid": os.getpid(), "store": "/s", "exports": [], "opens": 3}

    def names(self) -> list[tuple[str, str]]:
        return [("app:1", "an image")]

    def resolve(self, export: str) -> str:
        if export == "away:1":
            raise StoreUnavailable("the store does not answer")
        if export == "broken:1":
            raise ZeroDivisionError("oops")
        if export.partition("+")[0] != "app:1":
            raise NotFound(f"there is no {export}")
        return PINNED + ("+" + export.partition("+")[2] if "+" in export else "")

    def stands(self, names: Sequence[str]) -> list[Standing | None]:
        return [Standing(PINNED, 7) if name == "app:1" else None for name in names]

    def version(self, export: str) -> str:
        name, plus, label = export.partition("+")
        return PINNED + plus + label if name == "clone" else self.resolve(export)

    def is_writable(self, export: str) -> bool:
        return export == "clone"

    def is_untouched(self, export: str) -> bool:
        return export != "clone"

    def clone(self, export: str, name: str, size: int | None) -> str:
        return f"{name} of {export}, {size}"

    def remove_clone(self, name: str) -> str:
        return f"{name} is gone"

    def prepare_capture(self, name: str) -> None:
        pass

    def capture(self, name: str, draft: CaptureDraft, skip_unchanged: bool = False) -> int:
        return len(name)

    def fork(self, name: str, names: Sequence[str]) -> None:
        pass

    def rewind(self, name: str, export: str) -> str:
        return PINNED

    def published(self, capture: int, seconds: float) -> PublishedCapture | str:
        return PublishedCapture(PINNED, capture) if capture else "the store is away"

    def settle_captures(self, name: str, drop: bool, target: NameTarget | None, force: bool) -> list[int]:
        return [7] if drop else []

    def hydrate(self, export: str, wanted: bool) -> None:
        self.hydrated = export, wanted

    def traces(self) -> list[dict[str, object]]:
        return [{"path": "/t"}]

    def follows_profile(self, export: str, label: str) -> bool:
        return label == "migrate"

    def expect(self, export: str, label: str, *, exact: bool, start: bool) -> None:
        self.expected = export, label, exact, start

    def ready(self, export: str, label: str, *, failed: bool) -> Path | None:
        self.failed = failed
        return Path(f"/{export}/{label}") if label == "migrate" else None

    def readings(self, export: str) -> tuple[int, list[ReadItem], int]:
        return (3, [ReadItem(7, 2, b"bin/sh", 1)], 9) if "+migrate" in export else (0, [], 0)

    def images(self, want_data: bool) -> list[NamedImage]:
        return [NamedImage("app:1", "sha256:0", 1, 2, 3, 4 if want_data else None, None, None, None, None)]

    def config(self, export: str) -> bytes:
        return b'{"config": {}}\xff'


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def kept(tmp_path: Path) -> LocalProfiles:
    return LocalProfiles(tmp_path)


@pytest.fixture
def control(served: Served, kept: LocalProfiles) -> Dispatcher:
    return dispatcher(served, served, kept, served.status, served.images)  # type: ignore[arg-type]


def ask(control: Dispatcher, **request: object) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(control.answer(json.dumps(request).encode() + b"\n", may_change=True))
    return answer


def test_answers(control: Dispatcher) -> None:
    first = ask(control, v=1, op="status")
    assert (first["ok"], first["v"], first["pid"], first["control_requests"]) == (True, 1, os.getpid(), 0)
    assert ask(control, v=1, op="names")["names"] == [["app:1", "an image"]]
    assert ask(control, v=1, op="resolve", export="app:1")["export"] == PINNED
    assert ask(control, v=1, op="config", export="app:1")["config"].startswith('{"config": {}}')
    assert ask(control, v=1, op="status")["control_requests"] == 3


def test_clones(control: Dispatcher, served: Served) -> None:
    assert not ask(control, v=1, op="resolve", export="app:1")["writable"]
    assert ask(control, v=1, op="clone", export="app:1", name="c")["note"] == "c of app:1, None"
    assert ask(control, v=1, op="clone", export="app:1", name="c", size=4096)["note"] == "c of app:1, 4096"
    assert ask(control, v=1, op="clone", export="app:1", name="c", size="4G")["kind"] == "UsageError"
    assert ask(control, v=1, op="rm", export="c")["note"] == "c is gone"
    assert ask(control, v=1, op="expect", export="clone", new=True)["ok"]
    assert served.expected is None, "starts on a clone that was written to teach nothing"


def test_calls_since_a_number(control: Dispatcher) -> None:
    answer = ask(control, v=1, op="calls", since=13)
    assert answer["first"] == 13
    assert answer["calls"] == [["get", f"key {n}", float(n), 0.5, 100, None] for n in (13, 14)]
    forgotten = ask(control, v=1, op="calls")
    assert (forgotten["first"], len(forgotten["calls"])) == (5, 10)
    assert ask(control, v=1, op="calls", since=99) == {"ok": True, "v": 1, "first": 15, "calls": []}
    assert ask(control, v=1, op="status")["control_requests"] == 0, "who watches does not use"


def test_hydration_is_asked_for_or_refused(control: Dispatcher, served: Served) -> None:
    assert ask(control, v=1, op="hydrate", export="app:1")["ok"]
    assert served.hydrated == ("app:1", True)
    assert ask(control, v=1, op="hydrate", export="app:1", wanted=False)["ok"]
    assert served.hydrated == ("app:1", False)
    assert not ask(control, v=1, op="hydrate", export="app:1", wanted=0)["ok"]


def test_what_is_said_of_a_start(control: Dispatcher, served: Served) -> None:
    assert ask(control, v=1, op="expect", export="app:1+migrate", new=True, exact=True, start=True)["ok"]
    assert served.expected == (PINNED, "migrate", True, True)
    assert ask(control, v=1, op="expect", export="app:1", new=True)["ok"]
    assert served.expected == (PINNED, "default", False, False)
    assert ask(control, v=1, op="ready", export="app:1+migrate")["trace"] == f"/{PINNED}/migrate"
    assert served.failed is False
    assert ask(control, v=1, op="ready", export="app:1", failed=True)["trace"] is None
    assert served.failed is True
    assert ask(control, v=1, op="ready", export="no:1")["kind"] == "NotFound"
    asked = ask(control, v=1, op="status")["control_requests"]
    assert [ask(control, v=1, op="follows", export=f"app:1{label}")["follows"] for label in ("", "+migrate")] == [
        False,
        True,
    ]
    assert ask(control, v=1, op="traces")["traces"] == [{"path": "/t"}]
    assert ask(control, v=1, op="status")["control_requests"] == asked, "who watches does not use"


def test_readings_are_those_of_the_store_or_else_of_this_host(control: Dispatcher, kept: LocalProfiles) -> None:
    def put(label: str, version: bytes) -> None:
        items = [ProfileItem(40, 3, Digest(b"c" * 32), 0, None, 0, 5, 1)]
        kept.put(Profile("app", label, 0, Digest(version), Digest(b"r" * 32), 1, items, "host", 1))

    def told(export: str) -> tuple[object, object]:
        answer = ask(control, v=1, op="readings", export=export)
        return answer["profile"], answer["readings"]

    assert told("app:1") == (0, [])
    assert [ask(control, v=1, op="readings", export=name)["soon"] for name in ("app:1", "app:1+migrate")] == [0, 9]
    put("default", bytes(32))
    put("migrate", bytes(32))
    put("other", b"o" * 32)
    assert told("app:1") == (0, [[40, 3, None, 0]])
    assert told("app:1+migrate") == (3, [[7, 2, "bin/sh", 1]])
    assert told("app:1+other") == (0, []), "of another version"


def test_errors_keep_their_kind(control: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    for export, kind, text in (
        ("no:1", "NotFound", "there is no no:1"),
        ("away:1", "StoreUnavailable", "does not answer"),
        ("broken:1", "HostError", "ZeroDivisionError"),
    ):
        answer = ask(control, v=1, op="resolve", export=export)
        assert (answer["ok"], answer["kind"]) == (False, kind)
        assert text in answer["error"]
    assert "a control request failed" in caplog.text


def test_every_error_crosses_as_itself() -> None:
    def below(kind: type[BlockmapError]) -> set[type[BlockmapError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    named = {each for each in vars(errors).values() if isinstance(each, type)} & below(BlockmapError)
    assert set(ERRORS.values()) == named - {BlockmapError}
    for name, kind in ERRORS.items():
        line = json.dumps({"v": 1, "ok": False, "kind": name, "error": "why"}).encode()
        with pytest.raises(kind, match="why") as raised:
            decode_answer(Resolve("app:1"), line)
        assert type(raised.value) is kind


@pytest.mark.parametrize("kind", [None, "BlockmapError", "KeyboardInterrupt", "NoSuchError", 7, ["NotFound"]])
def test_an_error_of_another_kind_is_one_of_the_host(kind: object) -> None:
    with pytest.raises(HostError, match="why"):
        decode_answer(Resolve("app:1"), json.dumps({"v": 1, "ok": False, "kind": kind, "error": "why"}).encode())


def test_each_operation_has_a_handler_and_says_what_it_is(control: Dispatcher) -> None:
    there = [each for module in (messages, clone_messages) for each in vars(module).values() if isinstance(each, type)]
    operations = {each.op: each for each in there if issubclass(each, Operation) and "op" in vars(each)}
    assert control.kinds == operations
    for op, kind in operations.items():
        assert kind.__doc__
        assert ask(control, v=1, op=op, export="app:1", name="app:1", new=True)["ok"], op


def test_a_capture_is_published_or_it_is_said_why_not(control: Dispatcher) -> None:
    assert ask(control, v=1, op="capture", export="web", name="app:2")["capture"] == 3
    assert ask(control, v=1, op="capture", export="web", name="APP")["kind"] == "UsageError"
    done = ask(control, v=1, op="published", capture=3, seconds=0)
    assert (done["export"], done["entry"], done["failure"]) == (PINNED, 3, "")
    waits = ask(control, v=1, op="published", capture=0, seconds=0)
    assert (waits["export"], waits["failure"]) == ("", "the store is away")
    assert ask(control, v=1, op="published", capture=0, seconds=1e9)["kind"] == "UsageError"
    assert ask(control, v=1, op="settle", export="web", drop=True)["captures"] == [7]


def test_answers_arrive_as_they_were_given(control: Dispatcher, served: Served) -> None:
    answer = decode_answer(Calls(13), control.answer(b'{"v":1,"op":"calls","since":13}\n', may_change=True))
    assert (answer.first, answer.calls) == served.calls.since(13, 10)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"\xff\xfe\n",
        b'{"v":2,"op":"status"}\n',
        b'{"v":1}\n',
        b'{"v":1,"op":["status"]}\n',
        b'{"v":1,"op":"resolve","export":{"a":1}}\n',
        b'{"v":1,"op":"calls","since":-1}\n',
        b'{"v":1,"op":"calls","since":"0"}\n',
        b'{"v":1,"op":"expect","export":"app:1"}\n',
        b'{"v":1,"op":"expect","export":"app:1","new":true,"exact":1}\n',
        b'{"v":1,"op":"expect","export":"app:1","new":true,"start":1}\n',
        b'{"v":1,"op":"ready","export":"app:1","failed":1}\n',
        b"[" * 60_000 + b"\n",
        b'{"v":1,"op":"status"}',
    ],
)
def test_nonsense_is_a_usage_error(control: Dispatcher, line: bytes) -> None:
    answer = json.loads(control.answer(line, may_change=True))
    assert (answer["ok"], answer["kind"]) == (False, "UsageError")
    assert answer["error"]


def exchange(control: Dispatcher, sent: bytes) -> list[dict[str, Any]]:
    """All answers to what one client sends."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=control.serve, args=(theirs,))
    thread.start()
    with ours:
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as lines:
            answers = [json.loads(line) for line in lines]
    thread.join(30)
    assert not thread.is_alive()
    return answers


def test_many_requests_on_one_connection(control: Dispatcher) -> None:
    status = b'{"v":1,"op":"status"}\n'
    answers = exchange(control, status + b"nonsense\n" + status)
    assert [answer["ok"] for answer in answers] == [True, False, True]


def test_a_line_without_an_end_is_not_waited_for(control: Dispatcher) -> None:
    answers = exchange(control, b"x" * (1 << 16))
    assert [answer["ok"] for answer in answers] == [False]


@pytest.mark.root
def test_another_user_is_not_answered(control: Dispatcher, need_root: None) -> None:
    folder = Path(tempfile.mkdtemp())  # tmp_path lets nobody else in
    python = str(Path(sys.executable).resolve())  # outside of the virtual environment, which may be private as well
    try:
        folder.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(folder / "ctl"))
            (folder / "ctl").chmod(0o666)
            listening.listen()
            said = {}
            for user in (0, 65534):
                asking = subprocess.Popen(
                    [python, "-I", "-c", ASK, str(folder / "ctl")], user=user, group=user, extra_groups=[],
                    stdout=subprocess.PIPE, cwd="/",
                )  # fmt: skip
                client, _ = listening.accept()
                control.serve(client)
                said[user], _ = asking.communicate(timeout=30)
    finally:
        shutil.rmtree(folder)
    assert said[65534] == b""
    assert json.loads(said[0])["ok"] is True


def test_more_clients_than_are_answered_at_once_wait_for_a_place(control: Dispatcher, tmp_path: Path) -> None:
    def threads() -> int:
        return sum(each.name == "control client" for each in threading.enumerate())

    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(tmp_path / "s"))
        listening.listen(100)
        stack.callback(listening.shutdown, socket.SHUT_RDWR)
        control.start(listening)
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(65)]
        for client in clients:
            client.settimeout(30)
            client.connect(str(tmp_path / "s"))
        until(lambda: threads() == 64)
        clients[-1].sendall(b'{"v":1,"op":"status"}\n')
        assert select.select([clients[-1]], [], [], 0.2)[0] == []
        assert threads() == 64
        clients[0].close()
        assert clients[-1].recv(1) == b"{"


def test_images_are_listed_as_they_are(control: Dispatcher, served: Served) -> None:
    for want_data in (False, True):
        answer = ask(control, v=1, op="images", data=want_data)
        assert [NamedImage(**each) for each in answer["images"]] == served.images(want_data)


def test_members_of_the_group_ask_what_changes_nothing(control: Dispatcher) -> None:
    may = {op for op, kind in control.kinds.items() if kind.group_may}
    assert may == {"status", "calls", "traces", "names", "stands", "images"}
    for op in control.kinds:
        answer = json.loads(control.answer(json.dumps({"v": 1, "op": op}).encode() + b"\n", may_change=False))
        assert answer["ok"] == (op in may), answer
        assert op not in ("resolve", "hydrate", "rm") or "for root and its own user only" in answer["error"]
