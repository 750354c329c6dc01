"""Reading ahead of those who read on and on, and of nobody else."""

import random

from blockmap.fetch.readahead import FIRST_WINDOW_BYTES, MAX_WINDOW_BYTES, ReadAhead

KIB = 1 << 10
MIB = 1 << 20


def run(ahead: ReadAhead, start: int, end: int, step: int) -> list[tuple[int, int]]:
    found = [ahead.note(at, step) for at in range(start, end, step)]
    return [each for each in found if each is not None]


def test_windows_grow_follow_each_other_and_stay_ahead() -> None:
    ahead = ReadAhead()
    position, reached, windows = 0, 0, []
    for at in range(0, 200 * MIB, 128 * KIB):
        found = ahead.note(at, 128 * KIB)
        position = at + 128 * KIB
        if found is not None:
            start, end = found
            assert start == max(reached, position), "nothing twice, and nothing left out"
            windows.append(end - position)
            reached = end
        if at > MIB:
            assert reached - position >= FIRST_WINDOW_BYTES // 2
    assert windows[0] == FIRST_WINDOW_BYTES
    assert windows[-1] == MAX_WINDOW_BYTES
    assert windows == sorted(windows)


def test_who_jumps_about_is_no_stream() -> None:
    ahead, chosen = ReadAhead(), random.Random(1)
    found = [ahead.note(chosen.randrange(1 << 34), 64 * KIB) for _ in range(2000)]
    assert sum(each is not None for each in found) <= 2


def test_a_file_or_two_windows_of_a_library_are_no_stream() -> None:
    ahead = ReadAhead()
    assert run(ahead, 0, 128 * KIB, 128 * KIB) == []
    assert run(ahead, 50 * MIB, 50 * MIB + 252 * KIB, 4 * KIB) == []


def test_several_streams_at_once_and_a_jump_begins_anew() -> None:
    ahead = ReadAhead()
    for at in range(0, 8 * MIB, 64 * KIB):
        for stream in range(4):
            base = stream << 30
            found = ahead.note(base + at, 64 * KIB)
            assert found is None or base + at < found[0] < found[1] <= base + at + 64 * KIB + MAX_WINDOW_BYTES
    assert ahead.note(9 << 30, 64 * KIB) is None
    (first,) = run(ahead, (9 << 30) + 64 * KIB, (9 << 30) + 256 * KIB, 64 * KIB)
    assert first[1] - first[0] == FIRST_WINDOW_BYTES


def test_reads_that_may_begin_nothing_go_on_with_what_others_began() -> None:
    ahead = ReadAhead()
    assert [ahead.note(at, 64 * KIB, may_begin=False) for at in range(0, 4 * MIB, 64 * KIB)] == [None] * 64
    assert ahead.note(8 * MIB, 64 * KIB) is None
    found = [ahead.note(at, 64 * KIB, may_begin=False) for at in range(8 * MIB + 64 * KIB, 9 * MIB, 64 * KIB)]
    assert any(found)


def test_clients_that_send_many_reads_out_of_order_are_streams() -> None:
    ahead, chosen = ReadAhead(), random.Random(2)
    offsets = [at for base in range(0, 1024, 4) for at in chosen.sample(range(base, base + 4), 4)]
    found = [ahead.note(at * 256 * KIB, 256 * KIB) for at in offsets]
    windows = [each for each in found if each is not None]
    assert windows[-1][1] - windows[-1][0] >= MAX_WINDOW_BYTES // 2
    assert windows[-1][1] > offsets[-1] * 256 * KIB
