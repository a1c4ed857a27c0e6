"""The largest fraction of a step that fits."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def largest_fitting(fits: Callable[[jax.Array], jax.Array], one: jax.Array, iterations: int) -> jax.Array:
    """A lower bound, to `2^-iterations`, of the s in [0, 1] up to which all fit; 1 itself is not tried.

    Args:
      fits: `s -> whether it fits`, both of `one`'s shape; true up to some s, false above.
      one: ones, of a float's dtype.
      iterations: halvings of what is left.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        inside = fits(middle)
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    return jax.lax.fori_loop(0, iterations, halve, (jnp.zeros_like(one), one))[0]
