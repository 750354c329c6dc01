"""Threads for what may take long."""

import threading
import time

from blockmap.store.crew import Crew
from tests.waiting import until


def test_acts_run_at_once_up_to_the_limit_and_then_in_order() -> None:
    crew, gate, running = Crew(3, "test"), threading.Event(), []

    def act(number: int) -> None:
        running.append(number)
        gate.wait(20)

    for number in range(6):
        crew.run(lambda number=number: act(number))
    until(lambda: len(running) == 3)
    assert sum(each.name == "test" for each in threading.enumerate()) == 3
    gate.set()
    crew.close(20)
    assert sorted(running[:3]) == [0, 1, 2]
    assert sorted(running) == list(range(6))
    assert not any(each.name == "test" for each in threading.enumerate())


def test_threads_are_used_again() -> None:
    crew, done = Crew(8, "again"), []
    for number in range(50):
        crew.run(lambda number=number: done.append(number))
        until(lambda number=number: len(done) == number + 1)
        time.sleep(0.001)
    assert sum(each.name == "again" for each in threading.enumerate()) <= 2
    crew.close(20)


def test_what_fails_ends_no_thread() -> None:
    crew, done = Crew(1, "fails"), threading.Event()
    crew.run(lambda: [][1])
    crew.run(done.set)
    assert done.wait(20)
    crew.close(20)


def test_the_end_does_not_wait_for_what_hangs() -> None:
    crew, gate = Crew(1, "hangs"), threading.Event()
    crew.run(lambda: gate.wait(20))
    began = time.monotonic()
    crew.close(0.1)
    assert time.monotonic() - began < 10
    crew.run(gate.set)
    assert not gate.is_set(), "nothing is taken any more"
    gate.set()
