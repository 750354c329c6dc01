"""Graphs of versions, as people see them."""

import re

from hypothesis import given
from hypothesis import strategies as st

from blockmap.terminal.graph import draw


def drawn(nodes: list[tuple[str, list[str]]]) -> list[str]:
    lines = []
    for (before, head), (node, _) in zip(draw(nodes), nodes, strict=True):
        lines += [*before, f"{head} {node}"]
    return lines


def test_two_versions_of_one() -> None:
    assert drawn([("c2", ["base"]), ("c1", ["base"]), ("base", [])]) == ["* c2", "| * c1", "|/", "* base"]


def test_a_version_with_two_parents() -> None:
    assert drawn([("m", ["a", "b"]), ("a", ["r"]), ("b", ["r"]), ("r", [])]) == [
        "* m",
        "|\\",
        "* | a",
        "| * b",
        "|/",
        "* r",
    ]


def test_a_line_that_crosses_another_and_one_that_ends() -> None:
    nodes: list[tuple[str, list[str]]] = [
        ("t1", ["a"]), ("t2", ["b"]), ("t3", ["a"]), ("t4", ["c"]), ("a", []), ("b", ["c"]), ("c", []), ("gone", ["lost"]),
    ]  # fmt: skip
    assert drawn(nodes) == [
        "* t1",
        "| * t2",
        "| | * t3",
        "| |/",
        "|/|",
        "| | * t4",
        "* | | a",
        " / /",
        "* | b",
        "|/",
        "* c",
        "* gone",
    ]


@st.composite
def graphs(draw_from: st.DrawFn) -> list[tuple[str, list[str]]]:
    """Graphs in which each node comes before its parents, of which up to three are among all that follow, or none is there."""
    count = draw_from(st.integers(1, 12))
    names = [f"n{number}" for number in range(count)]
    choose = st.lists(st.integers(0, 14), max_size=3, unique=True)
    return [
        (name, [f"n{at + 1 + ahead}" for ahead in draw_from(choose)])  # some beyond the last: not in the store any more
        for at, name in enumerate(names)
    ]


@given(graphs())
def test_every_line_can_be_followed_from_child_to_parent(nodes: list[tuple[str, list[str]]]) -> None:
    """Walks down from each star, through | / and \\, and finds every parent among the stars that it comes to."""
    lines = drawn(nodes)
    assert all(re.fullmatch(r"[*|/\\ ]+( \w+)?", line) for line in lines)
    grid = [re.sub(r" \w+$", "", line) for line in lines]
    rows = {line.split()[-1]: row for row, line in enumerate(lines) if "*" in line}
    for node, parents in nodes:
        reached: set[str] = set()
        seen: set[tuple[int, int]] = set()
        waiting = below(grid, rows[node], grid[rows[node]].index("*"))
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            row, column = at
            if grid[row][column] == "*":
                reached.add(lines[row].split()[-1])
            else:
                waiting += below(grid, row, column)
        assert {parent for parent in parents if parent in rows} <= reached


def below(grid: list[str], row: int, column: int) -> list[tuple[int, int]]:
    """Where a line goes on in the next row."""
    if row + 1 >= len(grid):
        return []
    own, next_row = grid[row][column], grid[row + 1].ljust(100)
    steps = {"/": [(-1, "|*"), (-2, "/"), (0, "\\")], "\\": [(1, "|*"), (2, "\\"), (0, "/")]}
    straight = [(0, "|*"), (-1, "/"), (1, "\\")]
    found = []
    for step, kinds in steps.get(own, straight):
        if column + step >= 0 and next_row[column + step] in kinds:
            found.append((row + 1, column + step))
    return found
