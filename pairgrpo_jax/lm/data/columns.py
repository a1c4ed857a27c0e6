"""The columns of a row beside its prompt: which are kept, and that they hold one kind of value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pairgrpo_jax.core.checks import did_you_mean

NOTHING: Mapping[str, Any] = MappingProxyType({})
# What the layouts of preferences read; named, they are columns like any other.
_OF_PREFERENCES = ("chosen", "rejected", "text", "score", "score_chosen", "score_rejected")


class Columns(NamedTuple):
    """Columns that somebody asks for.

    Attributes:
      required: names that every row must have.
      optional: names that are kept where a row has them.
      others: keep all the others too, but for the two replies of a preference and their scores.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    others: bool = False

    def __or__(self, other: Columns) -> Columns:  # type: ignore[override]
        """What either asks for."""
        required = dict.fromkeys((*self.required, *other.required))
        optional = dict.fromkeys((*self.optional, *other.optional))
        return Columns(tuple(required), tuple(n for n in optional if n not in required), self.others or other.others)

    def of(self, row: Mapping[str, Any], where: str, prompt_column: str) -> dict[str, Any]:
        """The columns of a row that are asked for; ValueError that names `where` and a required one that is missing."""
        for name in self.required:
            if name not in row:
                raise ValueError(f"{where}: no column {name!r}, which the reward asks for; {_had(name, row)}")
        left_out = (prompt_column, "prompt", "messages", *_OF_PREFERENCES)
        others = [name for name in row if name not in left_out] if self.others else []
        names = dict.fromkeys((*self.required, *(n for n in self.optional if n in row), *others))
        return {name: row[name] for name in names}

    def shared(self, rows: Iterable[Mapping[str, Any]], setting: str = "reward") -> tuple[str, ...]:
        """The names asked for that all of `rows` have; ValueError, under `setting`, for a required one that is not."""
        rows = list(rows)
        common = [name for name in (rows[0] if rows else ()) if all(name in row for row in rows)]
        for name in self.required:
            if name not in common:
                raise ValueError(f"{setting}: it asks for a column {name!r}; {_had(name, common)}")
        return tuple(n for n in common if self.others or n in (*self.required, *self.optional))


def parameters_of(function: Callable, given: int) -> tuple[list[inspect.Parameter], list[inspect.Parameter]] | None:
    """The parameters that take the first `given` arguments, but for `*args`, and the others; None of a builtin."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    own = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:given]
    return own, [p for p in parameters if p not in own]


def asked_by(function: Callable, given: int) -> Columns:
    """The columns that a function asks for: its parameters after the first `given`, and all with `**columns`.

    A parameter without a default is required, one with a default optional.
    """
    if (found := parameters_of(function, given)) is None:
        return Columns()
    _, others = found
    named = [p for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = tuple(p.name for p in named if p.default is p.empty)
    optional = tuple(p.name for p in named if p.default is not p.empty)
    return Columns(required, optional, any(p.kind is p.VAR_KEYWORD for p in others))


ALL = Columns(others=True)


class Kinds:
    """Refuses a column whose values change their type between rows; None is of every type."""

    def __init__(self):
        self._seen: dict[str, str] = {}

    def check(self, values: Mapping[str, Any], names: Iterable[str], where: str) -> None:
        """Raises ValueError that names `where`, the column and both types."""
        for name in names:
            value = values.get(name)
            kind = "number" if type(value) in (int, float) else type(value).__name__
            if value is not None and self._seen.setdefault(name, kind) != kind:
                raise ValueError(f"{where}: column {name!r} holds a {kind}, and rows before a {self._seen[name]}")


def _had(name: str, row: Iterable[str]) -> str:
    return did_you_mean(name, row, f"there are {', '.join(sorted(row)) or 'no columns'}", "{!r}")
