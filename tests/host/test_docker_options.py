"""The options that `run` has from docker, in real containers."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.errors import UsageError
from blockmap.host.run.options import (
    BindMount,
    PublishedPort,
    RunOptions,
    parse_network,
    parse_port,
    parse_volume,
    read_environment,
)
from tests.host.box import WAITS, Terminal, children
from tests.host.conftest import Host
from tests.waiting import LIMIT_S, free_ports, until

needs_root = pytest.mark.root


def said(box: Host, *arguments: object) -> list[str]:
    return box.do("run", *arguments).splitlines()


@needs_root
def test_environment_user_directory_and_names(box: Host) -> None:
    variables = box.where / "variables"
    variables.write_text("# a note\n\nFROM=file\nBOTH=file\nHERE\nABSENT\n")
    box.environment["HERE"] = "here"
    given = ["--env-file", variables, "-e", "BOTH=option", "--env", "COLOUR=red", "-e", "EMPTY=", "-e", "ABSENT"]
    found = set(said(box, *given, "app:1", "env"))
    assert {"FROM=file", "BOTH=option", "HERE=here", "COLOUR=red", "EMPTY=", "HOME=/root", "PATH=/bin"} <= found
    assert not any(each.startswith("ABSENT") for each in found)
    shown = "id; pwd; hostname; echo $HOSTNAME; cat /etc/hosts; busybox grep -E ^Cap /proc/self/status"
    identity, directory, name, variable, *rest = said(
        box, "-u", "app:extra", "-w", "/srv/new", "-h", "inner", "--rm", "-i", "app:1", "sh", "-c", shown
    )
    assert re.match(r"uid=1234\(app\) gid=1236\(extra\)", identity)
    assert (directory, name, variable) == ("/srv/new", "inner", "inner")
    assert any(line.split() == ["127.0.1.1", "inner"] for line in rest)
    capabilities = {line.split(":")[0]: int(line.split()[1], 16) for line in rest if line.startswith("Cap")}
    assert capabilities["CapEff"] == capabilities["CapPrm"] == capabilities["CapAmb"] == 0
    assert capabilities["CapBnd"] != 0
    assert "uid=77 gid=88" in said(box, "-u", "77:88", "app:1", "id")[0]
    assert "uid=1234" in said(box, "svc:1", "id")[0]  # the image's own
    assert "uid=0" in said(box, "-u", "root", "svc:1", "id")[0]
    for mistake in (["-u", "nosuch"], ["-u", "root:nosuch"]):
        assert "does not have" in box.run("run", *mistake, "app:1").stderr


@needs_root
def test_volumes(box: Host) -> None:
    folder, only = box.where / "folder", box.where / "only"
    only.write_text("only")
    done = box.run(
        "run", "-v", f"{folder}:/mnt/new", "-v", f"{only}:/etc/version:ro", "app:1",
        "sh", "-c", "echo written >/mnt/new/x; cat /etc/version; echo no >/etc/version",
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("only", 1)
    assert f"{folder} was not there, and is made" in done.stderr
    assert "Read-only file system" in done.stderr
    assert (folder / "x").read_text() == "written\n"
    assert only.read_text() == "only"
    # What is mounted below one is there as well, and as read-only.
    (folder / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", folder / "below"], check=True)
    try:
        done = box.run("run", "-v", f"{folder}:/mnt:ro", "app:1", "sh", "-c", "ls /mnt; echo no >/mnt/below/x")
        assert (done.stdout, done.returncode) == ("below\nx\n", 1)
    finally:
        subprocess.run(["umount", folder / "below"], check=True)


@needs_root
def test_a_root_that_cannot_be_written(box: Host) -> None:
    done = box.run(
        "run", "--read-only", "-v", f"{box.where}/out:/out", "app:1", "sh", "-c", "echo x >/out/x; echo y >/y"
    )
    assert "Read-only file system" in done.stderr
    assert os.listdir(box.where / "out") == ["x"]


@needs_root
def test_control_groups_hold_the_limits(box: Host) -> None:
    options = ["--memory", "32m", "--cpus", "0.5", "--pids-limit", "30"]
    name = box.do("run", "-d", "--rm", *options, "app:1", "sh", "-c", WAITS).strip()
    try:
        pid = int(re.findall(r'"pid": (\d+)', box.do("ps", "--json"))[0])
        found = {}
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for mount in controllers.split(",") if controllers else [""]:
                for limit in ("memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max", "pids.max"):
                    file = Path(f"/sys/fs/cgroup/{mount}{path}/{limit}")
                    if file.exists():
                        found[limit] = file.read_text().strip()
        assert found.get("memory.limit_in_bytes", found.get("memory.max")) == str(32 << 20)
        assert found.get("cpu.cfs_quota_us", found.get("cpu.max", "").split(" ")[0]) == "50000"
        assert found["pids.max"] == "30"
    finally:
        box.do("stop", "-t", "0", name)


@needs_root
def test_networks(box: Host, tmp_path: Path) -> None:
    interfaces = "busybox ip -o link | busybox wc -l; busybox ip addr show lo | busybox grep -c 127.0.0.1; hostname"
    name = "alone"
    assert said(box, "--network", "none", "--name", name, "app:1", "sh", "-c", interfaces) == ["1", "1", "alone"]
    namespace = tmp_path / "netns"
    namespace.touch()
    subprocess.run(["unshare", f"--net={namespace}", "true"], check=True)
    try:
        (inner,) = said(box, "--network", f"ns:{namespace}", "app:1", "busybox", "readlink", "/proc/self/ns/net")
        assert inner == f"net:[{namespace.stat().st_ino}]"
    finally:
        subprocess.run(["umount", namespace], check=True)
    assert "there is no network namespace /nosuch" in box.run("run", "--network", "ns:/nosuch", "app:1").stderr


@needs_root
@pytest.mark.parametrize("network", ["pasta", "slirp4netns"])
def test_published_ports(box: Host, network: str, need: Callable[..., None]) -> None:
    need(network)
    (port,) = free_ports(1)
    name = f"web-{network}"
    serve = "busybox httpd -f -p 8000 -h /data"
    # The port is the container's: the host's answers as soon as the program that forwards it listens.
    box.do("run", "-d", "--name", name, "--network", network, "-p", f"127.0.0.1:{port}:8000", "--ready", "http:8000/content",
           "app:1", "sh", "-c", f"sleep 0.3; exec {serve}")  # fmt: skip
    try:
        assert f"127.0.0.1:{port}->8000/tcp" in box.do("ps")
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as asked:
            asked.sendall(b"GET /content HTTP/1.0\r\n\r\n")
            assert b"200 OK" in asked.recv(4096)
    finally:
        box.do("rm", "-f", name)
    until(lambda: not any(network in line for line in connectors(box)))
    assert box.leftovers() == []


def connectors(box: Host) -> list[str]:
    """The command lines of processes that name the host's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ")
        except OSError:
            continue
        if str(box.where) in line:
            found.append(line)
    return found


@needs_root
def test_what_a_terminal_does(box: Host) -> None:
    """A program on a terminal sees its size change, and one ctrl-C once."""
    reads = "while [ x$line != xend ]; do read line && echo got $line; done"
    script = f"trap 'echo caught' INT; trap 'busybox stty size' WINCH; echo up; {reads}; exit 5"
    terminal = Terminal(box, "run", "-it", "app:1", "sh", "-c", script)
    terminal.wait_for(b"up\r\n")
    terminal.resize(33, 77)
    terminal.wait_for(b"33 77")
    terminal.type(b"\x03")
    terminal.wait_for(b"caught")
    terminal.type(b"word\n")
    terminal.wait_for(b"got word")
    terminal.type(b"end\n")
    assert terminal.end() == 5
    assert terminal.said.count(b"caught") == 1


@needs_root
def test_one_key_is_one_signal_where_the_program_has_no_terminal(box: Host) -> None:
    """Its output is a file, and its input the terminal, whose ctrl-C the command has."""
    out = box.where / "counted"
    script = "trap 'echo caught' INT; trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"
    terminal = Terminal(box, "run", "app:1", "sh", "-c", script, output=out)
    until(lambda: out.exists() and "up" in out.read_text())
    try:
        # Two signals that come together may be one to the program: so who gets them is looked at as well.
        assert terminal.shares_keys_with(terminal.pid)
        assert not any(map(terminal.shares_keys_with, children(terminal.pid)))
        terminal.type(b"\x03")
        until(lambda: "caught" in out.read_text())
    finally:
        os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == 3
    assert out.read_text() == "up\ncaught\n"


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--gpus", "all"], "run takes no --gpus: `podman run --gpus --rootfs DIR:O` on an attached image does"),
        (["--restart", "always"], "systemd does"),
        (["--mount", "type=bind"], "-v SRC:DST"),
        (["--privileged"], "podman run --privileged"),
        (["--link", "x"], "podman run --network NAME"),
        (["-P"], "-p HOST:CONTAINER does"),
        (["--network", "mine"], "podman run --network NAME"),
        (["-v", "named:/data"], "no named volumes"),
        (["-v", "/data"], "run makes no volumes"),
        (["-v", "/x:/y:z"], "ro and rw are"),
        (["-v", "/x:/"], "is no place in a container"),
        (["-p", "80"], "HOST:CONTAINER[/udp] is expected"),
        (["-p", "80:99999"], "is expected"),
        (["--network", "none", "-p", "1:2"], "no port is published"),
        (["--network", "host", "-p", "1:2"], "each is the host's own"),
        (["-e", "=x"], "is no variable"),
        (["--env-file", "/nosuch"], "cannot be read"),
        (["--memory", "much"], "is not a size"),
        (["-m", "512m"], "say --memory"),
        (["--cpus", "0"], "leaves nothing"),
        (["-w", "relative"], "begins with a slash"),
        (["-h", "a b"], "is no host's name"),
        (["--ready", "tcp:1"], "--ready goes with -d"),
        (["-t"], "leave out -t"),
    ],
)
def test_what_run_does_not_take_says_what_does(tmp_path: Path, flags: list[str], what: str) -> None:
    done = Host(tmp_path).run("run", *flags, "app:1")
    assert done.returncode == 2, done.stderr
    assert what in done.stderr


def test_an_option_that_nobody_has_is_no_option(tmp_path: Path) -> None:
    assert "No such option '--gpu'" in Host(tmp_path).run("run", "--gpu", "app:1").stderr


def test_options_as_docker_takes_them() -> None:
    assert parse_volume("/a:/b") == BindMount("/a", "/b")
    assert parse_volume("/a:/b:ro") == BindMount("/a", "/b", read_only=True)
    assert parse_port("8080:80") == PublishedPort(8080, 80)
    assert parse_port("127.0.0.1:53:5353/udp") == PublishedPort(53, 5353, "udp", "127.0.0.1")
    assert parse_port("[::1]:8080:80").address == "::1"
    assert parse_network(None, False, []) == "host"
    assert parse_network(None, True, ["slirp4netns"]) == "slirp4netns"
    assert parse_network(None, True, []) == "pasta"
    assert parse_network("ns:/run/netns/x", False, []) == "ns:/run/netns/x"
    assert read_environment([], ["A=1", "A=2", "B", "C"], {"B": "b"}) == ("A=2", "B=b")
    with pytest.raises(UsageError, match="with --network none"):
        RunOptions(network="none", ports=(PublishedPort(1, 2),))
