"""Completes names of images, clones and containers in shells; options and commands are click's to complete.

The server that runs is asked, else the store, for one object. What does not come within a second, or fails, is not offered: nobody
wants an error on a line that is being typed.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
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

from blockmap.api.containers import ContainerHost
from blockmap.cli.opened import opened
from blockmap.control.client import Client
from blockmap.control.messages import Names
from blockmap.errors import BlockmapError, HostError
from blockmap.local.paths import server_socket
from blockmap.local.settings import export_variables, setting

_SECONDS = 1.0
_IMAGES = ("NAME", "NAME...", "IMAGE", "OLD", "NEW", "SOURCE")
_CLONES = ("CLONE", "CLONE...")
"""Arguments that are names, as `--help` shows them. Where an image is wanted, a clone mostly will do."""
_OF_CONTAINERS = ("exec", "kill", "logs", "stop")
"""Commands whose names are those of containers."""


class NameType(click.ParamType[str]):
    """The name of an image, a clone or a container, as a shell completes it."""

    name = "name"

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Returns the names that begin so."""
        found: list[str] = []

        def ask() -> None:
            with suppress(Exception):
                found.extend(self._names())

        # A store that is away does not answer in time, and cannot be interrupted: the thread is left to itself.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_SECONDS)
        return [CompletionItem(each) for each in sorted(found) if each.startswith(incomplete)]


def register() -> None:
    """Has click complete names as well, for each shell."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)


def _exports() -> list[str]:
    export_variables()
    try:
        return [name for name, _ in Client(server_socket().absolute(), _SECONDS).ask(Names()).names]
    except HostError:
        # Imported here: the engines take 0.2 s, which a server that answers spares.
        from blockmap.store.names import NameReader
        from blockmap.store.opening import reach

        return [f"{repo}:{tag}" for repo, tag in NameReader(reach(setting("store"))).told()]


def _clones() -> list[str]:
    return [each for each in _exports() if ":" not in each]


def _containers() -> list[str]:
    return [each.name for each in opened(ContainerHost).containers(ended=True)]


class _WithNames(ShellComplete):
    """Gives the arguments of the command that is completed the type that completes them."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        command = _command(self.cli, args)
        for parameter in command.params:
            shown = (parameter.metavar or str(parameter.name).upper()).strip("[]")
            if not isinstance(parameter, click.Argument) or shown not in _IMAGES + _CLONES:
                continue
            if command.name == "rm":
                parameter.type = NameType(lambda: [*_containers(), *_clones()])
            elif command.name in _OF_CONTAINERS:
                parameter.type = NameType(_containers)
            else:
                parameter.type = NameType(_clones if shown in _CLONES else _exports)
        with suppress(BlockmapError):  # a file of settings may have an error
            return super().get_completions(args, incomplete)
        return []


def _command(command: click.Command, words: Sequence[str]) -> click.Command:
    """Returns the command that words begin with."""
    context = click.Context(command)
    for word in words:
        if isinstance(command, click.Group):
            command = command.get_command(context, word) or command
    return command


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
