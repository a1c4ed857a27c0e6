"""The theory's predicates and bounds: which theorem's condition holds now.

Those that need rewards and pairs alone are `core`'s, where training logs them; those here also need score functions,
or an exact policy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax.core import bradley_terry_bound, conditions, scheme_cosine, smallest_gap, transfers_fit

__all__ = [
    "bradley_terry_bound",
    "centred_condition_number",
    "conditions",
    "gradient_cosine_bound",
    "moves_as_asked",
    "policy_improvement_bound",
    "scheme_cosine",
    "smallest_gap",
    "transfers_fit",
]


def gradient_cosine_bound(cosine: jax.Array, condition_number: jax.Array) -> jax.Array:
    """Least possible cosine of two gradients, from that of their advantages.

    Advantages u and v give gradients G^T u and G^T v, whose inner product is u^T M v with the Gram matrix M = G G^T of
    the score functions. If u and v have cosine c, the gradients' angle is largest when u and v straddle the smallest
    eigenvector: tan(angle'/2) = sqrt(kappa) tan(angle/2), Wielandt's inequality
    (Horn and Johnson, Matrix Analysis, section 7.4).

    Args:
      cosine: c, advantage-space cosine, any shape.
      condition_number: kappa >= 1 of M on the space the advantages live in; see `centred_condition_number`.

    Returns:
      `(1 - t) / (1 + t)` with `t = kappa (1 - c) / (1 + c)`: tight for a given c and kappa, 1 at c = 1, -1 at
      kappa = inf, and positive (a common ascent direction is certain) exactly when kappa < (1 + c) / (1 - c).
    """
    square = jnp.where(cosine >= 1, 0, condition_number * (1 - cosine) / jnp.maximum(1 + cosine, 1e-30))
    return 2 / (1 + square) - 1


def centred_condition_number(scores: jax.Array) -> jax.Array:
    """Condition number of the Gram matrix of score functions, on advantages that sum to zero.

    Args:
      scores: `[...,K,D]`, the gradient of each candidate's log-probability.

    Returns:
      `[...]` in [1, inf]; inf if some centred advantage has no effect on the policy (always for D < K - 1).
    """
    size = scores.shape[-2]
    centred = scores - jnp.mean(scores, axis=-2, keepdims=True)
    values = jnp.linalg.svd(centred, compute_uv=False)  # the last of K values is the direction of equal advantages
    if values.shape[-1] < size - 1:
        return jnp.full(values.shape[:-1], jnp.inf)
    smallest, rounding = values[..., size - 2], jnp.finfo(values.dtype).eps * size
    return jnp.where(smallest > rounding * values[..., 0], jnp.square(values[..., 0] / smallest), jnp.inf)


def moves_as_asked(preferred: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a small step along h = g_p - g_r raises log pi(preferred), and lowers log pi(rejected).

    Args:
      preferred: `[...,D]`, g_p, score function of the preferred candidate.
      rejected: `[...,D]`, g_r.

    Returns:
      Two boolean arrays `[...]`: `|g_p|^2 > g_p . g_r` and `|g_r|^2 > g_p . g_r`. The log-ratio always rises, by |h|^2.
    """
    overlap = jnp.sum(preferred * rejected, axis=-1)
    return jnp.sum(preferred**2, axis=-1) > overlap, jnp.sum(rejected**2, axis=-1) > overlap


def policy_improvement_bound(
    surrogate_gain: jax.Array, total_variation: jax.Array, largest_advantage: jax.Array, discount: float
) -> jax.Array:
    """Lower bound of the true gain in J (TRPO, arXiv 1502.05477, theorem 1).

    Args:
      surrogate_gain: `sum_s d(s) sum_a pi'(a|s) A(s,a)`, d the old policy's unnormalised discounted visitation.
      total_variation: max over states of TV(pi, pi').
      largest_advantage: max over states and actions of |A(s,a)|, of the old policy.
      discount: gamma.

    Returns:
      `gain - 4 gamma eps TV^2 / (1 - gamma)^2`; the policy surely improves where it is positive.
    """
    return surrogate_gain - 4 * discount * largest_advantage * total_variation**2 / (1 - discount) ** 2
