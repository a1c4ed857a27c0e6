"""Exact averages: a loss as a sum of weighted means, each carried as (total, count).

A mean over a masked batch is not the mean of its micro-batches' means. Every loss of this package is
therefore written as a dictionary of `Term`s, which add up over micro-batches and devices before anything is
divided; `evaluate` then gives the scalar. The public losses return `(loss, metrics)`; the same function's
`.objective` returns the terms, for `pairgrpo_jax.make_update_step` to accumulate without error.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, ParamSpec, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core.checks import concrete, require_nonnegative

Params = ParamSpec("Params")


class Term(NamedTuple):
    """One mean of an objective, `mean = total / count` (0 where `count` is 0).

    Only `total` carries a gradient: what counts, a weight and a threshold are constants of an update.

    Attributes:
      total: scalar, the sum over everything that counts.
      count: scalar, how much counts.
      weight: scalar factor of the mean in the loss; 0 makes the term a metric. A traced weight may be anything: at 0 it
        adds 0 to the loss, but what overflowed (inf or nan) still makes the gradient 0 * inf.
      threshold: None for `weight * mean`, else the hinge `weight * max(mean - threshold, 0)`.
    """

    total: jax.Array
    count: jax.Array
    weight: jax.typing.ArrayLike = 0.0
    threshold: jax.typing.ArrayLike | None = None

    @property
    def mean(self) -> jax.Array:
        """The average, 0 for an empty term."""
        return self.total / divisor(jax.lax.stop_gradient(self.count))

    @property
    def is_metric(self) -> bool:
        """Whether the weight is known to be 0: a number or an array of one, rather than a traced value."""
        weight = concrete(self.weight)
        return weight is not None and bool(np.all(weight == 0))

    @property
    def value(self) -> jax.Array:
        """What the term adds to the loss: exactly 0 for a metric, even one that overflowed."""
        if self.is_metric:
            return jnp.zeros_like(self.total)  # not even a gradient of 0, which may be 0 * inf
        weight, threshold = jax.lax.stop_gradient((self.weight, self.threshold))
        penalty = self.mean if threshold is None else jnp.maximum(self.mean - threshold, 0)
        return jnp.where(weight == 0, 0, weight * penalty)


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
    if not isinstance(objective, dict):
        what = f"objective must be a dict of Terms, got {type(objective).__name__}"
        raise ValueError(f"{what}; a function under @core.loss gives its own as .objective")
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


def with_more(objective: Objective, more: Objective) -> Objective:
    """A method's terms and those that a trainer adds; ValueError for a name in both."""
    require_names(objective, more)
    return objective | more


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

    signature = inspect.signature(objective).replace(return_annotation="tuple[jax.Array, Metrics]")
    evaluated.__signature__ = signature  # type: ignore[attr-defined]
    evaluated.objective = objective  # type: ignore[attr-defined]
    return evaluated  # type: ignore[return-value]


def as_float(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in float32 at least, so that bfloat16 inputs are accumulated in float32; float64 is kept."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"numbers must be real, got {x.dtype} of shape {x.shape}")
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def mean_term(
    x: jax.typing.ArrayLike, mask: jax.typing.ArrayLike | None = None, weight: jax.typing.ArrayLike = 0.0
) -> Term:
    """The masked mean of an array, as a `Term`.

    Args:
      x: any shape; booleans, integers and halves are summed in float32.
      mask: how much each element counts, >= 0, of as many axes as `x` (axes of size 1 broadcast); None: all count 1.
      weight: of the mean in the loss; 0: a metric.

    Raises:
      ValueError: for a mask that has other axes than `x`, or is negative.
    """
    x = as_float(x)
    if mask is None:
        return Term(jnp.sum(x), jnp.asarray(x.size, x.dtype), weight)
    if jnp.ndim(mask) != x.ndim:
        raise ValueError(f"mask must have as many axes as x, {x.shape}, got {jnp.shape(mask)}; add axes of size 1")
    if any(m not in (1, n) for m, n in zip(jnp.shape(mask), x.shape)):
        raise ValueError(f"mask must have the shape of x, {x.shape}, or axes of size 1, got {jnp.shape(mask)}")
    require_nonnegative(mask=mask)
    counted = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    return Term(jnp.sum(jnp.where(counted > 0, x, 0) * counted), jnp.sum(counted), weight)


def divisor(x: jax.Array) -> jax.Array:
    """`x`, and 1 where it is not above 0, so that an empty sum divided by its count is 0."""
    return jnp.where(x > 0, x, 1)


def magnitude(x: jax.Array, axis: int | None = None) -> jax.Array:
    """The largest power of two at or below `max |x|`, axes kept, without a gradient; 0.5 where all are 0.

    What is divided by it, and multiplied later, is rounded as ever, and its squares neither overflow nor underflow.
    """
    _, exponent = jnp.frexp(jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True)))
    return jnp.ldexp(jnp.ones(exponent.shape, x.dtype), exponent - 1)


def masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`x` with masked steps set to 0 *before* any exp or log, which keeps their gradients finite."""
    return x if mask is None else jnp.where(mask > 0, x, jnp.zeros_like(x))


def frozen(x: jax.typing.ArrayLike) -> jax.Array:
    """`as_float` without a gradient, for what the behaviour policy or a reference computed."""
    return jax.lax.stop_gradient(as_float(x))
