"""Writes the manual pages: of each command from what `--help` says, the others from tools/packaging/man.

python tools/manual.py DIR          DIR/man1, DIR/man5; with the Python of an environment that has blockmap
"""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import click

from blockmap import __version__
from blockmap.cli.exit_codes import EXIT_CODES
from blockmap.cli.main import program
from blockmap.local.settings_file import KEYS

PROSE = Path(__file__).resolve().parent / "packaging" / "man"
SEE_ALSO = (("blockmap", 1), ("blockmap.toml", 5))


def roff(text: str) -> str:
    """Text of any kind, so that troff prints what is in it; what stands between `...` is bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fP", text)
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def quoted(text: str) -> str:
    return '"' + roff(text).replace('"', "\\(dq") + '"'


def title(name: str, section: int) -> str:
    return f'.TH {quoted(name.upper())} {section} {date.today()} {quoted(f"blockmap {__version__}")} "User Commands"'


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help text; those that are to stay as they are begin with \\b, as click has it."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text.partition("\f")[0])):
        if block.startswith("\b"):
            yield f".nf\n{roff(block.removeprefix(chr(8)).strip(chr(10)))}\n.fi"
        else:
            yield roff(" ".join(block.split()))


def synopsis(words: Sequence[str], command: click.Command) -> str:
    pieces = command.collect_usage_pieces(click.Context(command, info_name=words[-1]))
    return f".B {roff(' '.join(words))}\n{roff(' '.join(pieces))}"


def options(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and parameter.name != "help":
            names, text = record
            yield f".TP\n.B {roff(names)}\n{roff(' '.join(text.split()))}"


def children(command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """The commands of a group that are not hidden, by name."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield name, found


def body(command: click.Command) -> Iterator[str]:
    for number, paragraph in enumerate(paragraphs(command.help or "")):
        if number:
            yield ".PP"
        yield paragraph


def page(words: Sequence[str], command: click.Command) -> str:
    """The page of a command, with the commands that are below it."""
    name = "-".join(words)
    lines = [title(name, 1), ".SH NAME", f"{roff(name)} \\- {roff(command.get_short_help_str(200).rstrip('.'))}"]
    below = list(children(command))
    lines += [".SH SYNOPSIS"]
    lines += [synopsis(words, command)] if not below else []
    for number, (each, child) in enumerate(below):
        lines += [".br"] * (number > 0) + [synopsis([*words, each], child)]
    lines += [".SH DESCRIPTION", *body(command), ".SH OPTIONS", *options(command)]
    if below:
        lines += [".SH COMMANDS"]
    for each, child in below:
        lines += [f".SS {quoted(' '.join([*words, each]))}", *body(child), *options(child)]
    also = (f".BR {quoted(other)} ({section})" for other, section in SEE_ALSO)
    return "\n".join([*lines, '.SH "SEE ALSO"', ",\n".join(also), ""])


def commands() -> str:
    """The list of commands, as a part of a page."""
    rows = (
        f".TP\n.BR {quoted(f'blockmap-{name}')} (1)\n{roff(child.get_short_help_str(200))}"
        for name, child in children(program)
    )
    return "\n".join(rows)


def settings() -> str:
    """The list of settings, as a part of a page."""
    rows = (
        f".TP\n.B {roff(name)}\n{roff(key.meaning[:1].upper() + key.meaning[1:])} ({roff(key.kind.says)}). "
        f"Default: {roff(key.default)}."
        for name, key in KEYS.items()
    )
    return "\n".join(rows)


def exit_codes() -> str:
    """What the status of the program says, as a part of a page."""
    return "\n".join(f".TP\n.B {roff(code)}\n{roff(meaning)}." for code, meaning in EXIT_CODES)


def prose(path: Path) -> str:
    """A page that is written by hand, with its title and the lists that the program knows."""
    name, _, section = path.name.rpartition(".")
    lists = {
        "@COMMANDS@": commands,
        "@EXIT_CODES@": exit_codes,
        "@OPTIONS@": lambda: "\n".join(options(program)),
        "@SETTINGS@": settings,
    }
    text = path.read_text()
    for word, part in lists.items():
        text = text.replace(word, part()) if word in text else text
    return f"{title(name, int(section))}\n{text}"


def write(folder: Path) -> None:
    pages = {path.name: prose(path) for path in sorted(PROSE.iterdir())}
    for name, command in children(program):
        pages.setdefault(f"blockmap-{name}.1", page(["blockmap", name], command))
    for name, text in pages.items():
        where = folder / f"man{name[-1]}"
        where.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
