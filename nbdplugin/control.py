"""The control socket: one JSON object per line each way, for `attach`, `run` and `status`.

A request has `v` (1) and `op`; the answer has `ok`, and what was asked for or `error`. Only root and the server's own user
are answered.

    op        more in the request   more in the answer
    status                          pid, started (Unix time), seconds (since then), asked, store, exports, opened,
                                    unconfirmed (opens while the store did not answer), reads, remote, fetch, cache
    calls     since                 first, calls: what was asked of the store from call number `since` on, in the order in
                                    which it ended, each [op, key, start, seconds, bytes, error]; number of the first
                                    (more than `since` where calls are forgotten); start by the monotonic clock
    names                           names: [export, description]
    readings  export                profile, readings, soon: number of the profile that is replayed for it (0: none, or
                                    one of this host alone); what its starts read, in order: [first block, blocks, path
                                    or null, first block in it]; and how many of these blocks come within a moment
    hydrate   export                -: begins to bring all of it into the cache
    resolve   export                export: the name by digest of the version that it stands for now
    config    export                config: the OCI image configuration, as text
    expect    export, new, exact    a device that is new to the host is about to be made: the next trace of this
                                    export (with its label) is evidence; exact: the kernel reads nothing ahead
    ready     export                trace: the file of the trace that ended so, or null; the program can be used
    traces                          traces: those that run, and the latest, each with path, export, label, started, reads,
                                    state, new, exact, ready_ms, profile

`asked` counts requests other than status, calls and traces: whoever resolves a name is about to open it.
"""

import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from blockmap.errors import BlockmapError, UsageError
from blockmap.format.reading_list import ReadItem
from blockmap.format.refs import DEFAULT_LABEL
from blockmap.learn.local_files import LocalProfiles
from blockmap.learn.port_profile import read_items
from blockmap.server.server import Server
from blockmap.trace.manager import TraceManager

VERSION = 1
_MAX_LINE = 1 << 16
_IDLE_SECONDS = 60
_CALLS_AT_ONCE = 2048
"""Some 300 kB: it is made in one go, in which no read gets on."""
_log = logging.getLogger("blockmap")


class Control:
    """Answers on a listening Unix socket, each client in a thread of its own."""

    def __init__(
        self,
        listening: socket.socket,
        exports: Server,
        starts: TraceManager,
        kept: LocalProfiles,
        status: Callable[[], dict[str, object]],
    ) -> None:
        self._listening = listening
        self._exports = exports
        self._starts = starts
        self._kept = kept
        self._status = status
        self._lock = threading.Lock()  # guards _asked
        self._asked = 0

    def start(self) -> None:
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        self._listening.setblocking(True)
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError as error:
                _log.error("the control socket failed: %s", error)
                return
            threading.Thread(target=self.serve, args=(client,), name="control client", daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        """Answers one client until it hangs up, says nothing for a minute, or sends a line without an end."""
        with client:
            _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, os.geteuid()):
                _log.warning("a control client with uid %d was refused", uid)
                return
            client.settimeout(_IDLE_SECONDS)
            try:
                with client.makefile("rb") as lines:
                    while line := lines.readline(_MAX_LINE):
                        client.sendall(json.dumps(self.answer(line)).encode() + b"\n")
                        if not line.endswith(b"\n"):
                            return
            except OSError:
                return

    def answer(self, line: bytes) -> dict[str, Any]:
        """The answer to one request, whatever it is."""
        try:
            if not line.endswith(b"\n"):
                raise UsageError(f"a request ends with a newline, and has {_MAX_LINE} bytes at most")
            request = _parse(line)
            return {"ok": True, "v": VERSION, **self._do(request)}
        except BlockmapError as error:
            return {"ok": False, "v": VERSION, "kind": type(error).__name__, "error": str(error)}
        except Exception as error:
            _log.exception("a control request failed")
            return {
                "ok": False,
                "v": VERSION,
                "kind": "HostError",
                "error": f"the server failed: {error!r}; see its log",
            }

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        op, export = request.get("op"), request.get("export", "")
        if op == "status":
            return {"asked": self._asked, **self._status()}
        if op == "calls":
            return self._calls(request.get("since", 0))
        if op == "traces":
            return {"traces": self._starts.traces()}
        with self._lock:
            self._asked += 1
        if not isinstance(export, str):
            raise UsageError(f"export is a name, not {export!r}")
        if op == "names":
            return {"names": self._exports.names()}
        if op == "resolve":
            return {"export": self._exports.resolve(export)}
        if op == "hydrate":
            self._exports.hydrate(export)
            return {}
        if op == "readings":
            number, found, soon = self._exports.readings(export)
            if not number:
                found = self._kept_readings(export)
            told = [(each.start, each.blocks, each.path and os.fsdecode(each.path), each.at) for each in found]
            return {"profile": number, "readings": told, "soon": soon}
        if op == "config":
            return {"config": self._exports.config(export).decode("utf-8", "replace")}
        if op == "expect":
            return self._expect(export, request.get("new"), request.get("exact", False))
        if op == "ready":
            trace = self._starts.ready(*self._start_of(export))
            return {"trace": None if trace is None else str(trace)}
        raise UsageError(
            f"{op!r} is not an operation of this server: status, calls, traces, names, hydrate, readings, resolve, config, "
            "expect and ready are"
        )

    def _kept_readings(self, export: str) -> list[ReadItem]:
        """What a profile says that only this host has, of the very version."""
        pinned, label = self._start_of(export)
        repo, _, digest = pinned.partition("@sha256:")
        own = self._kept.get(repo, label)
        return read_items(own.items) if own is not None and own.version.hex() == digest else []

    def _expect(self, export: str, new: object, exact: object) -> dict[str, Any]:
        if new is not True or type(exact) is not bool:
            raise UsageError(f"new is true, and exact is true or false, not {new!r} and {exact!r}")
        self._starts.expect(*self._start_of(export), exact)
        return {}

    def _start_of(self, export: str) -> tuple[str, str]:
        """The export by digest, and the label."""
        pinned, _, label = self._exports.resolve(export).partition("+")
        return pinned, label or DEFAULT_LABEL

    def _calls(self, since: object) -> dict[str, Any]:
        if type(since) is not int or since < 0:
            raise UsageError(f"since is the number of a call, not {since!r}")
        first, calls = self._exports.calls.since(since, _CALLS_AT_ONCE)
        return {"first": first, "calls": [astuple(call) for call in calls]}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {error}") from error
    if not isinstance(request, dict) or request.get("v") != VERSION:
        raise UsageError(f"a request is a JSON object with v: {VERSION}, on one line")
    return request
