"""Starts that a real server records."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockmap.control.messages import Expect, Ready, Resolve, Traces
from blockmap.errors import NotFound, UsageError
from blockmap.format.digest import from_hex
from blockmap.format.trace import DECLARED, EXACT, NEW, End, Trace, decode
from tests.serve.conftest import Server
from tests.serve.nbd import Nbd, RefusedError
from tests.waiting import free_ports, until


def files(server: Server) -> list[Path]:
    return sorted((server.cache / "traces").glob("*.trace"))


def only(server: Server) -> Trace:
    (path,) = files(server)
    return decode(path.read_bytes())


def told(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.client.ask(Traces()).traces
    return found


def offsets(trace: Trace) -> list[tuple[int, int]]:
    return [(int(each["offset"]), int(each["length"])) for each in trace.reads]


def closed(server: Server) -> None:
    """Waits until the server has seen that nobody is connected."""
    until(lambda: not server.client.status()["exports"])


def test_two_connections_are_one_trace(server: Server) -> None:
    with Nbd(server.socket, "small:1") as one:
        one.read(1024, 1024)
        with Nbd(server.socket, server.client.ask(Resolve("small:1")).export) as two:
            two.read(4096, 512)
            one.read(8192, 4096)
            assert [(each["state"], each["label"]) for each in told(server)] == [("running", "default")]
            until(lambda: os.path.getsize(told(server)[0]["path"]) == 512 + 3 * 16)
        one.read(0, 512)
    closed(server)
    trace = only(server)
    assert offsets(trace) == [(1024, 1024), (4096, 512), (8192, 4096), (0, 512)]
    times = trace.reads["time_us"].tolist()
    assert times == sorted(times)
    assert (trace.head.repo, trace.head.label, trace.head.size, trace.head.end) == (
        "small",
        "default",
        16 << 30,
        End.CLOSED,
    )
    assert not trace.head.is_evidence
    export = server.client.ask(Resolve("small:1")).export
    assert f"small@sha256:{trace.head.version.hex()}" == export
    assert told(server)[0] | {"path": "", "started": 0} == {
        "path": "", "export": export, "label": "default", "started": 0, "reads": 4, "state": "closed", "new": False,
        "declared": False, "exact": False, "ready_ms": 0, "profile": 0,
    }  # fmt: skip
    counts = server.client.status()["traces"]
    assert counts == {"running": 0, "begun": 1, "ended": 1, "learnable": 0, "failed": 0}


def test_who_only_looks_leaves_no_trace(server: Server, need: Callable[..., None]) -> None:
    need("nbdinfo")
    subprocess.run(["nbdinfo", "--size", server.uri("small:1")], check=True, capture_output=True)
    closed(server)
    assert files(server) == told(server) == []


def test_a_trace_survives_a_server_that_is_killed(server: Server) -> None:
    wanted = [(n * 4096, 4096) for n in range(1000)]
    with Nbd(server.socket, "small:1") as nbd:
        for offset, length in wanted:
            nbd.read(offset, length)
        (path,) = files(server)
        until(lambda: len(decode(path.read_bytes()).reads) == len(wanted))  # a tenth of a second
        os.kill(server.nbdkit(), signal.SIGKILL)
    trace = only(server)
    assert offsets(trace) == wanted
    assert trace.head.end == End.OPEN
    server.wait_ready()
    with Nbd(server.socket, "small:1") as nbd:
        nbd.read(0, 4096)
    closed(server)
    assert [decode(path.read_bytes()).head.end for path in files(server)] == [End.OPEN, End.CLOSED]


def test_a_server_that_stops_cuts_its_traces(server: Server) -> None:
    with Nbd(server.socket, "small:1") as nbd:
        nbd.read(0, 4096)
        assert server.stop() == 0
    (path,) = files(server)
    assert path.stat().st_size == 512 + 16 + 16 + 24, "the read, and that it waited"
    assert only(server).head.end == End.OPEN


def test_labels(server: Server) -> None:
    pinned = server.client.ask(Resolve("small:1")).export
    labelled = server.client.ask(Resolve("small:1+job/migrate")).export
    assert labelled == f"{pinned}+job/migrate"
    with (
        Nbd(server.socket, "small:1+other") as one,
        Nbd(server.socket, labelled) as two,
        Nbd(server.socket, pinned) as three,
    ):
        assert one.size == two.size == three.size
        for number, each in enumerate((one, two, three)):
            assert each.read(4096 * number, 4096) == three.read(4096 * number, 4096)
        status = server.client.status()
        assert [(each["export"], each["connections"]) for each in status["exports"]] == [(pinned, 3)]
        assert [each["export"] for each in status["reads"]] == [pinned]
    closed(server)
    heads = [decode(path.read_bytes()).head for path in files(server)]
    assert sorted(head.label for head in heads) == ["default", "job/migrate", "other"]
    assert len({(head.repo, head.version) for head in heads}) == 1
    for export in ("small:1+", "small:1+Big", f"{pinned}+a b"):
        with pytest.raises(RefusedError):
            Nbd(server.socket, export)
        with pytest.raises(UsageError):
            server.client.ask(Resolve(export))
    with pytest.raises(NotFound):
        server.client.ask(Resolve("small:9+migrate"))


def test_ready_ends_what_was_expected(server: Server) -> None:
    client = server.client
    assert client.ask(Ready("small:1+migrate")).trace is None
    client.ask(Expect("small:1+migrate", new=True, exact=True, start=True))
    with Nbd(server.socket, "small:1") as other, Nbd(server.socket, "small:1+migrate") as nbd:
        other.read(0, 4096)
        nbd.read(0, 4096)
        trace = Path(client.ask(Ready("small:1+migrate")).trace)
        nbd.read(4096, 4096)
        assert client.ask(Ready("small:1+migrate")).trace is None, "once is enough"
        head = decode(trace.read_bytes()).head
        assert (head.label, head.end, head.flags) == ("migrate", End.READY, NEW | EXACT | DECLARED)
        assert 0 < head.ready_ms < 60_000
        assert offsets(decode(trace.read_bytes())) == [(0, 4096)]
        assert head.version == from_hex(client.ask(Resolve("small:1")).export.partition(":")[2])
        assert [each["state"] for each in told(server)] == ["running", "ready"]
    status = client.status()
    assert status["traces"]["learnable"] == 1


def test_reads_go_on_where_no_trace_can_be_written(idle_server: Server) -> None:
    (idle_server.cache / "traces").write_text("in the way")
    idle_server.start()
    for _ in range(2):
        with Nbd(idle_server.socket, "small:1") as nbd:
            assert nbd.read(1024 + 56, 2) == b"\x53\xef"
        closed(idle_server)
    assert idle_server.said().count("starts are not recorded") == 1
    assert idle_server.client.status()["traces"]["failed"] == 2


def start(server: Server) -> None:
    """One that is evidence."""
    server.client.ask(Expect("small:1+migrate", new=True, exact=False, start=True))
    with Nbd(server.socket, "small:1+migrate") as nbd:
        nbd.read(0, 4096)
    closed(server)
    until(lambda: server.client.status()["traces"]["learnable"] == 1)


def test_a_start_is_learnt_from(server: Server) -> None:
    start(server)
    until(lambda: server.client.status()["learn"]["runs"] == 1)
    out = server.run("status").stdout
    assert "starts    1 recorded, " in out
    assert server.stop() == 0


def test_learning_is_switched_off(idle_server: Server) -> None:
    idle_server.start("--no-learn")
    start(idle_server)
    assert idle_server.client.status()["learn"] == {"running": 0, "runs": 0, "failures": 0}


def mount(nbd: Nbd) -> None:
    for offset in (0, 4096, nbd.size - 4096, *(number << 20 for number in range(1, 40))):
        nbd.read(offset, 4096)


def test_a_bare_client_that_mounts_is_evidence_if_it_names_a_label(server: Server) -> None:
    for export in ("small:1", "small:1+default"):
        server.stop()
        server.start()
        with Nbd(server.socket, export) as nbd:
            mount(nbd)
        closed(server)
        until(lambda: told(server)[0]["state"] == "closed")
    assert [decode(path.read_bytes()).head.flags for path in files(server)] == [NEW, NEW | DECLARED]
    assert server.client.status()["traces"]["learnable"] == 1


def test_a_label_that_comes_over_tcp_teaches_nobody(idle_server: Server) -> None:
    (port,) = free_ports(1)
    idle_server.start("--listen", f"127.0.0.1:{port}")
    with Nbd(("127.0.0.1", port), "small:1+migrate") as nbd:
        mount(nbd)
    closed(idle_server)
    until(lambda: told(idle_server)[0]["state"] == "closed")
    assert only(idle_server).head.flags == NEW
    assert idle_server.client.status()["traces"]["learnable"] == 0


def test_a_copy_is_no_evidence(server: Server, tmp_path: Path, need: Callable[..., None]) -> None:
    need("qemu-img", "nbdcopy")
    for command in (["nbdcopy"], ["qemu-img", "convert", "-f", "raw", "-O", "raw"]):
        subprocess.run([*command, server.uri("small:1"), str(tmp_path / "copy")], check=True, capture_output=True)
        closed(server)
    until(lambda: [each["state"] for each in told(server)] == ["closed", "closed"])
    assert [decode(path.read_bytes()).head.flags for path in files(server)] == [0, 0]
    assert all(int(str(each["reads"])) > 10 for each in told(server))


def test_what_recording_costs(idle_server: Server) -> None:
    out = idle_server.run("bench", "record", "small:1", "--pairs", "2", "--reads", "1000", "--json").stdout
    report = json.loads(out)
    assert [row["depth"] for row in report["rows"]] == [1, 16]
    assert all(row["without, us per read"] > 0 < row["with, us per read"] for row in report["rows"])
    assert report["append_us"]["low"] > 0
    assert "at least 1" in idle_server.run("bench", "record", "small:1", "--pairs", "0", check=False).stderr
