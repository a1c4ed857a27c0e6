"""Problems of reasoning-gym: endless and seeded, the held-out ones apart from those that are trained on."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.lm.data.rows import PromptRow, with_system
from pairgrpo_jax.lm.data.split import fold_of

PREFIX = "reasoning-gym:"
_TRIES = 16  # numbers of a generator's problems that one place of the stream may choose from
_FOLDS = 5
_BLOCK = 512  # problems of one data set: some generators prepare all of them
_OWN = ("seed", "size")
NOT_OFFERED = {
    "composite": "it mixes others",
    "codeio": "it runs programs, for minutes",
    "sokoban": "its scorer pays for moves that solve another puzzle",
    "coin_flip": "its scorer pays for 0",
    "puzzle24": "its scorer pays for an expression of any numbers",
    "game_of_life_halting": "its scorer pays for any text",
} | dict.fromkeys(
    ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"), "it stores no answer to compare with"
)


@dataclasses.dataclass(frozen=True)
class Gym:
    """A generator of reasoning-gym with its options.

    Attributes:
      name: of the generator.
      options: of its configuration, as pairs.
      system: a system message before each problem, or None.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    system: str | None = None

    @classmethod
    def parse(cls, source: str, system: str | None = None) -> Gym:
        """`reasoning-gym:chain_sum?min_terms=2&max_digits=1`; values are JSON, or text.

        Raises:
          ValueError: for a generator or option that does not exist, with the nearest, or a value that it refuses.
        """
        name, _, query = source.removeprefix(PREFIX).partition("?")
        pairs = parse_qsl(query, keep_blank_values=True)
        if query and len(pairs) != query.count("&") + 1:
            raise ValueError(f"data: {source!r}: expected options as name=value, joined by &")
        gym = cls(name, tuple((key, _value(text)) for key, text in pairs), system)
        gym._check(source)
        return gym

    def _check(self, source: str) -> None:
        known = _generators()
        if self.name in NOT_OFFERED:
            raise ValueError(f"data: generator {self.name!r} is not offered: {NOT_OFFERED[self.name]}")
        if self.name not in known:
            raise ValueError(f"data: reasoning-gym has no generator {self.name!r}; {_near(self.name, known)}")
        fields = [f.name for f in dataclasses.fields(known[self.name][1]) if f.name not in _OWN]
        for name, _ in self.options:
            if name in _OWN:
                raise ValueError(
                    f"data: {name} is not an option here: the stream is endless, and its seed that of the run"
                )
            if name not in fields:
                raise ValueError(f"data: {self.name} has no option {name!r}; {_near(name, fields)}")
        try:
            self.entry(0, 0)
        except (AssertionError, TypeError, ValueError, KeyError, IndexError) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"data: {source}: the generator refuses its options: {reason}") from error

    def _dataset(self, seed: int, block: int) -> Any:
        return _dataset(self.name, json.dumps(dict(self.options)), seed, block)

    def entry(self, seed: int, index: int) -> dict[str, Any]:
        """Problem number `index` of a seed's stream, as reasoning-gym gives it."""
        return self._dataset(seed, index // _BLOCK)[index % _BLOCK]

    def score(self, answer: str, entry: dict[str, Any]) -> float:
        """What the generator's own scorer gives for an answer, 0 to 1; it may raise anything."""
        return float(self._dataset(0, 0).score_answer(answer, entry))

    def _row(self, entry: dict[str, Any]) -> PromptRow:
        prompt = with_system(({"role": "user", "content": entry["question"].strip()},), self.system)
        return PromptRow(prompt, {"answer": entry["answer"], "entry": entry})

    def training(self, seed: int, place: int) -> Iterator[PromptRow]:
        """Problems that may stand at a place of the endless stream, the first that fits to be taken; none held out."""
        for index in range(place * _TRIES, (place + 1) * _TRIES):
            row = self._row(self.entry(seed, index))
            if row.columns["answer"] and not _held_out(row):
                yield row

    def held_out(self, count: int) -> list[PromptRow]:
        """At most `count` different problems that training never meets, the same for every seed.

        Small generators repeat themselves: a fifth of all problems, by a hash of their text, is held out.

        Raises:
          ValueError: if none of many is.
        """
        found: dict[str, PromptRow] = {}
        for index in range(40 * count + 200):
            row = self._row(self.entry(-1, index))
            if row.columns["answer"] and _held_out(row):
                found.setdefault(repr(row.prompt), row)
            if len(found) == count:
                break
        if not found:
            raise ValueError(f"data: {PREFIX}{self.name} makes too few different problems for some to be held out")
        return list(found.values())


@functools.lru_cache(maxsize=8)
def _dataset(name: str, options: str, seed: int, block: int) -> Any:
    from reasoning_gym.factory import create_dataset

    # Item i of a data set is made from its seed + i: neighbouring seeds would share their problems.
    first = fold_of(str(seed), 2**30, 1) + block * _BLOCK
    return create_dataset(name, seed=first, size=_BLOCK, **{n: _tuples(x) for n, x in json.loads(options).items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _held_out(row: PromptRow) -> bool:
    return fold_of(row.prompt[-1]["content"], _FOLDS, 0) == 0


def _generators() -> dict[str, Any]:
    from reasoning_gym.factory import DATASETS

    return DATASETS


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _near(name: str, names: Any) -> str:
    return did_you_mean(name, names, f"it has {', '.join(sorted(names))}", "{!r}")
