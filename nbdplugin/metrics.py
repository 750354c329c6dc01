"""Serves the server's status to Prometheus, over HTTP on a socket that is passed in."""

import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from blockmap.format.refs import short_export

_IDLE_SECONDS = 30
_NO_POLL_SECONDS = 3600.0
_CLIENTS_AT_ONCE = 32
"""Clients that are answered at once: they must not use up the descriptors of a process that serves disks."""
_log = logging.getLogger("blockmap")

_GAUGES = {
    "cache": {
        "bytes": "Content in the host's cache",
        "cap_bytes": "The most that the cache may hold",
        "pinned_bytes": "Content in the cache that is not evicted",
        "slots": "Chunks and nodes in the cache",
        "missing": "1 while the cache's directory is gone and cannot be made again",
    },
    "fetch": {
        "store_away": "1 while the store does not answer",
        "in_flight": "Chunks and nodes that are being fetched, or written to the cache",
        "bundles_running": "Bundles of starts that are being fetched",
        "bytes_per_s": "The link's rate, as measured",
        "rtt_us": "The link's round trip in microseconds, as measured",
    },
    "traces": {"running": "Starts that are being recorded"},
    "learn": {"running": "Processes that learn from starts, and traces that wait for one"},
}
_COUNTERS = {
    "cache": {
        "stored": "Chunks and nodes written to the cache",
        "evicted": "Chunks and nodes evicted for want of room",
        "damaged": "Chunks and nodes dropped because their checksums did not match",
        "lost": "Chunks and nodes on record that are not in the cache, since a server was killed or the host went down",
        "failed_writes": "Chunks and nodes that the disk did not take",
        "replaced": "Times that the cache's directory was removed or replaced while it was in use",
    },
    "fetch": {
        "requests": "Ranges fetched from packs",
        "bytes": "Bytes of ranges fetched from packs",
        "chunks": "Chunks and nodes that came from packs",
        "damaged": "Chunks and nodes that were damaged on arrival",
        "failed_reads": "Reads that did not get what they needed from the store",
        "joined_reads": "Reads that waited for a request of another read",
        "retries": "Requests made again because the store did not answer",
        "outages": "Times that the store stopped answering",
        "hydrated_bytes": "Bytes brought ahead of starts that went on missing; `bytes` counts them too",
        "hydrated_reads": "Chunks of these that were read before they were in the cache",
        "bundles": "Bundles of starts that were fetched",
        "bundles_failed": "Bundles that could not be fetched, or were damaged",
        "bundle_bytes": "Bytes of bundles",
        "bundle_damaged_chunks": "Chunks that were damaged in bundles",
        "bundle_missed_reads": "Reads of blocks that a bundle lacks, while it was replayed",
    },
    "traces": {
        "begun": "Traces of starts begun",
        "ended": "Traces of starts ended",
        "learnable": "Traces that show all that a start needs: the host had nothing of the image",
        "failed": "Traces that could not be written",
    },
    "learn": {
        "runs": "Processes that were started to learn from a start",
        "failures": "Processes that failed to learn from a start",
    },
}
"""Help texts by part of the status and number."""


class StatusCollector(Collector):
    """Renders a status at each scrape."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily(
            "blockmap_start_time_seconds", "When the server started, in Unix time", value=status["started"]
        )
        yield CounterMetricFamily("blockmap_opens", "Opens of exports by clients", value=status["opens"])
        yield from _open_exports(status["exports"])
        yield from _reads(status["reads"])
        yield from _remote(status["remote"])
        yield from _hydrations(status["hydrations"])
        for kind, parts in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for part, numbers in parts.items():
                for name, about in numbers.items():
                    yield kind(f"blockmap_{part}_{name}", about, value=status[part][name])


def _open_exports(exports: list[dict[str, Any]]) -> Iterator[Metric]:
    # A version may be open more than once, under different outage policies.
    connections = GaugeMetricFamily("blockmap_connections", "Open connections", labels=["export"])
    waiting = GaugeMetricFamily(
        "blockmap_reads_waiting", "Reads under way that the hit path did not answer", labels=["export"]
    )
    size = GaugeMetricFamily("blockmap_export_size", "Size of an open export", labels=["export"], unit="bytes")
    for name in dict.fromkeys(each["export"] for each in exports):
        same = [each for each in exports if each["export"] == name]
        label = [short_export(name)]
        connections.add_metric(label, sum(each["connections"] for each in same))
        waiting.add_metric(label, sum(each["waiting"] for each in same))
        size.add_metric(label, same[0]["size"])
    yield from (connections, waiting, size)


def _reads(reads: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["export", "source"]
    count = CounterMetricFamily("blockmap_reads", "Reads answered, by where the bytes came from", labels=labels)
    size = CounterMetricFamily("blockmap_read_bytes", "Bytes of reads answered", labels=labels)
    latency = HistogramMetricFamily(
        "blockmap_read",
        "Time in the server; of most cache hits, one of 64 is measured and counts for all",
        labels=labels,
        unit="seconds",
    )
    errors = CounterMetricFamily("blockmap_read_errors", "Reads answered with an error", labels=["export"])
    for each in reads:
        export = short_export(each["export"])
        errors.add_metric([export], each["errors"])
        for source, served in each["sources"].items():
            count.add_metric([export, source], served["reads"])
            size.add_metric([export, source], served["bytes"])
            latency.add_metric([export, source], *_histogram(served["latency"]))
    yield from (count, size, latency, errors)


def _remote(remote: dict[str, Any]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "blockmap_remote_requests", "Calls of the store that ended, by outcome", labels=["op", "outcome"]
    )
    size = CounterMetricFamily("blockmap_remote_bytes", "Content that came from the store", labels=["op"])
    latency = HistogramMetricFamily("blockmap_remote", "Time of calls of the store", labels=["op"], unit="seconds")
    for op, each in remote["ops"].items():
        for outcome, number in each["outcomes"].items():
            requests.add_metric([op, outcome], number)
        size.add_metric([op], each["bytes"])
        latency.add_metric([op], *_histogram(each["latency"]))
    yield from (requests, size, latency)


def _hydrations(hydrations: list[dict[str, Any]]) -> Iterator[Metric]:
    running = GaugeMetricFamily(
        "blockmap_hydration_running", "1 while all of an image is being fetched", labels=["export"]
    )
    size = GaugeMetricFamily(
        "blockmap_hydration", "Bytes on this host of an image that is, or was to be, fetched as a whole", labels=["export"],
        unit="bytes",
    )  # fmt: skip
    for each in hydrations:
        export = short_export(each["export"])
        running.add_metric([export], each["state"] == "running")
        size.add_metric([export], each["bytes"])
    yield from (running, size)


def _histogram(latency: dict[str, Any]) -> tuple[list[tuple[str, float]], float]:
    """Returns cumulative buckets with their upper ends, and the sum."""
    ends = [*map(str, latency["bounds_s"]), "+Inf"]
    return list(zip(ends, accumulate(latency["counts"]), strict=True)), latency["seconds"]


class MetricsServer(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Answers HTTP on a listening socket, Unix or TCP; each client in a thread that nothing waits for."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, status: Callable[[], dict[str, Any]]) -> None:
        super().__init__(listening.getsockname(), _Handler)
        self._listening = listening
        listening.setblocking(True)
        self._free = threading.Semaphore(_CLIENTS_AT_ONCE)
        self.registry = CollectorRegistry()
        self.registry.register(StatusCollector(status))
        ProcessCollector(registry=self.registry)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(_NO_POLL_SECONDS,), name="metrics", daemon=True).start()

    def fileno(self) -> int:
        return self._listening.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self._listening.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client's end
            _log.warning("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Answers with the metrics, whatever the path: Prometheus asks for /metrics, a person may not."""
        assert isinstance(self.server, MetricsServer)
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception:
            _log.exception("the metrics cannot be rendered")
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Does nothing: scrapes are not logged."""
