"""Layers merged into a tree, compared with a dictionary of paths."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import ImageError
from blockmap.filesystem.inodes import Inode
from blockmap.filesystem.member import Member, MemberKind
from blockmap.filesystem.merge import Tree
from tests.image.model import Layer, Model, entry, file, hardlink, symlink, unpacked


def merge(layers: list[Layer]) -> Tree:
    tree = Tree()
    for layer in layers:
        tree.begin_layer()
        for member, _ in layer:
            tree.add(member)
    return tree


def shape(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    return {path: (i.kind, i.mode, i.uid, i.mtime_s, i.target) for path, i in tree.walk()}


def expected(model: Model) -> dict[bytes, tuple[object, ...]]:
    found = {path: thing.member for path, thing in model.paths.items()}
    return {path: (m.kind, m.mode, m.uid, m.mtime_s, m.target) for path, m in found.items()}


def check(tree: Tree, model: Model) -> None:
    """Checks that both have the same paths, attributes and link groups, and that links are counted correctly."""
    assert shape(tree) == expected(model)
    groups: dict[Inode, set[bytes]] = {}
    for path, inode in tree.walk():
        groups.setdefault(inode, set()).add(path)
        if inode.kind is MemberKind.DIR:
            assert all(child.parent is inode for child in inode.children.values() if child.kind is MemberKind.DIR)
    assert {frozenset(paths) for paths in groups.values()} == model.groups()
    assert all(inode.links == len(paths) for inode, paths in groups.items())
    assert all(inode.links == 0 for inode in tree.made if inode not in groups)


names = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
targets = st.one_of(
    paths, paths.map(b"/".__add__), st.sampled_from([b"..", b"../..", b".", b"../b", b"a/../b", b"/", b"/.."])
)
attributes = {"uid": st.integers(0, 9), "mtime_s": st.integers(0, 9)}
plain = st.one_of(
    st.builds(
        Member,
        paths,
        st.sampled_from([MemberKind.FILE, MemberKind.DIR, MemberKind.FIFO]),
        st.integers(0, 0o7777),
        **attributes,
    ),
    st.builds(Member, st.just(b""), st.just(MemberKind.DIR), st.integers(0, 0o7777), **attributes),
)
linking = st.one_of(
    st.builds(Member, paths, st.just(MemberKind.SYMLINK), st.just(0o777), target=targets),
    st.builds(Member, paths, st.just(MemberKind.HARDLINK), st.just(0), target=paths),
)


def hiding(path: bytes) -> Member:
    above, slash, name = path.rpartition(b"/")
    return Member(above + slash + b".wh." + name, MemberKind.FILE, 0)


whiteouts = st.one_of(
    paths.map(hiding), paths.map(lambda path: Member(path + b"/.wh..wh..opq", MemberKind.FILE, 0)),
    st.just(Member(b".wh..wh..opq", MemberKind.FILE, 0)),
)  # fmt: skip
layers = st.lists(st.lists(st.one_of(plain, plain, linking, whiteouts), max_size=8), max_size=4)


@settings(max_examples=500, deadline=None)
@given(layers)
def test_equals_the_model(stack: list[list[Member]]) -> None:
    """Both accept or refuse any sequence of entries, links and whiteouts."""
    tree, model = Tree(), Model()
    for layer in stack:
        tree.begin_layer()
        model.begin()
        for member in layer:
            try:
                model.add(member)
            except ImageError:
                with pytest.raises(ImageError):
                    tree.add(member)
            else:
                tree.add(member)
        check(tree, model)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(plain, max_size=6), max_size=3), st.lists(plain, max_size=6), st.lists(whiteouts), st.data())
def test_where_whiteouts_stand_in_a_layer_does_not_matter(
    below: list[list[Member]], entries: list[Member], hidden: list[Member], data: st.DataObject
) -> None:
    mixed = [*entries]
    for member in hidden:
        mixed.insert(data.draw(st.integers(0, len(mixed))), member)
    # Like those of every tool, this layer describes the parents of its members; otherwise lower layers decide what they are.
    described = {path for member in mixed for path in above(member.path)}
    mixed = [Member(path, MemberKind.DIR, 0o700) for path in sorted(described)] + [
        member for member in mixed if member.path not in described
    ]
    first = [member for member in mixed if b".wh." in member.path] + [m for m in mixed if b".wh." not in m.path]
    base = [[(member, b"") for member in layer if member.path not in described] for layer in below]
    try:
        one = merge([*base, [(member, b"") for member in mixed]])
        other = merge([*base, [(member, b"") for member in first]])
    except ImageError:
        return
    assert shape(one) == shape(other)


def above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")[:-1]
    return [b"/".join(parts[:count]) for count in range(1, len(parts) + 1)]


LOWER = [entry(b"d", uid=7), file(b"d/lower"), entry(b"d/sub", uid=7), file(b"d/sub/deep"), file(b"f")]


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ([file(b".wh.d")], [b"", b"f"]),
        ([file(b".wh.d"), file(b"d/new")], [b"", b"d", b"d/new", b"f"]),
        ([file(b"d/new"), file(b".wh.d")], [b"", b"d", b"d/new", b"f"]),
        ([file(b"d/sub/new"), file(b"d/.wh..wh..opq")], [b"", b"d", b"d/sub", b"d/sub/new", b"f"]),
        ([file(b"d/lower"), file(b"d/.wh.lower")], [b"", b"d", b"d/lower", b"d/sub", b"d/sub/deep", b"f"]),
        ([hardlink(b"kept", b"d/sub/deep"), file(b".wh.d")], [b"", b"f", b"kept"]),
        ([entry(b"d/sub", uid=3), file(b".wh.d")], [b"", b"d", b"d/sub", b"f"]),
        ([file(b"f"), file(b".wh.f")], [b"", b"d", b"d/lower", b"d/sub", b"d/sub/deep", b"f"]),
        ([file(b".wh.none"), file(b"made/.wh.none")], [b"", b"d", b"d/lower", b"d/sub", b"d/sub/deep", b"f"]),
        ([file(b"no/.wh..wh..opq"), file(b"f/.wh.none")], [b"", b"d", b"d/lower", b"d/sub", b"d/sub/deep", b"f"]),
        ([file(b".wh.d"), hardlink(b"kept", b"d/sub/deep")], [b"", b"f", b"kept"]),
        ([hardlink(b"g", b"f"), file(b".wh.f")], [b"", b"d", b"d/lower", b"d/sub", b"d/sub/deep", b"g"]),
        ([file(b".wh.f"), hardlink(b"g", b"f")], [b"", b"d", b"d/lower", b"d/sub", b"d/sub/deep", b"g"]),
        ([file(b"d"), hardlink(b"kept", b"d/lower")], [b"", b"d", b"f", b"kept"]),
        ([file(b"new"), file(b".wh..wh..opq")], [b"", b"new"]),
        ([file(b"d")], [b"", b"d", b"f"]),
        ([entry(b"f")], [b"", b"d", b"d/lower", b"d/sub", b"d/sub/deep", b"f"]),
    ],
)
def test_whiteouts_act_on_lower_layers_wherever_they_stand(upper: Layer, left: list[bytes]) -> None:
    tree = merge([LOWER, upper])
    assert [path for path, _ in tree.walk()] == left
    check(tree, unpacked([LOWER, upper]))


@pytest.mark.parametrize("whiteout", [b"link/.wh.bar", b"link/.wh..wh..opq", b"link/sub/.wh.deep", b"new/.wh.bar"])
def test_whiteouts_do_not_reach_through_symlinks_of_their_own_layer(whiteout: bytes) -> None:
    lower = [
        entry(b"link"),
        file(b"link/bar"),
        entry(b"vdir"),
        file(b"vdir/bar"),
        entry(b"vdir/sub"),
        file(b"vdir/sub/deep"),
    ]
    upper = [symlink(b"link", b"vdir"), symlink(b"new", b"vdir"), file(whiteout)]
    tree = merge([lower, upper])
    left = [b"", b"link", b"new", b"vdir", b"vdir/bar", b"vdir/sub", b"vdir/sub/deep"]
    assert [path for path, _ in tree.walk()] == left
    check(tree, unpacked([lower, upper]))


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ([file(b"l/.wh.x")], [b"", b"l", b"vdir"]),
        ([file(b"l/.wh..wh..opq")], [b"", b"l", b"vdir"]),
        ([entry(b"l"), file(b"l/.wh..wh..opq")], [b"", b"l", b"vdir", b"vdir/x"]),
        ([entry(b"l"), file(b"l/.wh.x"), file(b"l/n")], [b"", b"l", b"l/n", b"vdir", b"vdir/x"]),
    ],
)
def test_whiteouts_follow_lower_symlinks_that_their_layer_leaves_in_place(upper: Layer, left: list[bytes]) -> None:
    lower = [entry(b"vdir"), file(b"vdir/x"), symlink(b"l", b"vdir")]
    tree = merge([lower, upper])
    assert [path for path, _ in tree.walk()] == left
    check(tree, unpacked([lower, upper]))


def test_links_do_not_lead_through_symlinks_of_a_directory_that_their_layer_replaced() -> None:
    lower = [file(b"a/f"), symlink(b"c/s", b"/a")]
    upper = [file(b"c"), hardlink(b"a", b"c/s/f")]
    for tree_of in (merge, unpacked):
        with pytest.raises(ImageError, match="hard link"):
            tree_of([lower, upper])


def test_what_aufs_kept_is_no_file_and_its_pseudo_links_become_files() -> None:
    layer = [
        file(b".wh..wh.aufs"),
        entry(b".wh..wh.plnk"),
        file(b".wh..wh.plnk/12.34", b"linked", uid=7),
        file(b".wh..wh.plnk/unused", b"x"),
        entry(b".wh..wh.orph"),
        file(b"d/.wh..wh.orph/y"),
        hardlink(b"bin", b".wh..wh.plnk/12.34"),
        hardlink(b"same", b".wh..wh.plnk/12.34"),
    ]
    tree = merge([layer])
    found = dict(tree.walk())
    assert set(found) == {b"", b"bin", b"same"}
    assert (found[b"bin"].uid, found[b"bin"].size, found[b"bin"].links) == (7, 6, 2)
    check(tree, unpacked([layer]))
    with pytest.raises(ImageError, match="does not exist"):
        merge([layer, [hardlink(b"later", b".wh..wh.plnk/12.34")]])


def test_a_directory_that_only_its_new_contents_keep_loses_its_attributes() -> None:
    tree = merge([LOWER, [file(b"d/new"), file(b".wh.d")]])
    assert dict(tree.walk())[b"d"].uid == 0
    tree = merge([LOWER, [entry(b"d", uid=9), file(b"d/new"), file(b".wh.d")]])
    assert dict(tree.walk())[b"d"].uid == 9


def test_parents_lead_through_symlinks_and_stay_inside_the_root() -> None:
    tree = merge(
        [
            [entry(b"usr"), entry(b"usr/lib"), symlink(b"lib", b"usr/lib"), symlink(b"up", b"../../../..")],
            [symlink(b"abs", b"/usr"), symlink(b"usr/back", b"../up/usr"), symlink(b"dangling", b"made/here")],
            [
                file(b"lib/one"),
                file(b"up/two"),
                file(b"abs/lib/three"),
                file(b"usr/back/lib/four"),
                file(b"dangling/f"),
            ],
        ]
    )
    found = dict(tree.walk())
    assert {b"usr/lib/one", b"two", b"usr/lib/three", b"usr/lib/four", b"made/here/f"} <= set(found)
    assert found[b"lib"].kind is MemberKind.SYMLINK


def test_a_replaced_symlink_leads_elsewhere_at_once() -> None:
    """Parents are cached by path, and no longer than they are valid."""
    tree = merge([[entry(b"x"), entry(b"y"), symlink(b"s", b"x"), file(b"s/1"), symlink(b"s", b"y"), file(b"s/2")]])
    assert [path for path, _ in tree.walk()] == [b"", b"s", b"x", b"x/1", b"y", b"y/2"]
    tree = merge([[symlink(b"t", b"x"), entry(b"x"), file(b"t/1")], [file(b".wh.t"), file(b"t/2")]])
    assert [path for path, _ in tree.walk()] == [b"", b"t", b"t/2", b"x", b"x/1"]


def test_deeper_than_pythons_stack() -> None:
    deep = b"/".join([b"d"] * 2000)
    tree = merge([[file(deep + b"/f")], [file(b".wh.d")]])
    assert len(list(tree.walk())) == 1
    tree = merge([[file(deep + b"/f")], [file(deep + b"/g"), file(b".wh.d")]])
    assert len(list(tree.walk())) == 2002


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        ([file(b"a/../../b")], "a/../../b"),
        ([file(b"..")], ".."),
        ([file(b"a/./b")], "a/./b"),
        ([file(b"/etc/passwd")], "/etc/passwd"),
        ([file(b"a//b")], "a//b"),
        ([entry(b"a/")], "a/"),
        ([file(b"a\0b")], r"a\\x00b"),
        ([file(b"f"), hardlink(b"h", b"../f")], "h"),
        ([file(b"f"), hardlink(b"h", b"/f")], "h"),
        ([hardlink(b"h", b"none")], "none"),
        ([entry(b"d"), hardlink(b"h", b"d")], "h.*directory"),
        ([hardlink(b"h", b"")], "h"),
        ([file(b"f"), file(b"f/g")], "f/g.*not a directory"),
        ([file(b"f"), hardlink(b"h", b"f/g")], "h.*does not exist"),
        ([symlink(b"s", b"s"), file(b"s/f")], "s/f.*symlinks"),
        ([symlink(b"p", b"q"), symlink(b"q", b"p"), file(b"p/f")], "p/f.*symlinks"),
        ([symlink(b"s", b"")], "s.*target"),
        ([symlink(b"s", b"t" * 4096)], "s.*4096"),
        ([symlink(b"s", b"a\0b")], "s.*zero"),
        ([symlink(b"s", b"t" * 256), file(b"s/f")], "s/f.*256"),
        ([file(b"n" * 256)], "256"),
        ([file(b"n" * 256 + b"/f")], "256"),
        ([file(b".wh." + b"n" * 256)], "256"),
        ([file(b"d/.wh.")], r"d/\.wh\."),
        ([file(b".wh...")], r"\.wh"),
        ([file(b"d/.wh.x/y")], r"d/\.wh\.x/y.*below a whiteout"),
        ([file(b"/".join([b"d"] * 3000))], "5999"),
        ([file(b"")], "root"),
    ],
)
def test_what_cannot_be_is_refused_by_name(layer: Layer, named: str) -> None:
    with pytest.raises(ImageError, match=named):
        merge([layer])


def test_paths_that_symlinks_make_too_long_are_refused() -> None:
    deep = b"/".join([b"d"] * 1500)
    tree = merge([[entry(deep), symlink(b"s", b"/" + deep), entry(b"s/" + deep)]])
    with pytest.raises(ImageError, match="4095"):
        list(tree.walk())


def test_whiteouts_of_the_longest_names_count() -> None:
    tree = merge([[file(b"n" * 255)], [file(b".wh." + b"n" * 255)]])
    assert len(list(tree.walk())) == 1
