"""Checks of the server of this host."""

import blockmap
from blockmap.control.messages import ServerStatus
from blockmap.errors import HostError
from blockmap.host.doctor.finding import Check, Examined, Finding, fault, ok, skipped, warning
from blockmap.host.serve.listening import is_owned
from blockmap.local.paths import control_socket
from blockmap.store.opening import location


def _server(subject: Examined) -> Finding:
    if not subject.socket.exists() and not control_socket(subject.socket).exists():
        return skipped(f"none is at {subject.socket}: attach and run start one when they need it")
    try:
        status = subject.client.status()
    except HostError as error:
        return _no_answer(subject, error)
    if not ServerStatus.__required_keys__ <= status.keys() or status["version"] != blockmap.__version__:
        return fault(
            f"the server at {subject.socket} is of release {status.get('version', 'unknown')}, and this is {blockmap.__version__}",
            "blockmap stop; it is started anew when it is needed, and a unit by systemctl restart blockmap",
        )
    if subject.store and location(subject.store) != status["store"]:
        return warning(
            f"the server serves {status['store']}, and {subject.store} is named here",
            "correct --store or BLOCKMAP_STORE, or name another server with --socket",
        )
    return ok(f"process {status['supervisor']['pid']} answers, of this release, up {status['seconds']:.0f} s")


def _no_answer(subject: Examined, error: HostError) -> Finding:
    if isinstance(error.__cause__, PermissionError):
        return skipped(f"this user may not ask the server at {subject.socket}")
    if is_owned(subject.socket):
        return fault(
            f"a server runs at {subject.socket} and does not answer",
            "its log says why: journalctl -u blockmap, or SOCKET.log",
        )
    return fault(
        f"nobody listens at {subject.socket}, which a server that was killed left",
        "start a server with `blockmap serve`, or anything that needs one: it takes the place over",
    )


CHECKS = (Check("server", _server),)
