"""Draws a graph of versions beside their descriptions, as `git log --graph` does. It is pure."""

from collections.abc import Iterable, Iterator, Sequence


def draw(nodes: Iterable[tuple[str, Sequence[str]]]) -> Iterator[tuple[list[str], str]]:
    """Yields for each node the lines before it, and what goes before its description.

    A node is an id and the ids of its parents, which come after it, or not at all.
    """
    lanes: list[str] = []
    lines: list[str] = []
    for node, parents in nodes:
        if node not in lanes:
            lanes.append(node)
        at = lanes.index(node)
        yield lines, " ".join("*" if lane == at else "|" for lane in range(len(lanes)))
        lines = list(_go_on(lanes, at, parents))


def _go_on(lanes: list[str], at: int, parents: Sequence[str]) -> Iterator[str]:
    """Replaces the node in a lane by its parents, each id in one lane; yields the lines that show how."""
    count = len(lanes)
    if not parents:
        del lanes[at]
        if at < len(lanes):
            yield _row(count, range(at), range(at + 1, count))
        return
    lanes[at] = parents[0]
    for parent in parents[:0:-1]:
        lanes.insert(at + 1, parent)
        count += 1
        yield _row(count, range(at + 1), (), range(at + 1, count))
    while (both := _twice(lanes)) is not None:
        first, second = both
        count = len(lanes)
        del lanes[second]
        # One lane to the left in each row; those to the right of it move up in the first.
        yield _row(count, range(second), range(second, count))
        for place in range(second - 1, first, -1):
            yield _row(count - 1, range(count - 1), (place,))


def _twice(lanes: Sequence[str]) -> tuple[int, int] | None:
    """Returns two lanes that lead to the same node; None where there are none."""
    for second, lane in enumerate(lanes):
        first = lanes.index(lane)
        if first < second:
            return first, second
    return None


def _row(count: int, straight: Iterable[int], left: Iterable[int] = (), right: Iterable[int] = ()) -> str:
    """Returns a row of lanes that go on, and of some that move to the left, or came from there."""
    row = [" "] * (2 * count)
    for lane in straight:
        row[2 * lane] = "|"
    for lane in left:
        row[2 * lane - 1] = "/"
    for lane in right:
        row[2 * lane - 1] = "\\"
    return "".join(row).rstrip()
