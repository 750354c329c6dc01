"""What counts as a round trip that a start waited for."""

from blockmap.volume.misses import PAUSE_S, Misses


def noted(*reads: tuple[float, float]) -> Misses:
    """The misses of reads, in the order in which they ended."""
    misses = Misses()
    for began, ended in sorted(reads, key=lambda read: read[1]):
        misses.note(began, ended, 0)
    return misses


def test_misses_at_once_are_one_round_trip() -> None:
    assert noted(*[(0.1 * n, 1.0 + 0.01 * n) for n in range(8)]).steps == 1
    assert noted((0.0, 1.0), (1.0, 2.0), (2.5, 3.0)).steps == 3


def test_the_longest_chain_counts() -> None:
    assert noted((0.0, 5.0), (0.1, 1.0), (1.1, 2.0), (2.1, 3.0)).steps == 3, "beside a read that took long"


def test_a_pause_begins_a_new_run() -> None:
    misses = noted((0.0, 1.0), (1.5, 2.0))
    misses.note(2.0 + PAUSE_S, 8.0, 1)
    assert misses.steps == 3
    misses.note(8.1 + PAUSE_S, 14.0, 2)
    assert misses.steps == 1
    assert misses.recent == [0, 0, 1, 2]
