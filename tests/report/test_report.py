"""`blockmap report`: the page, as a parser and as a browser see it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from blockmap.format.trace import Trace
from tests.report.hostile import NAMES, TAGS, Made, make, reads_of

SECTIONS = ["map", "growth", "waits", "coverage", "files"]
MAX_BYTES = 6_000_000


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
    """Elements, attributes that would load something, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[tuple[str, str | None]] = []
        self.ids: list[str | None] = []
        self.metas: dict[str | None, str | None] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.loads += [(name, value) for name, value in attrs if name in ("src", "href", "action", "data", "poster")]
        self.ids.append(found.get("id"))
        if tag == "meta":
            self.metas[found.get("http-equiv") or found.get("name")] = found.get("content")
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data


def test_the_page_needs_nothing_else_and_nothing_of_the_image_gets_out(made: Made, drawn: Path) -> None:
    text = drawn.read_text()
    page = Page(text)
    assert page.loads == []
    assert "default-src 'none'" in str(page.metas["Content-Security-Policy"])
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    # The scripts of bokeh, one for each part, and the one that draws: a name that ended one would add another.
    plain = made.cache.with_name("plain.html")
    report(made, made.write_trace("plain", Trace(made.head, reads_of((1, 0, 1)))), "-o", plain)
    (made.cache / "traces" / "plain.trace").unlink()
    assert page.tags.count("script") == Page(plain.read_text()).tags.count("script")
    assert "img" not in page.tags
    for name in (NAMES[0].decode(), TAGS.decode(), "\u202e", "\x1b", "\\href"):
        assert name not in text
    assert "onerror" in text, "the names are there, as data"
    assert drawn.stat().st_size < MAX_BYTES


def test_the_figures_are_those_of_the_trace(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    first = made.runs()[NAMES[1]][0]
    reads = reads_of((10, 0, 1), (20, first, 2), (1500, first, 2))
    path = made.write_trace("figures", Trace(made.head, reads))
    report(made, path, "-o", out)
    path.unlink()
    text = re.sub(r"\s+", " ", Page(out.read_text()).text)
    for figure in ("Time to ready 3.0 s", "Reads 3 of 20.5 kB", "Read for the first time 12.3 kB", "Distinct files 1"):
        assert figure.replace(" ", "") in text.replace(" ", "")
    assert "Profile 1, learnt from 3 starts. This start did not replay it." in text
    assert "not known (no server of this store answers)" in text


def test_a_name_is_its_latest_start_and_given_twice_its_latest_two(drawn: Path) -> None:
    text = Page(drawn.read_text()).text
    assert "2.0 s" in text
    assert ("3.0 s" in text) == ("2.html" in drawn.name)
    assert "3.0 s" not in text or text.index("3.0 s") < text.index("2.0 s")


def test_without_a_store_the_page_has_addresses_only(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert "names no files" in report(made, "evil", "-o", out, store=False)
    assert "Distinct filesnot known" in Page(out.read_text()).text.replace("\n", "")


def test_a_trace_without_reads_makes_a_page(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    path = made.write_trace("empty", Trace(made.head, reads_of()))
    report(made, path, "-o", out)
    path.unlink()
    assert "The trace has no reads." in Page(out.read_text()).text


def test_without_bokeh_it_says_what_to_install(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bokeh.py").write_text("raise ModuleNotFoundError('No module named bokeh', name='bokeh')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "pip install '.[report]' in a checkout" in report(made, "evil", code=1)


def test_long_traces_make_a_page_of_bounded_size(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    runs = list(made.runs().values())
    reads = reads_of(*((n // 10, runs[n % len(runs)][0] + n % 2, 1) for n in range(60_000)))
    path = made.write_trace("long", Trace(made.head, reads))
    report(made, path, path, "-o", out)
    path.unlink()
    assert out.stat().st_size < MAX_BYTES
    assert "one read in 3 is shown" in out.read_text()


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


_LOOK = """
<script>
const seen = {errors: []};
window.addEventListener("error", (event) => seen.errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => seen.errors.push(event.blockedURI));
function* every(node) {
  yield node;
  for (const child of [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes]) yield* every(child);
}
function look() {
  const documents = window.Bokeh ? window.Bokeh.documents : [];
  if (!documents.length || !documents.every((each) => each.is_idle)) { setTimeout(look, 50); return; }
  const nodes = [...every(document.body)];
  const named = (name) => nodes.filter((node) => node.nodeName === name);
  seen.canvases = named("CANVAS").filter((canvas) => canvas.width > 100 && canvas.height > 40).length;
  seen.images = named("IMG").length;
  seen.bold = named("B").length;
  seen.attacked = window.attacked !== undefined;
  seen.cells = nodes.filter((node) => node.classList && node.classList.contains("slick-cell")).map((n) => n.textContent);
  seen.marks = documents[0].roots().flatMap((root) => [...root.references()])
    .filter((model) => model.type === "Scatter").length;
  seen.width = document.documentElement.scrollWidth;
  const said = document.createElement("pre");
  said.id = "seen";
  said.textContent = JSON.stringify(seen);
  document.body.append(said);
}
look();
</script>
"""


@pytest.mark.long
def test_a_browser_draws_the_page(drawn: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("chromium")
    page, end, _ = drawn.read_text().rpartition("</body>")
    out = tmp_path / "page.html"
    out.write_text(page + _LOOK + end)
    done = subprocess.run(
        [
            shutil.which("chromium") or "", "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}/browser",
            "--window-size=1400,1000", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", f"file://{out}",
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["errors"] == []
    assert not re.search(r"CONSOLE.*(error|Refused|Uncaught|failed)", done.stderr, re.IGNORECASE), done.stderr
    assert (seen["images"], seen["bold"], seen["attacked"]) == (0, 0, False)
    assert seen["canvases"] >= 5
    assert seen["marks"] > 3
    assert f"/{TAGS.decode()}" in seen["cells"]
    assert "/$\\x24\\x5chref{http:/example.com/}{x}$\\x24" in seen["cells"]
    assert seen["width"] <= 1400, "nothing sticks out to the right"
