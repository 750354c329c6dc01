"""Completes names of images and clones in shells; options and commands are click's to complete.

The server that runs is asked, else the store, for one object. What does not come within a second, or fails, is not offered: nobody
wants an error on a line that is being typed.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from blockmap.control.client import Client
from blockmap.control.messages import Names
from blockmap.errors import BlockmapError, HostError
from blockmap.local.paths import default_socket
from blockmap.local.settings import export_variables, setting

_SECONDS = 1.0
_IMAGES = ("NAME", "NAME...", "OLD", "NEW", "SOURCE")
_CLONES = ("CLONE", "CLONE...")
"""Arguments that are names, as `--help` shows them. Where an image is wanted, a clone mostly will do."""


class NameType(click.ParamType[str]):
    """The name of an image or a clone, as a shell completes it."""

    name = "name"

    def __init__(self, clones_only: bool) -> None:
        self._clones_only = clones_only

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Returns the names that begin so."""
        found: list[str] = []

        def ask() -> None:
            with suppress(Exception):
                found.extend(_names())

        # A store that is away does not answer in time, and cannot be interrupted: the thread is left to itself.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_SECONDS)
        names = [each for each in found if not self._clones_only or ":" not in each]
        return [CompletionItem(each) for each in sorted(names) if each.startswith(incomplete)]


def register() -> None:
    """Has click complete names as well, for each shell."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)


def _names() -> list[str]:
    export_variables()
    try:
        return [name for name, _ in Client(default_socket().absolute(), _SECONDS).ask(Names()).names]
    except HostError:
        # Imported here: the engines take 0.2 s, which a server that answers spares.
        from blockmap.store.names import NameReader
        from blockmap.store.opening import reach

        return [f"{repo}:{tag}" for repo, tag in NameReader(reach(setting("store"))).told()]


class _WithNames(ShellComplete):
    """Gives the arguments of the command that is completed the type that completes them."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        for parameter in _parameters(self.cli, args):
            shown = parameter.metavar or str(parameter.name).upper()
            if shown in _IMAGES or shown in _CLONES:
                parameter.type = NameType(shown in _CLONES)
        with suppress(BlockmapError):  # a file of settings may have an error
            return super().get_completions(args, incomplete)
        return []


def _parameters(command: click.Command, words: Sequence[str]) -> list[click.Argument]:
    """Returns the arguments of the command that words begin with."""
    context = click.Context(command)
    for word in words:
        if isinstance(command, click.Group):
            command = command.get_command(context, word) or command
    return [each for each in command.params if isinstance(each, click.Argument)]


class _Bash(_WithNames, BashComplete):
    # As click's, but for names with a colon, which bash takes for several words.
    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' cur="${COMP_WORDS[COMP_CWORD]}" words=("${COMP_WORDS[@]}") cword=$COMP_CWORD response type value
    if declare -F _get_comp_words_by_ref >/dev/null; then _get_comp_words_by_ref -n : cur words cword; fi
    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD="$cword" %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    for completion in $response; do
        IFS=',' read -r type value <<<"$completion"
        case $type in
            dir) COMPREPLY=(); compopt -o dirnames ;;
            file) COMPREPLY=(); compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
    if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions "$cur"; fi
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Zsh(_WithNames, ZshComplete):
    pass


class _Fish(_WithNames, FishComplete):
    pass
