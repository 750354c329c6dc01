"""The order in which frames are decoded."""

from blockmap.replay.frames import BundleFrame, FrameQueue


def frame(number: int, wanted: bool) -> BundleFrame:
    return BundleFrame(number, 0, wanted)


def test_what_is_wanted_comes_by_number_and_the_rest_when_all_is() -> None:
    queue = FrameQueue()
    frames = [frame(number, number < 3) for number in range(5)]
    for number in (4, 2, 0, 3, 1):
        queue.put(frames[number], memoryview(bytes([number])))
    assert queue.has_others
    assert [queue.take() for _ in range(3)] == [(frames[number], bytes([number])) for number in range(3)]
    assert not queue
    queue.want_all()
    assert not queue.has_others
    assert [queue.take()[0] for _ in range(2)] == frames[3:]
    assert not queue


def test_who_reads_one_of_the_rest_gets_it_once() -> None:
    queue, own, late = FrameQueue(), frame(7, wanted=False), frame(8, wanted=False)
    queue.put(own, memoryview(b"stored"))
    assert queue.claim(own) == b"stored"
    assert queue.claim(own) is None
    assert queue.claim(late) is None, "it has not come"
    queue.put(late, memoryview(b""))
    assert queue.take()[0] is late, "whoever opens all the others opens it when it comes"
    assert not queue
    assert not queue.has_others


def test_all_that_is_forgotten_is_told() -> None:
    queue, frames = FrameQueue(), [frame(1, wanted=True), frame(2, wanted=False)]
    for each in frames:
        queue.put(each, memoryview(b""))
    assert queue.clear() == frames
    assert not queue
    assert not queue.has_others
