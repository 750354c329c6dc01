"""The order in which frames are opened."""

from blockmap.replay.frames import BundleFrame, FrameQueue


def frame(number: int, wanted: bool) -> BundleFrame:
    return BundleFrame(number, 0, 0, wanted)


def test_what_is_wanted_comes_by_number_and_the_rest_when_all_is() -> None:
    come = FrameQueue()
    frames = [frame(number, number < 3) for number in range(5)]
    for number in (4, 2, 0, 3, 1):
        come.put(frames[number], memoryview(bytes([number])))
    assert come.rest
    assert [come.take() for _ in range(3)] == [(frames[number], bytes([number])) for number in range(3)]
    assert not come
    come.want_all()
    assert not come.rest
    assert [come.take()[0] for _ in range(2)] == frames[3:]
    assert not come


def test_who_reads_one_of_the_rest_gets_it_once() -> None:
    come, own, late = FrameQueue(), frame(7, wanted=False), frame(8, wanted=False)
    come.put(own, memoryview(b"stored"))
    assert come.want(own) == b"stored"
    assert come.want(own) is None
    assert come.want(late) is None, "it has not come"
    come.put(late, memoryview(b""))
    assert come.take()[0] is late, "whoever opens all the others opens it when it comes"
    assert not come
    assert not come.rest


def test_all_that_is_forgotten_is_told() -> None:
    come, frames = FrameQueue(), [frame(1, wanted=True), frame(2, wanted=False)]
    for each in frames:
        come.put(each, memoryview(b""))
    assert come.clear() == frames
    assert not come
    assert not come.rest
