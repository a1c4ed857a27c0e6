"""Exact averages: a loss as a sum of weighted means, each carried as (total, count).

A mean over a masked batch is not the mean of its micro-batches' means. Every loss of this package is
therefore written as a dictionary of `Term`s, which add up over micro-batches and devices before anything is
divided; `evaluate` then gives the scalar. The public losses return `(loss, metrics)`; the same function's
`.objective` returns the terms, for `pairgrpo_jax.make_update_step` to accumulate without error.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Params = ParamSpec("Params")


class Term(NamedTuple):
    """One mean of an objective, `mean = total / count` (0 where `count` is 0).

    Attributes:
      total: scalar, the sum over everything that counts.
      count: scalar, how much counts.
      weight: scalar factor of the mean in the loss; 0 makes the term a metric.
      threshold: None for `weight * mean`, else the hinge `weight * max(mean - threshold, 0)`.
    """

    total: jax.Array
    count: jax.Array
    weight: jax.typing.ArrayLike = 0.0
    threshold: jax.typing.ArrayLike | None = None

    @property
    def mean(self) -> jax.Array:
        """The average, 0 for an empty term."""
        return self.total / jnp.where(self.count > 0, self.count, 1)

    @property
    def is_metric(self) -> bool:
        """Whether the weight is known to be 0, a number rather than a traced value."""
        return isinstance(self.weight, (int, float, np.number)) and self.weight == 0

    @property
    def value(self) -> jax.Array:
        """What the term adds to the loss: exactly 0 for a metric, even one that overflowed."""
        if self.is_metric:
            return jnp.zeros_like(self.total)  # not even a gradient of 0, which may be 0 * inf
        penalty = self.mean if self.threshold is None else jnp.maximum(self.mean - self.threshold, 0)
        return jnp.where(self.weight == 0, 0, self.weight * penalty)


Objective = dict[str, Term]
Metrics = dict[str, jax.Array]
# What `make_update_step` reports beside the means of the terms.
REPORTED = ("loss", "grad_norm", "skipped", "no_signal", "step_fraction")


def evaluate(objective: Objective) -> tuple[jax.Array, Metrics]:
    """Returns the scalar loss and the mean of every term (plus `NAME_active` for a hinge above its threshold).

    Raises:
      ValueError: if no term has a weight, or one is called like another metric; see `require_objective`.
    """
    require_objective(objective)
    return loss_and_means(objective)


def require_objective(objective: Objective) -> None:
    """Raises ValueError that names the terms if none has a weight, or one is called like a metric of the update, or is
    no `Term`."""
    for name, term in objective.items():
        if not isinstance(term, Term):
            what = f"objective: {name} must be a Term, such as core.mean_term(x), got {type(term).__name__}"
            raise ValueError(f"{what}; or return a pair (loss, metrics)")
    require_names(objective, {f"{name}_active" for name, term in objective.items() if term.threshold is not None})
    if all(term.is_metric for term in objective.values()):
        raise ValueError(f"objective: no term has a weight ({', '.join(objective)}); give one, Term(..., weight=1.0)")


def require_names(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises ValueError if a term or metric is called like what the update reports, or like one of `others`."""
    if taken := sorted({*REPORTED, *others} & {*names}):
        raise ValueError(f"objective: {', '.join(taken)} is what the update itself reports; rename the term or metric")


def has_signal(objective: Objective) -> jax.Array:
    """Boolean scalar: whether any term with a weight counts anything."""
    return jnp.any(jnp.stack([jnp.asarray((term.weight != 0) & (term.count > 0)) for term in objective.values()]))


def loss_and_means(objective: Objective) -> tuple[jax.Array, Metrics]:
    """`evaluate` without its checks."""
    loss = jnp.sum(jnp.stack([jnp.asarray(term.value) for term in objective.values()]))
    metrics = {name: term.mean for name, term in objective.items()}
    for name, term in objective.items():
        if term.threshold is not None:
            metrics[f"{name}_active"] = (term.mean > term.threshold).astype(loss.dtype)
    return loss, metrics


class Loss(Protocol, Generic[Params]):
    """A function of arrays that returns `(loss, metrics)`, and has its exact form as `.objective`."""

    objective: Callable[Params, Objective]

    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> tuple[jax.Array, Metrics]:
        """Evaluates the objective."""
        ...


def loss(objective: Callable[Params, Objective]) -> Loss[Params]:
    """Decorator: a function that returns an `Objective` becomes one that returns `(loss, metrics)`."""

    @functools.wraps(objective)
    def evaluated(*args: Params.args, **kwargs: Params.kwargs) -> tuple[jax.Array, Metrics]:
        return evaluate(objective(*args, **kwargs))

    evaluated.objective = objective  # type: ignore[attr-defined]
    return evaluated  # type: ignore[return-value]


def as_float(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in float32 at least, so that bfloat16 inputs are accumulated in float32; float64 is kept."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def require_rank(name: str, x: jax.Array, ranks: set[int], shape: str) -> None:
    """Raises ValueError that names the argument and the shape it should have."""
    _require_array(name, x)
    chex.assert_rank(x, ranks, custom_message=f"{name} must be {shape}", exception_type=ValueError)


def require_same_shape(**arrays: jax.Array | None) -> None:
    """Raises ValueError unless all arrays that are given (not None) have one shape; the message names them."""
    given = {name: x for name, x in arrays.items() if x is not None}
    for name, x in given.items():
        _require_array(name, x)
    chex.assert_equal_shape(
        list(given.values()),
        custom_message=f"{', '.join(f'{name} {jnp.shape(x)}' for name, x in given.items())} must have the same shape",
        exception_type=ValueError,
    )


def _require_array(name: str, x: object) -> None:
    if not hasattr(x, "shape"):
        raise ValueError(f"{name} must be an array, got {type(x).__name__}")


def did_you_mean(name: str, names: Iterable[str], otherwise: str, form: str = "{}") -> str:
    """`did you mean X?` of the nearest name, X in a form such as "--{}"; `otherwise` where none is near."""
    near = difflib.get_close_matches(name, [*names], n=1)
    return f"did you mean {form.format(near[0])}?" if near else otherwise


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def concrete(x: jax.typing.ArrayLike) -> np.ndarray | None:
    """`x` as a numpy array, or None where it is traced or lies partly on other processes."""
    known = not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
    return np.asarray(x) if known else None


def require_values(rule: str, holds: Callable[[Any], Any], **values: jax.typing.ArrayLike | None) -> None:
    """Raises ValueError that names an argument with a concrete value for which `holds` is false; None passes."""
    for name, value in values.items():
        found = None if value is None else concrete(value)
        if found is not None and not np.all(fine := np.atleast_1d(holds(found))):
            raise ValueError(f"{name} must be {rule}, got {np.atleast_1d(found)[~fine][0]}")


require_positive = functools.partial(require_values, "> 0", lambda x: x > 0)
require_nonnegative = functools.partial(require_values, ">= 0", lambda x: x >= 0)
require_share = functools.partial(require_values, "in [0, 1]", lambda x: (x >= 0) & (x <= 1))
require_finite = functools.partial(require_values, "finite", np.isfinite)


def mean_term(
    x: jax.typing.ArrayLike, mask: jax.typing.ArrayLike | None = None, weight: jax.typing.ArrayLike = 0.0
) -> Term:
    """The masked mean of an array of any shape, as a `Term`; booleans, integers and halves are summed in float32."""
    x = as_float(x)
    if mask is None:
        return Term(jnp.sum(x), jnp.asarray(x.size, x.dtype), weight)
    counted = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    return Term(jnp.sum(jnp.where(counted > 0, x, 0) * counted), jnp.sum(counted), weight)


def masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`x` with masked steps set to 0 *before* any exp or log, which keeps their gradients finite."""
    return x if mask is None else jnp.where(mask > 0, x, jnp.zeros_like(x))


def frozen(x: jax.typing.ArrayLike) -> jax.Array:
    """`as_float` without a gradient, for what the behaviour policy or a reference computed."""
    return jax.lax.stop_gradient(as_float(x))
