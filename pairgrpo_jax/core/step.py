"""A step that respects a trust region by construction: shorten the optimizer's step until the realised KL fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pairgrpo_jax.core.bisection import largest_fitting
from pairgrpo_jax.core.checks import require_nonnegative
from pairgrpo_jax.core.terms import as_float


def largest_step(
    divergence: Callable[[Any], jax.Array],
    old_params: Any,
    new_params: Any,
    radius: jax.typing.ArrayLike,
    *,
    iterations: int = 12,
) -> jax.Array:
    """Fraction of the way from old to new parameters at which `divergence <= radius`, by bisection.

    A hinge or a penalty asks for a small KL; this one cannot return a step beyond it: the fraction is one at which the
    divergence was evaluated and fitted (or 0), whatever the divergence's shape in between. Compare the backtracking
    line search of TRPO (arXiv 1502.05477, appendix C), which tests fixed fractions.

    Args:
      divergence: maps parameters to a scalar, 0 at the old ones: the realised KL(pi || pi_old) over the batch.
      old_params: pytree, where the trust region is centred.
      new_params: pytree of the same structure, where the optimizer wants to go.
      radius: scalar, in nats.
      iterations: bisections; the fraction is found to 2^-iterations. A step that fits costs one evaluation of
        `divergence`; one that does not costs `iterations` more (under `vmap` every step does).

    Returns:
      Scalar fraction in [0, 1]; 1 if the whole step fits.

    Raises:
      ValueError: for a negative radius.
    """
    require_nonnegative(radius=radius)

    def fits(fraction):
        return divergence(interpolate(old_params, new_params, fraction)) <= radius

    one = as_float(1.0)
    return jax.lax.cond(fits(one), lambda: one, lambda: largest_fitting(fits, one, iterations))


def interpolate(old_params: Any, new_params: Any, fraction: jax.typing.ArrayLike) -> Any:
    """`old + fraction * (new - old)`, leaf by leaf, in the leaves' own precision; exactly `old` at 0 and `new` at 1."""

    def between(old, new):
        share = jnp.asarray(fraction).astype(old.dtype)
        inside = jnp.where(share == 1, new, old + share * (new - old))
        return jnp.where(share == 0, old, inside).astype(old.dtype)  # not 0 * nan

    return jax.tree.map(between, old_params, new_params)


def limit_step(
    divergence: Callable[[Any], jax.Array],
    old_params: Any,
    new_params: Any,
    radius: jax.typing.ArrayLike,
    *,
    iterations: int = 12,
) -> Any:
    """The parameters at `largest_step`: `new_params` if they stay inside the trust region, else the step cut short.

    Arguments as in `largest_step`; the returned parameters have `divergence <= radius` (or are the old ones).
    """
    fraction = largest_step(divergence, old_params, new_params, radius, iterations=iterations)
    return interpolate(old_params, new_params, fraction)
