"""Tells systemd how a service is (sd_notify(3)), where systemd has started it."""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Sends assignments such as READY=1; does nothing where nobody asked for them, or nobody listens any more."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending, contextlib.suppress(OSError):
        sending.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        sending.sendall("\n".join(lines).encode())
