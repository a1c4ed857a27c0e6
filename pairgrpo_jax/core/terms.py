"""Exact averages: a loss as a sum of weighted means, each carried as (total, count).

A mean over a masked batch is not the mean of its micro-batches' means. Every loss of this package is
therefore written as a dictionary of `Term`s, which add up over micro-batches and devices before anything is
divided; `evaluate` then gives the scalar. The public losses return `(loss, metrics)`; the same function's
`.objective` returns the terms, for `pairgrpo_jax.make_update_step` to accumulate without error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

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
    def value(self) -> jax.Array:
        """What the term adds to the loss: exactly 0 for a metric, even one that overflowed."""
        if isinstance(self.weight, (int, float)) and self.weight == 0:
            return jnp.zeros_like(self.total)  # not even a gradient of 0, which may be 0 * inf
        penalty = self.mean if self.threshold is None else jnp.maximum(self.mean - self.threshold, 0)
        return jnp.where(self.weight == 0, 0, self.weight * penalty)


Objective = dict[str, Term]
Metrics = dict[str, jax.Array]


def evaluate(objective: Objective) -> tuple[jax.Array, Metrics]:
    """Returns the scalar loss and the mean of every term (plus `NAME_active` for a hinge above its threshold)."""
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
    chex.assert_rank(x, ranks, custom_message=f"{name} must be {shape}", exception_type=ValueError)


def require_same_shape(**arrays: jax.Array) -> None:
    """Raises ValueError unless all arrays have one shape; the message names them."""
    chex.assert_equal_shape(
        list(arrays.values()),
        custom_message=f"{', '.join(f'{name} {jnp.shape(x)}' for name, x in arrays.items())} must have the same shape",
        exception_type=ValueError,
    )


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def require_positive(**values: jax.typing.ArrayLike) -> None:
    """Raises ValueError that names a number that is not above 0; traced values pass unchecked."""
    for name, value in values.items():
        if isinstance(value, (int, float, np.number)) and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")


def require_nonnegative(**values: jax.typing.ArrayLike) -> None:
    """Raises ValueError that names a negative (or NaN) number; traced values pass unchecked."""
    for name, value in values.items():
        if isinstance(value, (int, float, np.number)) and not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def mean_term(x: jax.Array, mask: jax.Array | None = None, weight: jax.typing.ArrayLike = 0.0) -> Term:
    """The masked mean of an array of any shape, as a `Term`."""
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
