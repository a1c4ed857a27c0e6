"""Reward functions by name: `module:function` of the user's and `verify:NAME`, one or several with weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pairgrpo_jax.commands.judging import user_function
from pairgrpo_jax.core.bounds import Settings, require_idle
from pairgrpo_jax.lm.data.gym import PREFIX, Gym
from pairgrpo_jax.lm.rewards.sources import Source, reward_function
from pairgrpo_jax.lm.rewards.verifiers import verifier

_NEXT = re.compile(r",(?=[A-Za-z_][\w.]*:[A-Za-z_])")  # a comma of a regular expression is not before a name
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def gym_of(data: str, system: str | None) -> Gym | None:
    """The generator that `--data` names, if it names one."""
    return Gym.parse(data, system) if data.startswith(PREFIX) else None


def require_files(settings: Settings, data: str, *names: str) -> None:
    """Raises ValueError for a setting about files, of these names, that was changed where `data` is a generator."""
    for name in names if data.startswith(PREFIX) else ():
        require_idle(settings, name, f"with {PREFIX}NAME, whose problems are made as they are needed")


class Named(NamedTuple):
    """A reward function, its name in logs, and its weight."""

    function: Callable
    name: str
    weight: float


def named_rewards(words: str, gym: Gym | None) -> list[Named]:
    """The functions of `mine:f=0.7,verify:number=0.3,verify:format=REGEX=0.1`; a weight is 1 where it is left out.

    Raises:
      ValueError: for a weight that is no number, or a function or verifier that does not exist.
    """
    return [_named(part, words, gym) for part in _NEXT.split(words)]


def _named(part: str, words: str, gym: Gym | None) -> Named:
    if part.startswith("verify:format="):
        expression = part.removeprefix("verify:format=")
        weighted = re.fullmatch(rf"(.*)=({_NUMBER})", expression, re.DOTALL)
        expression, weight = weighted.groups() if weighted else (expression, "1")
        return Named(verifier("format", expression), "verify:format", float(weight))
    name, _, weight = part.partition("=")
    if weight and not re.fullmatch(_NUMBER, weight):
        raise ValueError(f"reward={words!r}: weights must be numbers, as in module:f=0.7")
    kind, _, rest = name.partition(":")
    function = verifier(rest, gym=gym) if kind == "verify" else user_function(name)
    return Named(function, name, float(weight or 1))


def source_of(named: list[Named], **policy: Any) -> Source:
    """The weighted sum of reward functions as a source; see `reward_function`."""
    functions, names, weights = ([getattr(one, field) for one in named] for field in ("function", "name", "weight"))
    return reward_function(functions, weights, names=names, **policy)
