"""Settings as the command line that gives them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from pairgrpo_jax.core.bounds import bare, field_types

ELSEWHERE = ("output", "resume")
"""Not told: where a run is and whether it goes on, which another one chooses for itself."""


def command_of(
    run: Any, prog: str, preset: Callable[[str, Sequence[str]], Any], deciding: Sequence[str] = ()
) -> str | None:
    """The shortest command line of `prog METHOD` that makes this run again; None where no words give its settings.

    Args:
      run: its settings, with a `label`.
      prog: the command, such as "pairgrpo align".
      preset: `(method, words) -> settings`, see `cli.parse_run`.
      deciding: options on whose presence among the words the preset depends.
    """
    mine = leaves(run)
    plain = leaves(preset(run.label, ()))
    decided = [name for name in deciding if name in mine and mine[name] != plain.get(name)]
    words = [word for name in decided for word in spelled(name, mine[name])]
    default = leaves(preset(run.label, words))
    if mine.keys() != default.keys():
        return None
    told = [name for name in mine if mine[name] != default[name] and name not in (*ELSEWHERE, *decided)]
    words += [word for name in told for word in spelled(name, mine[name])]
    return shlex.join([*prog.split(), run.label, *words])


def leaves(settings: Any) -> dict[str, Any]:
    """Every field of settings and their parts by its name, as the options of a command line are; no two share one.

    A part that is not there, None, has no fields.
    """
    found = {}
    for name, hint in field_types(type(settings)).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value)
        elif not dataclasses.is_dataclass(bare(hint)[0]):
            found[name] = value
    return found


def spelled(name: str, value: Any) -> list[str]:
    """The words of an option."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, tuple):
        return [flag, *map(_word, value)]
    word = _word(value)
    return [f"{flag}={word}"] if word.startswith("-") else [flag, word]


def _word(value: Any) -> str:
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return str(value)
