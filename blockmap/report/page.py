"""Renders one HTML page that needs nothing else, and runs nothing: a verdict, the waterfall, then tables.

Its security policy forbids every request and script. All text is escaped here or where it becomes HTML.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from blockmap.report import tables
from blockmap.report.data import ReportedStart
from blockmap.report.style import STYLE
from blockmap.report.verdict import difference, verdict
from blockmap.report.waterfall import waterfall
from blockmap.terminal.times import moment

_NO_WAITS: Final = "<p>None was recorded.</p>"
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{top}
{sections}
</main>
</body>
</html>
"""


def render(starts: Sequence[ReportedStart]) -> str:
    """Returns the page of one start or two."""
    repos = list(dict.fromkeys(start.run.head.repo for start in starts))
    title = f"{'Start' if len(starts) == 1 else 'Two starts'} of {' and '.join(repos)}"
    bodies = (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(head)}</h2>\n{body}\n</section>'
        for name, head, body in _sections(starts)
    )
    return _PAGE.format(title=escape(title), style=STYLE, top=_top(starts), sections="\n".join(bodies))


def _top(starts: Sequence[ReportedStart]) -> str:
    lines = []
    for number, start in enumerate(starts, 1):
        tag = f'<span class="tag">{number}</span> ' if len(starts) > 1 else ""
        lines.append(f'<p class="verdict">{tag}{escape(verdict(start.run))}</p>')
        lines.append(f'<p class="about">{escape(_about(start))}</p>')
    if len(starts) > 1:
        lines.append(f'<p class="verdict difference">{escape(difference(starts[0].run, starts[1].run))}</p>')
    return "\n".join(lines)


def _about(start: ReportedStart) -> str:
    head = start.run.head
    opened = f"opened {moment(head.started_us / 1e6)} UTC"
    replayed = f"profile {head.profile} replayed" if head.profile else "no profile replayed"
    return f"{head.repo}@sha256:{head.version.hex()[:12]}, label {head.label}, {opened}, {replayed}"


def _sections(starts: Sequence[ReportedStart]) -> Iterator[tuple[str, str, str]]:
    """Yields name, title and content."""
    if any(len(start.run.touched) for start in starts):
        yield "waterfall", "What it read, and where it waited", _about_waterfall(starts) + waterfall(starts)
        waits = [tables.longest_waits(start.run) for start in starts]
        if any(waits):
            yield (
                "waits",
                "The longest waits",
                _beside([_titled(number, starts) + (each or _NO_WAITS) for number, each in enumerate(waits, 1)]),
            )
    notes = [f"<p>{escape(_whose(number, starts) + start.profile_note)}</p>" for number, start in enumerate(starts, 1)]
    compared = [
        note + (tables.coverage(start.run, start.coverage) if start.coverage is not None else "")
        for note, start in zip(notes, starts, strict=True)
    ]
    yield "profile", "What the profile covered, missed and wasted", _beside(compared)
    yield "figures", "Figures", tables.figures(starts)


def _whose(number: int, starts: Sequence[ReportedStart]) -> str:
    return f"Start {number}: " if len(starts) > 1 else ""


def _titled(number: int, starts: Sequence[ReportedStart]) -> str:
    return f"<p>Start {number}</p>" if len(starts) > 1 else ""


def _beside(parts: Sequence[str]) -> str:
    return '<div class="beside">\n' + "\n".join(f"<div>{part}</div>" for part in parts) + "\n</div>"


def _about_waterfall(starts: Sequence[ReportedStart]) -> str:
    owned = any(start.run.image.has_owners for start in starts)
    texts = [
        f"A row for each {'package' if owned else 'folder'}, in the order in which they were first read; open it for its files. "
        "Point at a bar for its times and bytes."
    ]
    if len(starts) > 1:
        texts.append("The upper bar of a row is start 1, the lower start 2.")
    for number, start in enumerate(starts, 1):
        run = start.run
        if not run.head.ready_ms:
            text = "Nobody said when the program was ready, so the waterfall ends with the last burst of reads."
            texts.append(_whose(number, starts) + text)
    return f'<p class="note">{escape(" ".join(texts))}</p>\n'
