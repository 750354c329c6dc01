"""Containers that go on when the command that started them has ended."""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from blockmap.host import tools
from blockmap.host.run import folders
from tests.host.box import WAITS, Terminal, is_gone, kill_hard, listed, monitor, state
from tests.host.conftest import Host
from tests.waiting import LIMIT_S, free_ports, until

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _nothing_left(box: Host) -> Iterator[None]:
    yield
    left = box.leftovers()
    for each in folders.read_all(box.state / "runs"):
        if each.state == "ended" and left == []:
            folders.forget(box.state / "runs" / f"ended-{each.name}")
        else:
            box.do("rm", "-f", each.name)
    assert left == []


def test_from_its_start_to_its_removal(box: Host) -> None:
    assert box.do("run", "-d", "--name", "web", "app:1", "sh", "-c", f"echo up; echo oh >&2; {WAITS}") == "web\n"
    found = listed(box, "web")
    assert found is not None
    assert (found.state, found.image, found.command[:2]) == ("running", "app:1", ["sh", "-c"])
    assert box.do("ps", "-q") == "web\n"
    heading, row = box.do("ps").splitlines()
    assert heading.split() == ["NAME", "IMAGE", "COMMAND", "STATUS", "CREATED", "PORTS"]
    assert " Up " in row
    until(lambda: box.do("logs", "web") == "up\noh\n")
    assert box.do("logs", "--tail", "1", "web") == "oh\n"
    follower = box.start("logs", "-f", "web")
    assert "there is a container web already" in box.run("run", "--name", "web", "app:1").stderr
    assert "runs: stop it first" in box.run("rm", "web").stderr
    assert "still attached" in box.run("stop").stderr, "without a name, it is the server that is meant"
    box.do("stop", "web")
    assert follower.communicate(timeout=LIMIT_S)[0] == "up\noh\n"
    assert box.leftovers() == []
    assert is_gone(found.pid)
    found = listed(box, "web")
    assert found is not None
    assert (found.state, found.status, found.pid) == ("ended", 0, None)
    assert "Exited (0) " in box.do("ps", "-a")
    assert box.do("ps", "-q") == ""
    assert box.do("logs", "web") == "up\noh\n"
    box.do("stop", "web")  # as with docker
    assert "does not run" in box.run("kill", "web").stderr
    box.do("rm", "web")
    for command in ("logs", "stop", "kill", "rm"):
        assert box.run(command, "web").returncode != 0
    assert not os.path.exists(box.state / "runs/ended-web")


def test_one_that_ends_by_itself(box: Host) -> None:
    name = box.do("run", "-d", "app:1", "sh", "-c", "echo done; exit 7").strip()
    assert name.startswith("app-")
    until(lambda: state(box, name) == "ended")
    found = listed(box, name)
    assert found is not None
    assert found.status == 7
    until(lambda: box.leftovers() == [])
    assert box.do("logs", name) == "done\n"
    box.do("run", "-d", "--rm", "--name", "brief", "app:1", "id")
    until(lambda: listed(box, "brief") is None)
    until(lambda: box.leftovers() == [])


def test_mistakes_are_told_by_the_command_and_leave_nothing(box: Host) -> None:
    for program, status in (("no-such-program", 127), ("/etc/passwd", 126)):
        done = box.run("run", "-d", "app:1", program)
        assert (done.returncode, program in done.stderr, done.stdout) == (status, True, "")
    done = box.run("run", "-d", "nothing:1")
    assert (done.returncode, "there is no image nothing:1" in done.stderr) == (1, True), done.stderr
    done = box.run("run", "-d", "-u", "nosuch", "app:1")
    assert (done.returncode, "does not have" in done.stderr) == (1, True), done.stderr
    box.do("clone", "app:1", "mine")
    assert "there is a clone mine" in box.run("run", "-d", "--name", "mine", "app:1").stderr
    box.do("run", "-d", "--name", "taken", "app:1", "sleep", "1000")
    assert "there is a container taken" in box.run("clone", "app:1", "taken").stderr
    assert "there is a container taken" in box.run("fork", "mine", "taken").stderr
    box.do("rm", "-f", "taken", "mine")
    assert json.loads(box.do("ps", "-a", "--json")) == json.loads(box.do("clones", "--json")) == []


def test_the_images_own_signal_stops_it(box: Host) -> None:
    script = "trap 'echo told; exit 4' USR1; echo up; while :; do sleep 0.05; done"
    box.do("run", "-d", "--name", "svc", "--ready", "text:up", "svc:1", "sh", "-c", script)
    assert box.do("stop", "svc") == "svc\n"
    assert box.do("logs", "svc") == "up\ntold\n"
    found = listed(box, "svc")
    assert found is not None
    assert found.status == 4


def test_one_that_does_not_listen_is_ended_by_force(box: Host) -> None:
    name = box.do("run", "-d", "app:1", "sleep", "1000").strip()
    box.do("stop", "-t", "0.2", name)
    found = listed(box, name)
    assert found is not None
    assert found.status == 137
    name = box.do("run", "-d", "app:1", "sleep", "1000").strip()
    box.do("kill", name)
    name = box.do("run", "-d", "--rm", "app:1", "sh", "-c", "trap 'exit 1' USR2; while :; do sleep 0.05; done").strip()
    box.do("kill", "-s", "USR2", name)
    until(lambda: listed(box, name) is None and box.leftovers() == [])
    assert "no container nosuch" in box.run("stop", "nosuch").stderr


def test_it_is_ready_when_it_says_so_or_answers(box: Host) -> None:
    (port,) = free_ports(1)
    slow = f"echo starting; sleep 0.3; echo now.it.is; exec busybox httpd -f -p 127.0.0.1:{port} -h /data"
    box.do("run", "-d", "--name", "one", "--ready", "text:now.it.is", "app:1", "sh", "-c", slow)
    assert "now.it.is" in box.do("logs", "one")
    box.do("rm", "-f", "one")
    box.do("run", "-d", "--name", "two", "--ready", f"http:{port}/content", "app:1", "sh", "-c", slow)
    found = listed(box, "two")
    assert found is not None
    assert 0.3 < found.ready_seconds < LIMIT_S
    assert "(ready after " in box.do("ps")
    done = box.run("run", "-d", "--ready", f"tcp:{port}", "app:1")
    assert (done.returncode, "holds before the program has started" in done.stderr) == (2, True)
    # In a network of its own, nothing does.
    box.do(
        "run", "-d", "--rm", "--name", "three", "--network", "none", "--ready", f"tcp:{port}", "app:1", "sh", "-c", slow
    )
    box.do("rm", "-f", "two", "three")


def test_it_may_never_be_ready(box: Host) -> None:
    done = box.run("run", "-d", "--name", "late", "--ready", "text:never", "--seconds", "0.2", "app:1", "sleep", "1000")
    assert (done.returncode, "text:never did not hold within 0.2 s; late goes on" in done.stderr) == (1, True), (
        done.stderr
    )
    assert box.do("ps", "-q") == "late\n"
    box.do("rm", "-f", "late")
    done = box.run("run", "-d", "--rm", "--ready", "text:never", "app:1", "sh", "-c", "echo alas; exit 3")
    assert (done.returncode, "ended with status 3 before text:never held; it said: alas" in done.stderr) == (1, True)
    until(lambda: box.leftovers() == [])


def check_that_programs_run_in(box: Host, name: str) -> None:
    done = box.run("exec", name, "sh", "-c", "echo in")
    if tools.is_chroot():
        assert "exec does not work below a chroot" in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("in\n", "")


def test_programs_run_in_it(box: Host) -> None:
    if tools.is_chroot():
        pytest.skip("needs a host whose root is no chroot")
    box.do("run", "-d", "--name", "web", "-e", "MINE=1", "svc:1")
    shown = "id -u; pwd; echo $MINE $COLOUR $HOME; exit 3"
    done = box.run("exec", "-e", "COLOUR=red", "web", "sh", "-c", shown)
    assert (done.stdout, done.returncode) == ("1234\n/\n1 red /home/app\n", 3)
    done = box.run("exec", "-u", "root", "-w", "/etc", "web", "sh", "-c", f"{shown}; exit 0")
    assert done.stdout == "0\n/etc\n1 /root\n"
    effective = box.do("exec", "-u", "0", "web", "busybox", "grep", "CapEff", "/proc/self/status")
    assert int(effective.split()[1], 16) != 0
    effective = box.do("exec", "web", "busybox", "grep", "-E", "CapEff|NoNewPrivs|Seccomp:", "/proc/self/status")
    assert effective.split()[1::2] == ["0000000000000000", "1", "2"]
    assert box.run("exec", "web", "sh", "-c", "read x; echo $x", text="typed\n").stdout == "typed\n"
    for program, status in (("no-such-program", 127), ("/etc/passwd", 126)):
        done = box.run("exec", "web", program)
        assert (done.returncode, program in done.stderr) == (status, True), done.stderr
    terminal = Terminal(box, "exec", "-it", "web", "sh", "-c", "test -t 0 && echo is a terminal; busybox ps")
    assert terminal.end() == 0
    assert b"is a terminal" in terminal.said
    assert b"sleep 1000" in terminal.said
    assert list((box.state / "runs/run-web").glob("exec-*")) == []
    box.do("rm", "-f", "web")
    assert "no container web" in box.run("exec", "web", "id").stderr


def test_a_run_that_somebody_waits_for_is_one_as_well(box: Host) -> None:
    process = box.start("run", "--name", "front", "app:1", "sh", "-c", f"echo up; {WAITS}")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert box.do("ps", "-q") == "front\n"
    assert "does not run detached" in box.run("logs", "front").stderr
    check_that_programs_run_in(box, "front")
    box.do("stop", "front")
    assert (process.wait(LIMIT_S), listed(box, "front")) == (0, None)
    process.communicate()


def test_a_shell_with_a_terminal_waits(box: Host) -> None:
    box.do("run", "-dit", "--name", "shell", "app:1", "sh", "-c", "test -t 0 && echo is a terminal; read line")
    until(lambda: "is a terminal" in box.run("logs", "shell").stdout)
    box.do("run", "-di", "--name", "input", "app:1", "cat")
    assert box.do("ps", "-q").split() == ["input", "shell"]
    box.do("rm", "-f", "shell", "input")


def test_it_survives_the_command_that_started_it(box: Host) -> None:
    starting = box.start("run", "-d", "--name", "web", "--ready", "text:go", "app:1", "sh", "-c", f"echo up; {WAITS}")
    until(lambda: state(box, "web") == "running")
    starting.kill()
    starting.communicate()
    check_that_programs_run_in(box, "web")
    box.do("run", "app:1", "id")  # which takes apart what is left of others
    assert box.do("ps", "-q") == "web\n"
    box.do("stop", "web")
    found = listed(box, "web")
    assert found is not None
    assert found.status == 0


def test_it_survives_its_monitor(box: Host) -> None:
    script = f"trap 'echo told; exit 0' TERM; echo up; {WAITS.partition('; ')[2]}"
    box.do("run", "-d", "--name", "web", "--ready", "text:up", "app:1", "sh", "-c", script)
    found = listed(box, "web")
    assert found is not None
    kill_hard(monitor(box, "web"))
    box.do("run", "app:1", "id")  # which takes apart what is left of others
    assert box.do("ps", "-q") == "web\n"
    check_that_programs_run_in(box, "web")
    box.do("stop", "web")
    assert box.leftovers() == []
    assert is_gone(found.pid)
    assert box.do("logs", "web") == "up\ntold\n"
    found = listed(box, "web")
    assert found is not None
    assert (found.state, found.status, found.ended) == ("ended", None, None)
    assert "Ended unseen" in box.do("ps", "-a")


def test_what_ended_unseen_is_taken_apart_by_the_next_run(box: Host) -> None:
    """As after a reboot, when neither the program nor its monitor is there any more."""
    box.do("run", "-d", "--name", "web", "--ready", "text:up", "app:1", "sh", "-c", f"echo up; {WAITS}")
    found = listed(box, "web")
    assert found is not None
    kill_hard(monitor(box, "web"))
    kill_hard(found.pid)
    until(lambda: state(box, "web") == "ended")
    assert box.leftovers() != []
    box.do("run", "app:1", "id")
    assert box.leftovers() == []
    assert box.do("logs", "web") == "up\n"


def test_another_boots_processes_are_not_taken_for_a_container(box: Host) -> None:
    box.do("run", "-d", "--name", "web", "app:1", "sleep", "1000")
    about = box.state / "runs/run-web/container.json"
    told = about.read_text()
    about.write_text(json.dumps({**json.loads(told), "boot": "another"}))
    kill_hard(monitor(box, "web"))
    found = listed(box, "web")
    assert found is not None
    assert (found.state, found.pid) == ("ended", None)
    about.write_text(told)
    box.do("rm", "-f", "web")


def test_it_survives_the_server(box: Host) -> None:
    box.do(
        "run", "-d", "--name", "web", "app:1", "sleep", "1000"
    )  # which reads nothing any more: nbdfuse dies with the server
    box.stop()
    box.serve()
    assert box.do("ps", "-q") == "web\n"
    box.do("kill", "web")
    assert box.leftovers() == []


def test_a_program_on_a_clone_of_which_versions_are_made(box: Host) -> None:
    box.do("clone", "app:1", "mine")
    script = f"echo new >/data/new; echo up; {WAITS}"
    options = ["-d", "--name", "on-mine", "--clone", "--every", "1s", "--to", "made:1", "--ready", "text:up"]
    box.do("run", *options, "mine", "sh", "-c", script)
    until(lambda: box.run("log", "made:1").returncode == 0)
    box.do("stop", "on-mine")
    assert box.do("run", "made:1", "cat", "/data/new") == "new\n"
    box.do("rm", "on-mine", "mine")


def test_nothing_of_it_goes_on_without_it(box: Host) -> None:
    """The monitor is told to end, as when the host shuts down, and ends the program first."""
    box.do("run", "-d", "--name", "web", "--ready", "text:up", "app:1", "sh", "-c", f"echo up; {WAITS}")
    pid = monitor(box, "web")
    os.kill(pid, signal.SIGTERM)
    until(lambda: is_gone(pid))
    found = listed(box, "web")
    assert found is not None
    assert (found.state, found.status) == ("ended", 0)
