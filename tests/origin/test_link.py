"""What is believed about the link, from requests over links that are known."""

import random

import pytest

from blockmap.origin.link import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, Link


def fill(
    link: Link,
    rtt_s: float,
    bytes_per_s: float,
    readers: int,
    sizes: list[int],
    noise_s: float = 0.0,
    now: float = 0.0,
    rounds: int = 10,
) -> None:
    """Readers who share a link evenly: each round all ask at once, and all are answered when the link has carried it."""
    chosen = random.Random(1)
    for _ in range(rounds):
        counts = [chosen.choice(sizes) for _ in range(readers)]
        took = rtt_s + sum(counts) / bytes_per_s
        for count in counts:
            link.note(now, now + took + chosen.random() * noise_s, count)
        now += took + noise_s


@pytest.mark.parametrize("rtt_s", [0.001, 0.02, 0.2])
@pytest.mark.parametrize("bytes_per_s", [1.25e6, 12.5e6, 125e6])
@pytest.mark.parametrize("readers", [1, 4, 64])
def test_a_link_is_known_after_some_requests(rtt_s: float, bytes_per_s: float, readers: int) -> None:
    link = Link()
    link.note(0.0, rtt_s, 1)
    fill(link, rtt_s, bytes_per_s, readers, [1000, 70_000, 100_000], noise_s=min(rtt_s / 20, 2e-4))
    assert link.rtt_s == pytest.approx(rtt_s)
    assert bytes_per_s / 2 <= link.bytes_per_s <= bytes_per_s * 2


def test_readers_who_get_a_share_each_are_not_taken_for_a_slow_link() -> None:
    link = Link()
    link.note(0.0, 0.02, 1)
    fill(link, 0.02, 125e6, 64, [100_000])
    assert link.bytes_per_s > 60e6


def test_a_lone_outlier_changes_little() -> None:
    link = Link()
    link.note(0.0, 0.02, 1)
    fill(link, 0.02, 125e6, 1, [1_000_000])
    before = link.bytes_per_s
    link.note(100.0, 130.0, 1_000_000)  # stood still
    link.note(200.0, 200.0201, 1_000_000)  # was at hand already
    assert before / 2 < link.bytes_per_s < before * 2


def test_a_change_is_seen() -> None:
    link = Link()
    fill(link, 0.02, 125e6, 1, [20_000, 1_000_000])
    fill(link, 0.1, 5e6, 1, [20_000, 1_000_000], now=1000.0, rounds=60)
    assert 0.1 <= link.rtt_s < 0.11
    assert 2.5e6 < link.bytes_per_s < 10e6


def test_the_window_is_half_of_what_the_link_holds_within_limits() -> None:
    link = Link()
    assert link.window_bytes == MIN_WINDOW_BYTES
    link.rtt_s, link.bytes_per_s = 0.05, 125e6
    assert link.window_bytes == 3_125_000
    link.rtt_s = 1.0
    assert link.window_bytes == MAX_WINDOW_BYTES
    link.rtt_s = 0.0001
    assert link.window_bytes == MIN_WINDOW_BYTES


def test_clocks_that_stand_still_are_no_trap() -> None:
    link = Link()
    link.note(5.0, 5.0, 1 << 20)
    link.note(5.0, 4.0, 1 << 20)
    assert link.window_bytes == MIN_WINDOW_BYTES


@pytest.mark.parametrize(
    ("rtt_s", "mbit", "least", "most"),
    [(0.03, 25, 0, 0), (0.0005, 1000, 0, 0), (0.2, 1000, 10e6, 20e6), (0.05, 1000, 2e6, 4e6)],
)
def test_what_a_link_can_spare(rtt_s: float, mbit: float, least: float, most: float) -> None:
    link = Link()
    link.note(0.0, rtt_s, 1)
    assert link.spare_bytes == 0, "before a rate was measured"
    fill(link, rtt_s, mbit * 1e6 / 8, 1, [300_000])
    assert least <= link.spare_bytes <= most


def test_one_rate_that_is_too_high_spares_nothing() -> None:
    link = Link()
    link.note(0.0, 0.03, 1)
    fill(link, 0.03, 25e6 / 8, 1, [300_000], rounds=2)
    link.note(10.0, 10.0301, 300_000)
    assert link.spare_bytes == 0
