"""`blockmap run`: real containers."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.control.messages import Traces
from tests.host.conftest import BLOCKMAP, Host, faulty
from tests.waiting import LIMIT_S, until

pytestmark = pytest.mark.root


@pytest.fixture
def running(mounting: Host, need: Callable[..., None]) -> Host:
    """A host with a server, that can run containers."""
    need("runc")
    mounting.serve()
    return mounting


def containers(host: Host) -> list[Path]:
    return list(host.state.glob("runs/run-*/runc/*"))


def started(host: Host, *arguments: object) -> subprocess.Popen[str]:
    """A container that has printed its first line, which is `up`."""
    process = host.start("run", *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n", process.communicate()[1]
    return process


def finished(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=LIMIT_S)
    return process.returncode


def test_the_program_its_environment_and_its_status(running: Host) -> None:
    assert running.do("run", "app:1") == "1"
    said = running.do(
        "run", "app:1", "--", "sh", "-c", "pwd; id; hostname; echo $COLOUR $HOME $PATH; head -c9 content | wc -c"
    )
    directory, identity, hostname, variables, count = said.splitlines()
    assert (directory, count.strip()) == ("/data", "9")
    assert identity.startswith("uid=0(root) gid=0(root)")
    assert hostname == socket.gethostname()
    assert variables == "blue /root /bin"
    assert running.run("run", "app:1", "sh", "-c", "exit 7").returncode == 7
    assert running.run("run", "app:1", "cat", text="typed").stdout == "typed"
    assert running.leftovers() == []


@pytest.mark.parametrize(
    ("program", "status"), [("no-such-program", 127), ("/bin/absent", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_a_program_that_cannot_be_run_has_the_status_that_docker_gives(
    running: Host, program: str, status: int
) -> None:
    done = running.run("run", "app:1", program)
    assert (done.returncode, program in done.stderr) == (status, True)
    # The program's own word is as good as another, whatever it prints.
    assert running.run("run", "app:1", "sh", "-c", f"echo 'exec: {program}: not found' >&2; exit 1").returncode == 1
    assert running.leftovers() == []


def test_what_it_writes_goes_with_it_and_does_not_reach_the_image(running: Host) -> None:
    change = "rm content; echo new >/etc/version; mkdir x; ls /data; cat /etc/version"
    assert running.do("run", "app:1", "--", "sh", "-c", change) == "x\nnew\n"
    assert running.do("run", "app:1", "ls") == "content\n"
    assert running.leftovers() == []


def test_an_image_that_runs_is_brought_whole_where_it_is_asked_for(running: Host) -> None:
    assert running.do("run", "--hydrate", "app:1") == "1"
    until(lambda: [each["state"] for each in running.client.status()["hydrations"]] == ["complete"])


def test_the_hosts_network_and_names_are_its_own(running: Host) -> None:
    said = running.do(
        "run", "app:1", "--", "sh", "-c", "cat /proc/net/unix; cat /etc/hosts; ls /proc/1 >/dev/null && echo $$"
    )
    assert str(running.socket) in said  # the server's socket is in this network namespace
    assert Path("/etc/hosts").read_text() in said
    assert said.splitlines()[-1] == "1"  # in a pid namespace of its own


def test_it_cannot_reach_the_hosts_devices_and_control_groups(running: Host) -> None:
    number = os.stat("/dev/fuse").st_rdev
    tries = f"mknod /dev/x c {os.major(number)} {os.minor(number)} && cat /dev/x; ls /sys/fs/cgroup; echo >/sys/x"
    done = running.run("run", "app:1", "--", "busybox", "sh", "-c", tries)
    assert done.stdout == ""
    assert "can't open '/dev/x': Operation not permitted" in done.stderr
    assert "can't create /sys/x: Read-only file system" in done.stderr


def test_it_has_the_limits_of_docker(running: Host) -> None:
    said = running.do("run", "app:1", "--", "busybox", "grep", "-E", "^(NoNewPrivs|Seccomp):", "/proc/self/status")
    assert said.split() == ["NoNewPrivs:", "1", "Seccomp:", "2"]
    # Needs no capability; whoever may have a user namespace has all of them in it.
    done = running.run("run", "app:1", "--", "busybox", "unshare", "-U", "busybox", "true")
    assert "Operation not permitted" in done.stderr
    done = running.run("run", "app:1", "--", "sh", "-c", "cat /proc/kcore /proc/keys; echo 1 >/proc/sys/vm/swappiness")
    assert done.stdout == ""
    assert "Read-only file system" in done.stderr
    options = running.do("run", "app:1", "--", "busybox", "grep", " / / ", "/proc/self/mountinfo")
    assert {"nosuid", "nodev"} <= set(options.split()[5].split(","))


def test_it_may_have_so_many_processes(running: Host) -> None:
    process = started(running, "app:1", "--", "sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done")
    names = [path.name for path in running.state.glob("runs/run-*/runc/*")]
    limits = [path.read_text() for name in names for path in Path("/sys/fs/cgroup").rglob(f"{name}/pids.max")]
    process.terminate()
    finished(process)
    if not limits:
        pytest.skip("needs the control group of pids")
    assert limits == ["2048\n"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_program(running: Host, number: signal.Signals) -> None:
    program = f"trap 'echo caught; exit 9' {number.value}; echo up; while :; do sleep 0.1; done"
    process = started(running, "app:1", "--", "sh", "-c", program)
    process.send_signal(number)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert (said, process.returncode) == ("caught\n", 9)
    assert running.leftovers() == []


@pytest.mark.long
def test_a_program_that_ignores_sigterm_is_ended_by_force(running: Host) -> None:
    process = started(running, "app:1", "--", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    process.terminate()
    assert finished(process) == 137
    assert running.leftovers() == []


def test_what_is_learnt_from(running: Host) -> None:
    """Runs that succeed, and what is attached with a label."""

    def newest() -> tuple[str, bool, bool, int]:
        until(lambda: not running.client.status()["exports"])
        told = running.client.ask(Traces()).traces[0]
        return told["state"], told["new"], told["declared"], running.client.status()["traces"]["learnable"]

    running.do("run", "app:1")
    assert newest() == ("closed", True, True, 1)
    assert running.run("run", "app:1", "no-such-program").returncode == 127
    assert newest() == ("failed", True, True, 1)
    assert running.run("run", "app:1", "sh", "-c", "exit 7").returncode == 7
    assert newest() == ("failed", True, True, 1)
    where = running.where / "mnt"
    where.mkdir()
    for label, learnt in ([], 1), (["--label", "job"], 2):
        running.do("attach", "app:1", where, *label)
        running.do("detach", where)
        assert newest() == ("closed", True, bool(label), learnt)
    assert running.leftovers() == []


def test_two_runs_share_a_device(running: Host) -> None:
    first = started(running, "app:1", "--", "sh", "-c", "echo up; cat")
    second = started(running, "app:1", "--", "sh", "-c", "echo up; trap 'exit 3' TERM; while :; do sleep 0.1; done")
    status = json.loads(running.do("status", "--json"))
    assert len(status["exports"]) == 1
    assert finished(first) == 0  # its standard input is empty
    assert len(containers(running)) == 1
    second.terminate()
    assert finished(second) == 3
    assert running.leftovers() == []


def test_what_a_killed_run_left_is_taken_apart_by_the_next(running: Host) -> None:
    process = started(running, "app:1", "--", "sh", "-c", "echo up; while :; do sleep 0.1; done")
    (container,) = containers(running)
    state = json.loads((container / "state.json").read_text())
    process.kill()
    process.wait(LIMIT_S)
    assert running.leftovers()
    assert running.do("run", "app:1") == "1"
    assert running.leftovers() == []
    until(lambda: not Path(f"/proc/{state['init_process_pid']}").exists())
    process.communicate()  # the container had its output, too


def test_a_signal_before_the_program_starts_leaves_nothing(running: Host) -> None:
    reached = running.where / "reached"
    wait = f"def instead(*arguments):\n    open({str(reached)!r}, 'w').close()\n    time.sleep(60)"
    process = faulty(running, "blockmap.host.devices.mounts", "mount", wait, "run", "app:1")
    until(reached.exists)
    process.terminate()
    process.terminate()
    assert finished(process) == 130
    assert running.leftovers() == []


def test_mistakes_are_explained_and_leave_nothing(running: Host, image: Path) -> None:
    done = running.run("run", "nothing:1")
    assert (done.returncode, "there is no image nothing:1" in done.stderr) == (1, True)
    (running.where / "folder").mkdir()
    running.do("import", "--quiet", running.where / "folder", "empty:1")
    done = running.run("run", "empty:1")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    running.environment["BLOCKMAP_STATE"] = str(running.where / "odd,name")
    done = running.run("run", "app:1")
    assert (done.returncode, "no way to name a path" in done.stderr) == (2, True)
    assert running.leftovers() == []


def test_a_state_on_an_overlay_uses_memory_for_what_is_written(running: Host) -> None:
    below = running.where / "below"
    for name in ("lower", "upper", "work"):
        (below / name).mkdir(parents=True)
    running.state.mkdir()
    options = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", running.state], check=True)
    try:
        said = running.do("run", "app:1", "--", "sh", "-c", "echo new >/etc/version; cat /etc/version /proc/mounts")
        assert said.startswith("new\n")
        assert "run-" not in " ".join(os.listdir(running.state / "runs"))
    finally:
        running.end_manager()
        subprocess.run(["umount", running.state], check=True)


def test_control_groups_that_cannot_be_written_or_are_absent(running: Host, need: Callable[..., None]) -> None:
    need("unshare")
    groups = "$(awk '{print $5}' /proc/self/mountinfo | grep ^/sys/fs/cgroup | sort -r)"

    def run_after(change: str, *command: str) -> subprocess.CompletedProcess[str]:
        script = f'{change}; exec "$@"'
        full = [
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            *BLOCKMAP,
            "run",
            "app:1",
            *command,
        ]
        return subprocess.run(full, env=running.environment, capture_output=True, text=True, check=False)

    done = run_after(
        f"for m in {groups}; do mount -o remount,bind,ro $m; done", "sh", "-c", "mknod /dev/x c 1 3; exit 5"
    )
    assert done.returncode == 5, done.stderr
    assert "Operation not permitted" in done.stderr  # without a group for devices, none can be made
    done = run_after(f"for m in {groups}; do umount -l $m; done", "id")
    assert done.returncode == 1
    assert "control groups" in done.stderr
    assert running.leftovers() == []


def test_a_terminal(running: Host) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            command = [
                *BLOCKMAP,
                "run",
                "app:1",
                "--",
                "sh",
                "-c",
                "test -t 0 && test -t 1 && echo is a terminal; exit 4",
            ]
            os.execve(command[0], command, running.environment)
        os._exit(99)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while piece := os.read(terminal, 4096):
            said += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    assert b"is a terminal" in said
    assert running.leftovers() == []
