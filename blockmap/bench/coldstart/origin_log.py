"""Reads the far side's log of requests: what one start asked for, and when."""

from collections.abc import Iterable
from dataclasses import dataclass

from blockmap.store.call import Call

LOG_FORMAT = "$msec $request_time $connection $status $bytes_sent $http_host $request_method $request_uri"
"""The format for nginx: when the answer was written (Unix time), seconds since the request came, and what it was."""
_FIELDS = 8
_CLOCK_S = 0.001
"""The resolution of nginx's clock."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request as the far side saw it; times are Unix time in seconds."""

    start_s: float
    end_s: float
    connection: int
    status: int
    sent_bytes: int
    """Bytes of the answer with its headers."""
    host: str
    """To whom it was addressed, HOST:PORT: the link by which it came."""
    method: str
    target: str


def parse(lines: Iterable[str]) -> list[LoggedRequest]:
    """Returns the requests of a log in the order in which they began; what was no request (a TLS greeting, say) is left out."""
    found = []
    for line in lines:
        fields = line.split(maxsplit=_FIELDS - 1)
        if len(fields) < _FIELDS or not fields[6].isalpha():
            continue
        end, taken, connection, status, sent, host, method, target = fields
        found.append(
            LoggedRequest(
                float(end) - float(taken),
                float(end),
                int(connection),
                int(status),
                int(sent),
                host,
                method,
                target.strip(),
            )
        )
    return sorted(found, key=lambda request: request.start_s)


def at_client(requests: Iterable[LoggedRequest], rtt_s: float) -> list[Call]:
    """Returns the requests as their client sees them: each begins half a round trip earlier, and ends half of one later."""
    return [
        Call(
            request.method,
            request.target,
            request.start_s - rtt_s / 2 + _CLOCK_S,
            request.end_s - request.start_s + rtt_s - 2 * _CLOCK_S,
            request.sent_bytes,
            None,
        )
        for request in requests
    ]
