"""`blockmap report`: the page, as a parser and as a browser see it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from blockmap.format.trace import End, Trace
from tests.report.hostile import NAMES, TAGS, Made, make, reads_of, waits_of

SECTIONS = ["waterfall", "waits", "profile", "figures"]
MAX_BYTES = 500_000
VOID = {"meta"}
PHRASING = {"summary", "p", "h1", "h2", "span", "li", "title", "td", "th"}
"""Elements that hold no blocks."""
BLOCKS = {"div", "p", "ul", "table", "section", "details", "h1", "h2"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module", params=[1, 2])
def drawn(request: pytest.FixtureRequest, made: Made) -> Path:
    """A page of one start, and of two."""
    out = made.cache.with_name(f"page-{request.param}.html")
    assert str(out) in report(made, *["evil"] * request.param, "-o", out)
    return out


def report(made: Made, *words: object, store: bool = True, code: int = 0) -> str:
    """What the program says, which no server helps."""
    where = ["--store", made.store] if store else []
    command = [
        sys.executable, "-m", "blockmap.cli.main", "report", *words, *where, "--cache", made.cache, "--socket",
        made.cache / "none.sock",
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


class Page(HTMLParser):
    """A page's elements and text; fails where elements are not nested as HTML wants it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.metas: dict[str | None, str | None] = {}
        self.text = ""
        self.style = ""
        self.parts: dict[str, list[str]] = {}
        """Texts by the class of their element."""
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open, "all is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        found = dict(attrs)
        assert len(found) == len(attrs)
        assert not (tag in BLOCKS and any(each in PHRASING for each, _ in self._open)), (tag, self._open)
        if tag == "meta":
            self.metas[found.get("http-equiv") or found.get("name")] = found.get("content")
        if tag not in VOID:
            self._open.append((tag, found.get("class") or ""))
            self.parts.setdefault(found.get("class") or tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "style":
            self.style += data
        elif self._open:
            self.text += data
            tag, kind = self._open[-1]
            self.parts[kind or tag][-1] += data


def test_the_page_needs_nothing_else_and_nothing_of_the_image_gets_out(drawn: Path) -> None:
    text = drawn.read_text()
    page = Page(text)
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "action", "data", "poster", "srcset", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert page.metas["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert not {"script", "img", "iframe", "link", "object", "b"} & set(page.tags)
    assert not re.search(r"url\(|@import|expression", page.style)
    ids = [value for name, value in page.attributes if name == "id"]
    assert ids == SECTIONS
    for name in (NAMES[0].decode(), TAGS.decode(), "\u202e", "\x1b"):
        assert name not in text
    assert f"/{TAGS.decode()}" in page.parts["name"], "the names are there, as text"
    assert "<b>pack" in page.parts["name"]
    assert drawn.stat().st_size < MAX_BYTES


def test_every_class_has_a_style_and_every_swatch_a_colour(drawn: Path) -> None:
    page = Page(drawn.read_text())
    used = {kind for name, value in page.attributes if name == "class" for kind in str(value).split()}
    styled = set(re.findall(r"\.([a-z]+)", page.style))
    assert used - styled <= {"verdict", "one", "difference", "major", "right", "grid", "waterfall"}
    swatches = re.findall(r'<span class="swatch"><i class="(\w+)">', drawn.read_text())
    assert len(swatches) >= 7
    for kind in swatches:
        assert re.search(rf"\.swatch \.{kind}\b[^}}]*(background|border-left)", page.style), kind
    for variable in set(re.findall(r"var\((--\w+)\)", page.style)):
        assert f"{variable}:" in drawn.read_text(), variable
    # What is only in the light part would be unreadable in the dark.
    light, dark = re.findall(r":root \{([^}]*)\}", page.style)[:2]
    assert set(re.findall(r"--\w+", light)) == set(re.findall(r"--\w+", dark))


def test_the_verdict_comes_first_and_two_starts_are_compared(drawn: Path) -> None:
    page = Page(drawn.read_text())
    said = page.parts["verdict"]
    newest = (
        "Ready after 2.00 s; 0.21 s of it waiting for the store; 64 % of the 90.1 kB that it read came ahead of need."
    )
    if "1.html" in drawn.name:
        assert said == [newest]
    else:
        older = "Ready after 3.00 s; 98.3 kB were read; what it waited for was not recorded."
        assert said == [f" {older}", f" {newest}"]
        (difference,) = page.parts["verdict difference"]
        assert difference.startswith("Start 2 was ready 1.00 s sooner than start 1; it read ")
    assert page.text.index(said[-1]) < page.text.index("waited for the store")
    assert "2023-11-14 22:14:20 UTC" in page.text


def test_rows_are_packages_with_their_files(made: Made, drawn: Path) -> None:
    page = Page(drawn.read_text())
    names = page.parts["name"]
    assert names[0] == "seconds since the open"
    assert names[1] == "(metadata of the file system)"
    assert names.index("<b>pack") + 1 == names.index("/usr/bin/owned"), "a file is below its package"
    assert len(page.parts["lane"]) == (len(names) - 1) * int(drawn.name[-6])
    assert page.tags.count("details") == page.tags.count("summary") > 2
    (lines,) = re.findall(r'<div class="falls \w+" style="--lines: ([^"]*)">', drawn.read_text())
    marks = re.findall(r"gradient\(var\(--(ready|soft)\) [^)]*\) ([0-9.]+)% ", lines)
    assert [kind for kind, _ in marks] == (["soft", "ready"] if "1.html" in drawn.name else ["ready", "soft", "ready"])
    assert float(marks[-1][1]) == pytest.approx(98.04 if "1.html" in drawn.name else 65.36)


def test_the_figures_are_those_of_the_trace(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    first = made.runs()[NAMES[1]][0]
    reads = reads_of((10, 0, 1), (20, first, 2), (1500, first, 2), (3500, first + 1, 1))
    path = made.write_trace("figures", Trace(made.head, reads))
    report(made, path, "-o", out)
    path.unlink()
    text = re.sub(r"\s+", " ", Page(out.read_text()).text)
    for figure in (
        "Reads 3 of 20.5 kB", "Read for the first time 12.3 kB", "Distinct files 1", "After that 1 reads until 3.5 s, not shown",
    ):  # fmt: skip
        assert figure.replace(" ", "") in text.replace(" ", "")
    assert "Profile 1, learnt from 3 starts. This start did not replay it." in text
    assert "not known: no server of this store answers" in text


def test_where_nobody_said_ready_the_page_says_where_it_ends(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    first = made.runs()[NAMES[1]][0]
    head = replace(made.head, ready_ms=0, end=End.QUIET)
    reads = reads_of(*((n, n, 1) for n in range(300)), (8500, first, 2))
    path = made.write_trace("quiet", Trace(head, reads, waits_of()))
    report(made, path, "-o", out)
    path.unlink()
    page = Page(out.read_text())
    assert page.parts["verdict"] == [
        "Read for 0.30 s, then went quiet; it never waited for the store; 100 % of the 1.2 MB that it read came ahead of need."
    ]
    assert "Nobody said when the program was ready" in page.text
    assert "1 reads until 8.5 s, not shown" in page.text
    assert '<i class="ready"' not in out.read_text()


def test_a_name_is_its_latest_start_and_given_twice_its_latest_two(drawn: Path) -> None:
    text = Page(drawn.read_text()).text
    assert "Ready after 2.00 s" in text
    assert ("Ready after 3.00 s" in text) == ("2.html" in drawn.name)


def test_without_a_store_the_page_names_no_files(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert "names no files" in report(made, "evil", "-o", out, store=False)
    page = Page(out.read_text())
    assert "Distinct filesnot known" in page.text.replace("\n", "")
    assert page.parts["name"][1:] == ["(files are not known)"]


def test_a_trace_without_reads_makes_a_page(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    path = made.write_trace("empty", Trace(made.head, reads_of()))
    report(made, path, "-o", out)
    path.unlink()
    assert Page(out.read_text()).parts["verdict"] == ["Nothing was read."]


def test_long_traces_make_a_page_of_bounded_size(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    runs = list(made.runs().values())
    reads = reads_of(*((n // 10, runs[n % len(runs)][0] + n, 1) for n in range(60_000)))
    waits = waits_of(*((n // 10, n % 7, runs[n % len(runs)][0] + n, 1, 1 + n % 2) for n in range(60_000)))
    path = made.write_trace("long", Trace(made.head, reads, waits))
    report(made, path, path, "-o", out)
    path.unlink()
    assert out.stat().st_size < MAX_BYTES


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["absent"], "0 traces of absent, not 1"),
        (["evil"] * 3, "3 starts do not fit"),
        (["evil", "--label", "other"], "0 traces"),
        (["no.trace"], "there is no trace no.trace"),
        (["evil:none"], "there is no image evil:none"),
    ],
)
def test_what_makes_no_page_says_why(made: Made, words: list[str], says: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    code = 1 if says.startswith("there is no image") else 2
    assert says in report(made, *words, "-o", out, code=code)
    assert not out.exists()


@pytest.mark.long
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_a_browser_shows_the_page_whole(drawn: Path, tmp_path: Path, need: Callable[..., None], width: int) -> None:
    need("chromium")
    # The page's own policy forbids this script, which measures it. In a frame, as no window is narrower than 500 pixels.
    text = drawn.read_text().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{_LOOK}</body>"))
    (tmp_path / "frame.html").write_text(_FRAME.format(width=width))
    done = subprocess.run(
        [
            shutil.which("chromium") or "", "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}/browser",
            "--window-size=2000,1000", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
            f"file://{tmp_path}/frame.html",
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["window"] == width
    assert seen["width"] <= width, "nothing sticks out to the right"
    assert seen["out"] == [], "nothing is cut off"
    assert seen["labels"] == [], "no two labels of the axis overlap"
    assert seen["bars"] > 10
    assert not seen["attacked"]


_FRAME = """<!DOCTYPE html>
<html><body>
<script>
window.addEventListener("message", (event) => {{
  const said = document.createElement("pre");
  said.id = "seen";
  said.textContent = event.data;
  document.body.append(said);
}});
</script>
<iframe src="page.html" style="border: 0; width: {width}px; height: 1000px"></iframe>
</body></html>
"""
_LOOK = """
<script>
document.querySelectorAll("details").forEach((each) => { each.open = true; });
const seen = {window: window.innerWidth, width: document.documentElement.scrollWidth, attacked: window.attacked !== undefined};
const box = (each) => each.getBoundingClientRect();
seen.out = [...document.querySelectorAll("p, td, th, .name, .figure, .flags span")]
  .filter((each) => box(each).right > window.innerWidth || box(each).left < 0).map((each) => each.textContent);
const labels = [...document.querySelectorAll(".axis span")].map(box).filter((each) => each.width);
seen.labels = labels.filter((each, n) => n && labels[n - 1].right > each.left).map((each) => each.left);
seen.bars = [...document.querySelectorAll("rect")].filter((each) => box(each).width >= 0.5 && box(each).height >= 3).length;
parent.postMessage(JSON.stringify(seen), "*");
</script>
"""
