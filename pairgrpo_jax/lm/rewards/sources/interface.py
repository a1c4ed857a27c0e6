"""What a source is, and what all of them share: columns, failures, shapes."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from pairgrpo_jax.core.pairs import Pairs
from pairgrpo_jax.lm.data import Columns, Prompt, asked_by
from pairgrpo_jax.lm.data.columns import parameters_of

log = logging.getLogger("pairgrpo_jax.lm")


class Judgement(NamedTuple):
    """What a source says of K completions of each of B prompts: rewards or pairs.

    Attributes:
      rewards: `[B, K]`, or None; all 0 in a failed group, so that it makes no pair.
      pairs: `Pairs` `[B, P]`, or None; of weight 0 in a failed group.
      failed: `[B]` bool, groups without a usable verdict.
      metrics: figures of the source's own, for the log.
    """

    rewards: np.ndarray | None
    pairs: Pairs | None
    failed: np.ndarray
    metrics: Mapping[str, float] = MappingProxyType({})


class Source(Protocol):
    """Anything that judges completions.

    What more it may have: `columns`, which it is given as lists of B values; `compares`, true where it gives pairs and
    no rewards; `each` and `total`, where its rewards are a sum of several, which are logged by name.
    """

    def __call__(self, prompts: list[Prompt], completions: list[list[str]]) -> Judgement:
        """Judges K completions of each of B prompts."""
        ...


def columns_of(source: Any) -> Columns:
    """The columns that a source asks for."""
    return getattr(source, "columns", Columns())


class SourceError(RuntimeError):
    """A user's function cannot be used, or failed where the policy is to raise."""


class CallError(SourceError):
    """A call failed, after all retries; `ErrorPolicy(on_error="skip")` goes on without the groups concerned."""


class UnfitError(SourceError, ValueError):
    """A user's function takes or returns something else than it should, which no policy heals."""


@dataclasses.dataclass(frozen=True)
class ErrorPolicy:
    """What to do about a user's function that fails.

    Attributes:
      timeout: seconds that one call may take; None waits for ever. A call that overruns is abandoned: its thread
        lives on, as Python cannot end it.
      retries: more tries after a failure.
      on_error: "raise" SourceError, or "skip" the groups concerned and count them.
    """

    timeout: float | None = None
    retries: int = 0
    on_error: str = "raise"

    def __post_init__(self):
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout must be positive or None, got {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"retries must be >= 0, got {self.retries}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={self.on_error!r} is unknown; choose "raise" or "skip"')


def judged(source: Any, prompts: list, completions: list[list[str]], **columns: list):
    """A source's `Judgement`, and the rewards that it is made of by their names: `[B, K]`, nan where one has failed.

    Raises:
      UnfitError: if it returns something else, as a reward function or judge of which no source was made.
    """
    if hasattr(source, "each"):
        each = source.each(prompts, completions, **columns)
        return source.total(each), each
    judgement = source(prompts, completions, **columns)
    if not isinstance(judgement, Judgement):
        how = f"make a source of {name_of(source)} with reward_function or judge"
        raise UnfitError(f"source: expected one that returns a Judgement, got {judgement!r:.80}; {how}")
    if judgement.rewards is None:
        return judgement, {}
    return judgement, {"reward": np.where(judgement.failed[:, None], np.nan, judgement.rewards)}


def readable(source: Any, columns: Mapping[str, Any]) -> bool:
    """Whether all functions of a source that say so (`function.readable(columns)`) can read a row's true answer."""
    return all(f.readable(columns) for f in getattr(source, "functions", ()) if hasattr(f, "readable"))


def compares(source: Any) -> bool:
    """Whether a source gives pairs, and no rewards."""
    return getattr(source, "compares", False)


def given(function: Callable, own: int, columns: dict[str, list]) -> dict[str, list]:
    """Those of the columns that a function asks for; SourceError for a required one that is not there."""
    asked = asked_by(function, own)
    for name in asked.required:
        if name not in columns:
            raise SourceError(f"{name_of(function)} asks for a column {name!r}, and there is none")
    return {n: x for n, x in columns.items() if asked.others or n in (*asked.required, *asked.optional)}


def require_order(function: Callable, setting: str, names: tuple[str, ...], others: tuple[str, ...], what: str) -> None:
    """Refuses a function by its signature: it is called by position, where TRL calls by name, with flat lists.

    Args:
      function: the user's.
      setting: that it is given as, for errors.
      names: of the arguments that it is called with before columns.
      others: names of arguments of another kind of function.
      what: the arguments are.

    Raises:
      ValueError: if it takes fewer, one of `names` in another place, or one of `others`.
    """
    if (found := parameters_of(function, len(names))) is None:
        return
    own, rest = found
    places = dict.fromkeys(others) | {name: place for place, name in enumerate(names)}
    many = any(p.kind is p.VAR_POSITIONAL for p in rest)
    if (len(own) < len(names) and not many) or any(places.get(p.name, at) != at for at, p in enumerate(own)):
        raise ValueError(
            f"{setting}: {name_of(function)} must take ({', '.join(names)}) first, by position: {what}, then columns "
            f"by name; it takes ({', '.join(p.name for p in (*own, *rest))})"
        )


def group_shape(prompts: list, completions: list[list[str]]) -> tuple[int, int]:
    """B and K; ValueError unless each prompt has as many completions as the others."""
    sizes = {len(group) for group in completions}
    if not prompts or len(prompts) != len(completions) or len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"completions: expected K >= 1 texts for each of {len(prompts)} prompts, got {sorted(sizes)}")
    return len(prompts), sizes.pop()


def give_up(function: Callable, problem: str, cause: Exception | None, policy: ErrorPolicy) -> None:
    """Raises `SourceError`, or warns, of a function that failed in all tries."""
    tries = f" ({policy.retries + 1} tries)" if policy.retries else ""
    message = f"{name_of(function)} failed{tries}: {problem}"
    if policy.on_error == "raise":
        raise CallError(message) from cause
    log.warning("%s; skipped", message)


def name_of(function: Callable) -> str:
    """What a function is called in messages."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
