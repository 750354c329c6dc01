"""Bases of the messages of the control socket: each operation is a request class, with the class of its answer.

Only classes with fields of their own are decorated: each decoration is 0.4 ms that `attach` and `run` wait for.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Self, TypeVar

from blockmap.errors import UsageError


@dataclass(frozen=True)
class Answer:
    """The fields of an answer, as JSON has them."""

    def to_wire(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError where a field is missing or makes no sense."""
        return cls(**{each.name: wire[each.name] for each in fields(cls)})


class EmptyAnswer(Answer):
    """Says that what was asked for is done, or has begun."""


AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass(frozen=True)
class Operation(Generic[AnswerT]):
    """One question; raises UsageError where a field has a wrong type."""

    op: ClassVar[str]
    answer: ClassVar[type[Answer]]
    is_use: ClassVar[bool] = True
    """True if whoever asks uses the server, False for one who only watches it."""
    group_may: ClassVar[bool] = False
    """True if members of the server's group may ask, and not only its own user and root: nothing is changed or opened."""

    def to_wire(self) -> dict[str, Any]:
        return {"op": self.op, **vars(self)}


@dataclass(frozen=True)
class AboutExport(Operation[AnswerT]):
    """A question about an export; the base of those."""

    export: str = ""

    def __post_init__(self) -> None:
        if type(self.export) is not str:
            raise UsageError(f"export is a name, not {self.export!r}")
