"""Attaches of many images at once over long round trips: none waits for another.

Run with -s: prints how long they took.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import serving
from tests.host.conftest import Host, rows
from tests.image.layouts import archive, directory, file, layout

pytestmark = [pytest.mark.long, pytest.mark.root]

COUNT = 10
SIZE = 1_000_000
ROUNDS = 5  # one must be right: others may use the machine
LINK = ("--rtt-ms", "100")


def cpu_s(pid: int) -> float:
    """Processor time of a process until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def attach(maker: Host, where: Path, tags: list[int]) -> tuple[float, float]:
    """Attaches all at once on a new host; seconds, and processor time of the commands, of nbdfuse and of the server."""
    with serving(where, maker.store, LINK) as (host, _):
        for tag in tags:
            (where / str(tag)).mkdir()
        try:
            took = timed(host, tags)
            for tag in tags:
                assert (where / str(tag) / "data/content").stat().st_size == SIZE
        finally:
            for tag in tags:
                host.run("detach", where / str(tag))
        assert host.leftovers() == []
    return took


def timed(host: Host, tags: list[int]) -> tuple[float, float]:
    """Attaches all at once; as above."""
    server = host.nbdkit()
    before_s = cpu_s(server)
    began = time.monotonic()
    started = [host.start("attach", f"app:{tag}", host.where / str(tag)) for tag in tags]
    used_s = 0.0
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        _, said = process.communicate()
        assert process.returncode == 0, said + host.said()
        used_s += usage.ru_utime + usage.ru_stime
    took_s = time.monotonic() - began
    return took_s, used_s + cpu_s(server) - before_s + sum(cpu_s(pid) for _, pid in rows(host))


def test_ten_attaches_over_long_round_trips(tmp_path: Path, need: Callable[..., None], need_root: None) -> None:
    need("nbdkit", "nbdfuse", "fusermount3", "nginx")
    maker = Host(tmp_path)
    maker.do("create")
    for tag in range(COUNT + 1):
        content = file("data/content", os.urandom(SIZE))
        layout(tmp_path / "image" / str(tag), [archive([directory("data"), content])], tag="1", config={})
        maker.do("import", "--quiet", f"oci:{tmp_path}/image/{tag}:1", f"app:{tag}", "--platform", "linux/amd64")
    for number in range(ROUNDS):
        one_s, one_cpu_s = attach(maker, tmp_path / f"one{number}", [COUNT])
        ten_s, ten_cpu_s = attach(maker, tmp_path / f"ten{number}", list(range(COUNT)))
        print(
            f"\none: {one_s:.2f} s, {one_cpu_s:.2f} s of processor; ten: {ten_s:.2f} s, {ten_cpu_s:.2f} s of processor"
        )
        if ten_s <= one_s + (COUNT - 1) * one_cpu_s:
            return
    pytest.fail("ten took longer than one and nine times its processor time")
