"""Renders one HTML page that needs nothing else: figures at the top, then plots and tables, each with a sentence on what it shows.

All scripts are in the page, and its security policy forbids every request. Text of an image is data to bokeh, which
escapes it, or is escaped here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from bokeh.embed import components
from bokeh.resources import Resources

from blockmap.format.trace import EXACT, End
from blockmap.report.bars import draw_coverage, draw_growth, draw_waits
from blockmap.report.data import PAUSE_S, ReportedStart
from blockmap.report.maps import draw_maps
from blockmap.report.tables import draw_coverage_table, draw_files, draw_waits_table
from blockmap.terminal.units import duration, share, size

_SCRIPTS: Final = ("bokeh", "bokeh-gl", "bokeh-widgets", "bokeh-tables")
"""The scripts in the page: without MathJax, which is as long as the others together, and not needed here."""

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
_ENDS: Final = {
    End.OPEN: "it did not: the server ended first, or it goes on",
    End.READY: "the program was ready",
    End.LONG: "it lasted too long",
    End.QUIET: "nothing new was read any more",
    End.FULL: "its file was full",
    End.CLOSED: "the last connection closed",
}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; }}
body {{ margin: 0 auto; max-width: 1500px; padding: 0 24px 48px; }}
body.two {{ min-width: 1150px; }}
h1 {{ font-size: 1.6rem; margin: 24px 0 8px; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 36px 0 4px; }}
p {{ margin: 4px 0 10px; max-width: 75em; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 10px 24px; margin: 12px 0; }}
dt {{ color: #555; font-size: .87rem; }}
dd {{ margin: 0; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }}
table.figures {{ border-collapse: collapse; }}
table.figures th, table.figures td {{ text-align: left; vertical-align: top; padding: 3px 28px 3px 0; }}
table.figures th, table.figures td {{ border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }}
table.figures th {{ font-weight: 600; white-space: nowrap; }}
table.figures td {{ font-variant-numeric: tabular-nums; }}
</style>
{scripts}
</head>
<body class="{width}">
<main>
<h1>{title}</h1>
<noscript><p>The plots and tables below are drawn by JavaScript, which is off.</p></noscript>
{summary}
{sections}
</main>
{data}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    title: str
    says: Sequence[str]
    """Paragraphs."""
    drawn: Sequence[Any]


def render(starts: Sequence[ReportedStart]) -> str:
    """Returns the page of one start or two."""
    sections = list(_sections(starts))
    flat = [part for section in sections for part in section.drawn]
    data, places = components(flat, wrap_script=True) if flat else ("", ())
    rest = iter(places)
    bodies = []
    for section in sections:
        says = "".join(f"<p>{escape(text)}</p>\n" for text in section.says)
        drawn = "\n".join(next(rest) for _ in section.drawn)
        head = f'<h2 id="{section.name}">{escape(section.title)}</h2>'
        bodies.append(f'<section aria-labelledby="{section.name}">\n{head}\n{says}{drawn}\n</section>')
    repos = list(dict.fromkeys(start.run.head.repo for start in starts))
    title = f"What {'a start' if len(starts) == 1 else 'two starts'} of {' and '.join(repos)} read"
    return _PAGE.format(
        policy=_POLICY, title=escape(title), width="two" if len(starts) > 1 else "one",
        scripts=Resources("inline", components=list(_SCRIPTS)).render_js(),
        summary=_summary(starts), sections="\n".join(bodies), data=data,
    )  # fmt: skip


def _summary(starts: Sequence[ReportedStart]) -> str:
    if len(starts) == 1:
        pairs = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _figures(starts[0]))
        return "\n".join(["<dl>", *pairs, "</dl>"])
    heads = "".join(f'<th scope="col">Start {number}</th>' for number in range(1, len(starts) + 1))
    lines = [f'<table class="figures">\n<tr><th scope="col">Figure</th>{heads}</tr>']
    for cells in zip(*(_figures(start) for start in starts), strict=True):
        values = "".join(f"<td>{escape(value)}</td>" for _, value in cells)
        lines.append(f'<tr><th scope="row">{escape(cells[0][0])}</th>{values}</tr>')
    return "\n".join([*lines, "</table>"])


def _figures(start: ReportedStart) -> Iterator[tuple[str, str]]:
    run, head = start.run, start.run.head
    data = run.image.data_bytes
    yield "Image", head.repo
    yield "Label", head.label
    yield "Version", f"sha256:{head.version.hex()[:12]}"
    yield "Opened", run.title.rpartition(", ")[2]
    yield "Time to ready", duration(head.ready_ms / 1000) if head.ready_ms else "nobody said when it was ready"
    yield "Reads", f"{len(run.start):,} of {size(run.bytes)}"
    yield "Read for the first time", size(run.touched_bytes)
    yield "Share of the image", f"{share(run.touched_bytes / data)} of {size(data)}" if data else "not known"
    yield "Distinct files", f"{run.file_count:,}" if run.image.files.paths else "not known"
    waited = float(start.pauses.asking_s.sum())
    yield (
        "Without a read, the store being asked",
        duration(waited) if start.pauses.known else f"not known: {start.calls_note}",
    )
    yield "Without a read, all pauses", duration(float(start.pauses.length_s.sum()))
    yield "Trace ended", f"{_ENDS[head.end]}"
    yield "Kernel's read-ahead", "off: exact to the block" if head.flags & EXACT else "on: some blocks nobody asked for"
    yield "New to this host", "yes" if head.is_new else "no: a page cache may hide what it needs"
    yield "Profile replayed", str(head.profile) if head.profile else "none"


def _sections(starts: Sequence[ReportedStart]) -> Iterator[_Section]:
    if not any(len(start.run.start) for start in starts):
        yield _Section("map", "When and where it read", ["The trace has no reads."], [])
        return
    yield _Section(
        "map",
        "When and where it read",
        [
            "Each mark is one read: when it began, and where in the volume. Below, on the same time axis: the pauses between "
            "reads, and what the server asked the store for. The dashed line is where the program was ready. Point at a mark "
            "for its time, file and range; click a name in the legend to hide it; drag a box to look closer."
        ],
        [draw_maps(starts)],
    )
    yield _Section(
        "growth", "How much it had read by then", ["Bytes read for the first time, summed up."], [draw_growth(starts)]
    )
    yield _Section(
        "waits",
        "Where it stood still",
        _about_waits(starts),
        [draw_waits(starts), *(draw_waits_table(s) for s in starts)],
    )
    compared = [(start.run, start.coverage) for start in starts if start.coverage is not None]
    notes = [f"{start.run.title}: {start.profile_note}" for start in starts]
    yield _Section(
        "coverage",
        "What the profile covered, missed and wasted",
        ["Blocks of 4 KiB that a profile and a start have both, or one alone.", *notes],
        [draw_coverage(compared), *(draw_coverage_table(run, each) for run, each in compared)] if compared else [],
    )
    yield _Section(
        "files",
        "What it read, by file" if len(starts) == 1 else "What each start read, by file",
        ["Bytes that were read for the first time, and when the first of them were."],
        [draw_files(starts)],
    )


def _about_waits(starts: Sequence[ReportedStart]) -> list[str]:
    texts = [
        "Measured: when each read began that the cache did not answer at once; the others are spread evenly between these, "
        f"and over a tenth of a second at most. So also each time of {PAUSE_S * 1000:.0f} ms and more in which none began. "
        "Inferred: that the start waited for the read before it, whose file is named; reads may overlap, and a program may "
        "also compute or sleep."
    ]
    if any(start.pauses.known for start in starts):
        texts.append(
            "Measured: when the server asked the store for something. A pause in which it did is likely a wait for the store; "
            "calls for other starts, and those that keep connections open, are among them."
        )
    texts += [
        f"{start.run.title}: what the store was asked for is not known ({start.calls_note}), so a pause may be a "
        "wait for it or not."
        for start in starts
        if not start.pauses.known
    ]
    return texts
