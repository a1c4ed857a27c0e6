"""Sources of rewards: user functions and verifiers, summed with weights."""

import dataclasses
import functools
import inspect
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from pairgrpo_jax.lm.data import Columns, Prompt, asked_by
from pairgrpo_jax.lm.rewards.asking import in_thread, not_called
from pairgrpo_jax.lm.rewards.loop import finish
from pairgrpo_jax.lm.rewards.sources.interface import (
    ErrorPolicy,
    Judgement,
    Source,
    SourceError,
    UnfitError,
    give_up,
    given,
    group_shape,
    log,
    name_of,
    require_order,
)


def reward_function(
    functions: Callable | Sequence[Callable],
    weights: Sequence[float] | None = None,
    *,
    names: Sequence[str] | None = None,
    timeout: float | None = None,
    retries: int = 0,
    on_error: str = "raise",
) -> Source:
    """Makes a source of one or several user functions, whose rewards are summed with weights.

    A function takes `(prompts, completions)`, a list of B prompts (tuples of messages) and B lists of K texts, and
    returns B lists of K numbers, or one flat list of B K. It may be async. Its other parameters are columns of the
    data, lists of B values: `answer` is required, `answer=None` is passed where the data has one, `**columns` are all.
    A function that raises, overruns, or returns another number of values fails for the batch; nan, infinity or None
    fails for the group that has it.

    Args:
      functions: one or several.
      weights: one for each function; 1 by default.
      names: that they are logged by; their own by default.
      timeout: see `ErrorPolicy`, as the next two.
      retries: more tries after a failure.
      on_error: "raise" or "skip".

    Raises:
      ValueError: for no function, one that takes something else first, or weights or names that do not fit.
    """
    several = _listed(functions)
    if not several or not all(map(callable, several)):
        raise ValueError(f"functions: expected a callable, or a list of at least one, got {functions!r:.80}")
    for function in several:
        what = "B prompts and B lists of K texts"
        require_order(function, "functions", ("prompts", "completions"), ("prompt", "completion"), what)
    numbers = [1.0] * len(several) if weights is None else _finite(weights, len(several))
    called = [name_of(f) for f in several] if names is None else _listed(names)
    if len(called) != len(several):
        raise ValueError(f"names: expected {len(several)}, one for each function, got {names!r:.80}")
    called = [name if name not in called[:i] else f"{name}.{i}" for i, name in enumerate(called)]
    return _Rewards(tuple(several), tuple(numbers), tuple(called), ErrorPolicy(timeout, retries, on_error))


@dataclasses.dataclass(frozen=True)
class _Rewards:
    """The source of `reward_function`."""

    functions: tuple[Callable, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    policy: ErrorPolicy

    @property
    def columns(self) -> Columns:
        """What any of the functions asks for."""
        return functools.reduce(operator.or_, (asked_by(f, 2) for f in self.functions))

    def each(self, prompts: list[Prompt], completions: list[list[str]], **columns: list) -> dict[str, np.ndarray]:
        """Each function's rewards by its name, `[B, K]`, without weights; not finite where it has failed."""
        shape, out = group_shape(prompts, completions), {}
        for function, name in zip(self.functions, self.names):
            asked = functools.partial(function, **given(function, 2, columns))
            out[name] = _rewards_of(asked, prompts, completions, shape, self.policy)
        return out

    def total(self, each: dict[str, np.ndarray]) -> Judgement:
        """The weighted sum; a group without all its rewards has failed."""
        failed = np.asarray(~np.isfinite(np.stack(list(each.values()))).all((0, 2)))
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.einsum("n,nbk->bk", self.weights, list(each.values())).astype(np.float32)
        beyond = ~np.isfinite(total).all(-1) & ~failed
        if beyond.any():
            problem = f"rewards beyond float32 in groups {np.flatnonzero(beyond).tolist()[:8]} of {len(failed)}"
            give_up(self.functions[0], problem, None, self.policy)
        failed |= beyond
        return Judgement(np.where(failed[:, None], 0, total), None, failed)

    def __call__(self, prompts: list[Prompt], completions: list[list[str]], **columns: list) -> Judgement:
        """Judges K completions of each of B prompts."""
        return self.total(self.each(prompts, completions, **columns))


def _listed(values: Any) -> list:
    """Several as a list, or one alone."""
    if isinstance(values, Iterable) and not isinstance(values, str) and not callable(values):
        return list(values)
    return [values]


def _finite(weights: Any, count: int) -> list[float]:
    """As many finite numbers; ValueError that names the weights."""
    try:
        found = [float(w) for w in _listed(weights)]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f"weights: expected {count} finite numbers, one for each function, got {weights!r:.80}")
    return found


def _rewards_of(function, prompts, completions, shape, policy: ErrorPolicy) -> np.ndarray:
    """Returns float64 `[B, K]`, nan where the function has failed and the policy is to skip."""
    rewards, problem, cause = np.full(shape, np.nan), "", None
    for tries_left in range(policy.retries, -1, -1):
        try:
            rewards = _as_rewards(_call(function, (prompts, completions), policy.timeout), shape)
        except Exception as e:  # anything that a user's function raises
            if not_called(e, __file__):
                raise UnfitError(f"{name_of(function)} cannot be used: {type(e).__name__}: {e}") from e
            problem, cause = str(e) if isinstance(e, SourceError) else f"{type(e).__name__}: {e}", e
        else:
            bad = np.flatnonzero(~np.isfinite(rewards).all(-1)).tolist()
            if not bad:
                return rewards
            problem, cause = f"a reward that is not a finite number in groups {bad[:8]} of {shape[0]}", None
        if tries_left:
            log.warning("%s failed: %s; trying again, %d more times at most", name_of(function), problem, tries_left)
    give_up(function, problem, cause, policy)
    return rewards


def _as_rewards(values: Any, shape: tuple[int, int]) -> np.ndarray:
    expected = f"expected {shape[0]} lists of {shape[1]} rewards or {shape[0] * shape[1]} in one"
    rows = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(rows, str | bytes | Mapping | Set) or not isinstance(rows, Iterable):
        raise SourceError(f"{expected}, got {values!r:.80}")
    array = np.array([_plain(row) for row in rows], dtype=object)
    if array.shape not in (shape, (shape[0] * shape[1],)):
        raise SourceError(f"{expected}, got {array.shape}")
    return np.array([math.nan if x is None else _number(x, expected) for x in array.ravel()]).reshape(shape)


def _number(x: Any, expected: str) -> float:
    """A reward; SourceError for what is no number, a text as "3" too, which `float` would read."""
    if isinstance(x, str | bytes) or not hasattr(x, "__float__"):
        raise SourceError(f"{expected}, each a number or None, got {x!r:.80}")
    return float(x)


def _plain(x: Any) -> Any:
    """Nested lists, of arrays and tensors too: numpy refuses torch's bfloat16, and tensors with a gradient."""
    x = x.tolist() if hasattr(x, "tolist") else x
    return [_plain(y) for y in x] if isinstance(x, list | tuple) else x


def _call(function: Callable, arguments: tuple, timeout: float | None) -> Any:
    """Calls a sync or async function, under a time limit: a sync one in a thread where it has one."""
    start = time.monotonic()
    if timeout is None or inspect.iscoroutinefunction(function):
        result = function(*arguments)
    else:
        result = in_thread(lambda: function(*arguments), timeout)
    return finish(result, timeout, start) if inspect.isawaitable(result) else result
