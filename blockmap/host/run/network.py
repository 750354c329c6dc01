"""Gives a container a network: the host's, none, one that is there, or one of its own behind pasta or slirp4netns."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.host.devices import mounts
from blockmap.host.run.container import Surroundings
from blockmap.host.run.options import HOST, NAMESPACE, NONE, PROGRAMS, PublishedPort, RunOptions

_START_SECONDS = 10.0
_POLL_SECONDS = 0.005
_PASTA_DNS = "169.254.1.1"
"""Where pasta takes questions for the host's name server: a link-local address, as podman has it."""
_SLIRP_DNS = "10.0.2.3"
"""Where slirp4netns does, always."""


def installed() -> list[str]:
    """Returns which of the programs that connect networks there are."""
    return [each for each in PROGRAMS if shutil.which(each) or shutil.which(each, path=tools.SEARCH)]


def connect(options: RunOptions, name: str, work: Path, root: Path, *, supervised: bool) -> Surroundings:
    """Returns what the container is put into, its network there and connected; HostError.

    What it makes lies in `work`, and `disconnect` takes it apart.
    """
    network = options.network
    if network == HOST:
        if options.hostname is None:
            return Surroundings(root, os.uname().nodename, supervised=supervised)
        own = Path("/etc/hosts").read_text(errors="surrogateescape") if os.path.exists("/etc/hosts") else ""
        files = (_hosts(work, own, options.hostname), ("/etc/resolv.conf", "/etc/resolv.conf"))
        return Surroundings(root, options.hostname, files=files, supervised=supervised)
    hostname = options.hostname or name.replace("_", "-").replace(".", "-")[:63]
    entry, server = {"type": "network"}, None
    if network.startswith(NAMESPACE):
        entry["path"] = network[len(NAMESPACE) :]
        if not os.path.exists(entry["path"]):
            raise HostError(f"there is no network namespace {entry['path']}: `ip netns add NAME` makes /run/netns/NAME")
    elif network != NONE:
        tools.find(network)
        namespace = work / "netns"
        namespace.touch()
        tools.run("unshare", f"--net={namespace}", "true")
        entry["path"] = str(namespace)
        connected, server = (_pasta, _PASTA_DNS) if network == "pasta" else (_slirp, _SLIRP_DNS)
        connected(options, namespace, work)
    local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    files = (_hosts(work, local, hostname), _resolver(work, server))
    return Surroundings(root, hostname, entry, files, supervised=supervised)


def disconnect(work: Path) -> None:
    """Ends the program that connects a container's network, and takes its namespace apart."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((work / "network.pid").read_text())
        if str(work) in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    mounts.unmount(work / "netns")


def _pasta(options: RunOptions, namespace: Path, work: Path) -> None:
    arguments = [
        "--config-net",
        "--no-map-gw",
        "--dns-forward",
        _PASTA_DNS,
        "--pid",
        str(work / "network.pid"),
        "--quiet",
    ]
    for protocol, option in (("tcp", "-t"), ("udp", "-u")):
        own = [each for each in options.ports if each.protocol == protocol]
        arguments += [word for each in own for word in (option, _pasta_port(each))] or [option, "none"]
    # As nobody, which it becomes by default, it could not enter the namespace: so it keeps root's number, without its capabilities.
    # It stays in the background, and ends by itself when the namespace's file has gone.
    command = ["--runas", "0", *arguments, "-T", "none", "-U", "none", "--netns-only", "--netns", str(namespace)]
    done = subprocess.run([tools.find("pasta"), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line and not line.endswith("to syslog")]
        why = said[-1] if said else f"exit status {done.returncode}"
        raise HostError(f"pasta cannot connect the container: {why}; where a port is taken, `ss -lntup` says by whom")


def _pasta_port(port: PublishedPort) -> str:
    return f"{port.address}{'/' if port.address else ''}{port.host}:{port.container}"


def _slirp(options: RunOptions, namespace: Path, work: Path) -> None:
    # By its folder's descriptor and by name: the path of a socket has 107 bytes at most.
    log, folder = work / "network.log", os.open(work, os.O_PATH | os.O_CLOEXEC)
    api = f"/proc/self/fd/{folder}/network.socket"
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [
                tools.find("slirp4netns"), "--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path",
                "--api-socket=network.socket", str(namespace), "tap0",
            ],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, cwd=work,
        )  # fmt: skip
    (work / "network.pid").write_text(str(process.pid))
    deadline = time.monotonic() + _START_SECONDS
    while not os.path.exists(api):
        if process.poll() is not None or time.monotonic() > deadline:
            raise HostError(
                f"slirp4netns did not start: {log.read_text(errors='replace').strip() or 'it said nothing'}"
            )
        time.sleep(_POLL_SECONDS)
    for port in options.ports:
        wanted = {
            "proto": port.protocol, "host_addr": port.address or "0.0.0.0", "host_port": port.host, "guest_port": port.container,
        }  # fmt: skip
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(api)
            asked.sendall(json.dumps({"execute": "add_hostfwd", "arguments": wanted}).encode())
            asked.shutdown(socket.SHUT_WR)
            answer = json.loads(asked.makefile("rb").read())
        if "error" in answer:
            raise HostError(
                f"slirp4netns cannot publish {port}: another program may have the port, `ss -lntup` says which"
            )
    os.close(folder)


def _hosts(work: Path, own: str, hostname: str) -> tuple[str, str]:
    path = work / "hosts"
    path.write_text(f"{own.rstrip()}\n127.0.1.1\t{hostname}\n", errors="surrogateescape")
    return "/etc/hosts", str(path)


def _resolver(work: Path, address: str | None) -> tuple[str, str]:
    """Makes the /etc/resolv.conf of a network of its own: the host's, without name servers that only the host reaches, and with
    that of the program which asks for it."""
    try:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    kept = [line for line in lines if not _is_local_server(line)]
    path = work / "resolv.conf"
    path.write_text("".join(f"{line}\n" for line in [*([f"nameserver {address}"] if address else []), *kept]))
    return "/etc/resolv.conf", str(path)


def _is_local_server(line: str) -> bool:
    """Returns True if a line of resolv.conf(5) names a server on the host's loopback."""
    words = line.split()
    return len(words) > 1 and words[0] == "nameserver" and (words[1].startswith("127.") or words[1] == "::1")
