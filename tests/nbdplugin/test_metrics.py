"""What Prometheus is told of a status."""

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from blockmap.server.store_log import CallLog
from blockmap.volume.histogram import BOUNDS_S
from blockmap.volume.reads import Slow, Source, Tally
from nbdplugin.metrics import StatusCollector

DIGEST = "ab" * 32


def status() -> dict[str, Any]:
    tally = Tally()
    tally.hits, tally.hit_bytes, tally.errors = 10, 40_960, 2
    tally.slow(Slow(Source.FETCHED, 0.02), 4096)
    tally.slow(Slow(Source.FETCHED, 99.0), 4096)
    return {
        "pid": 7,
        "started": 1e9,
        "seconds": 5.0,
        "opens": 3,
        "store": "/s",
        "exports": [
            {"export": f"team/app@sha256:{DIGEST}", "connections": 2, "size": 4096, "waiting": 1},
            {"export": f"team/app@sha256:{DIGEST}", "connections": 1, "size": 4096, "waiting": 0},
        ],
        "reads": [
            {"export": f"team/app@sha256:{DIGEST}", **tally.status()},
            {"export": "other", **Tally().status()},
        ],
        "remote": CallLog().status(),
        "hydrations": [],
        "traces": {"running": 2, "begun": 8, "ended": 6, "learnable": 5, "failed": 0},
        "learn": {"running": 0, "runs": 9, "failures": 1},
        "cache": {
            "bytes": 5, "cap_bytes": 10, "pinned_bytes": 0, "slots": 1, "stored": 5, "evicted": 4, "damaged": 0,
            "lost": 0, "failed_writes": 0, "missing": 0, "replaced": 0,
        },
        "fetch": {
            "requests": 2, "bytes": 7, "chunks": 3, "damaged": 0, "failed_reads": 0, "joined_reads": 1, "retries": 6, "outages": 1,
            "store_away": 1, "rtt_us": 50, "in_flight": 2,
            "bytes_per_s": 1000, "hydrated_bytes": 0, "hydrated_reads": 0, "bundles_running": 0, "bundles": 0, "bundles_failed": 0,
            "bundle_bytes": 0, "bundle_damaged_chunks": 0, "bundle_missed_reads": 0, "replays": [],
        },
    }  # fmt: skip


def told(status: dict[str, Any]) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_names_labels_and_kinds() -> None:
    found, export = told(status()), "team/app@" + DIGEST[:12]
    assert found["blockmap_start_time_seconds",] == 1e9
    assert found["blockmap_opens_total",] == 3
    assert found["blockmap_connections", export] == 3  # a version that is open under two terms is one export
    assert found["blockmap_reads_waiting", export] == 1
    assert found["blockmap_export_size_bytes", export] == 4096
    assert found["blockmap_reads_total", export, "cache"] == 10
    assert found["blockmap_reads_total", export, "fetched"] == 2
    assert found["blockmap_read_bytes_total", export, "cache"] == 40_960
    assert found["blockmap_read_errors_total", export] == 2
    assert found["blockmap_reads_total", "other", "cache"] == 0
    assert found["blockmap_cache_cap_bytes",] == 10
    assert found["blockmap_cache_evicted_total",] == 4
    assert found["blockmap_fetch_retries_total",] == 6
    assert found["blockmap_fetch_bytes_total",] == 7
    assert found["blockmap_fetch_store_away",] == 1
    assert found["blockmap_traces_running",] == 2
    assert found["blockmap_traces_begun_total",] == 8
    assert found["blockmap_learn_runs_total",] == 9


def test_buckets_are_cumulative_and_the_last_has_all() -> None:
    found, export = told(status()), "team/app@" + DIGEST[:12]
    buckets = {
        float(key[2]): value
        for key, value in found.items()
        if key[:2] == ("blockmap_read_seconds_bucket", export) and key[3] == "fetched"
    }
    assert sorted(buckets) == [*BOUNDS_S, float("inf")]
    assert buckets[0.01] == 0
    assert buckets[0.025] == buckets[50.0] == 1
    assert buckets[float("inf")] == found["blockmap_read_seconds_count", export, "fetched"] == 2
    assert found["blockmap_read_seconds_sum", export, "fetched"] == 99.02
