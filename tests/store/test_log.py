"""Dense logs: the newest in few steps, one winner for each number, lost answers."""

import pytest

from blockmap.errors import StoreUnavailable
from blockmap.store.log import DenseLog, LogReader, nonce
from blockmap.store.memory import MemoryStore
from tests.store.faulty import ExistsCounter, Faulty


def key(n: int) -> str:
    return f"log/{n:04d}"


def is_faster(store: Faulty, n: int) -> None:
    """Lets another writer take a number in front of the next create."""

    def take() -> None:
        assert DenseLog(store.inner, key).append(n, b"winner", "it was added") is None

    store.before_create = take


def filled(length: int) -> MemoryStore:
    store = MemoryStore()
    for n in range(1, length + 1):
        assert DenseLog(store, key).append(n, b"%d" % n, "it was added") is None
    return store


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100])
def test_the_newest_is_found_from_any_number_that_is_there(length: int) -> None:
    store = filled(length)
    for low in range(length + 1):
        counted = ExistsCounter(store)
        assert LogReader(counted, key).newest(low) == length
        assert counted.asked <= 2 * (length - low).bit_length() + 2
    if length:
        assert LogReader(store, key).get(length) == b"%d" % length


def test_the_loser_is_given_the_entry_of_the_winner() -> None:
    store = Faulty(filled(3))
    is_faster(store, 4)
    assert DenseLog(store, key).append(4, b"loser", "it was added") == b"winner"
    assert LogReader(store, key).newest() == 4


def test_a_lost_answer_is_read_back() -> None:
    store = Faulty(MemoryStore())
    store.lose_answer = True
    assert DenseLog(store, key).append(1, b"mine", "it was added") is None
    assert LogReader(store, key).newest() == 1
    is_faster(store, 2)
    store.fail_create = True
    assert DenseLog(store, key).append(2, b"mine", "it was added") == b"winner"


def test_a_create_that_did_not_happen_is_said() -> None:
    store = Faulty(MemoryStore())
    store.fail_create = True
    with pytest.raises(StoreUnavailable, match="before the request"):
        DenseLog(store, key).append(1, b"mine", "it was added")
    assert LogReader(store, key).newest() == 0


def test_an_outcome_that_cannot_be_known_is_said() -> None:
    store = Faulty(MemoryStore())
    store.lose_answer = store.down = True
    with pytest.raises(StoreUnavailable, match="whether it was added is not known"):
        DenseLog(store, key).append(1, b"mine", "it was added")


def test_no_two_nonces_are_equal() -> None:
    assert len({nonce() for _ in range(100)}) == 100
