"""Predicates that a training run can evaluate: when pairs lose nothing, and which theorem's condition holds now.

All are pure functions of arrays that a batch already has; `conditions` bundles the cheap ones for a log.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax.core import Pairs, group_advantages, pair_rewards, reward_rank_correlation


def scheme_cosine(rewards: jax.Array, pairs: Pairs) -> jax.Array:
    """Advantage-space cosine of Soft-Pair-GRPO (with these pairs) and GRPO, per group.

    Args:
      rewards: `[B,K]`.
      pairs: `Pairs`, `[B,P]`, of any scheme.

    Returns:
      `[B]` in [-1, 1]; 1 where both are zero. For all pairs it is `reward_rank_correlation`.
    """
    a, b = group_advantages(rewards, eps=0.0), pair_rewards(pairs, rewards.shape[-1])
    norms = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    both_zero = jnp.all(a == 0, axis=-1) & jnp.all(b == 0, axis=-1)
    return jnp.where(both_zero, 1, jnp.sum(a * b, axis=-1) / jnp.sqrt(jnp.where(norms > 0, norms, 1)))


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


def bradley_terry_bound(rewards: jax.Array) -> jax.Array:
    """Bound of the remainder of the expected Bradley-Terry pair reward, per candidate.

    `E[wins - losses] / (K-1) = K / (2 (K-1)) (R_i - mean R) + e_i` with `|e_i| <= sum_j |R_i - R_j|^3 / (24 (K-1))`.

    Args:
      rewards: `[B,K]`, on the scale on which the labels are logistic.

    Returns:
      `[B,K]` bounds of |e_i|.
    """
    gaps = jnp.abs(rewards[:, :, None] - rewards[:, None, :])
    return jnp.sum(gaps**3, axis=-1) / (24 * (rewards.shape[-1] - 1))


def smallest_gap(rewards: jax.Array) -> jax.Array:
    """Least difference `[B]` between two rewards of a group: noise below half of it cannot change a label."""
    ordered = jnp.sort(rewards, axis=-1)
    return jnp.min(jnp.diff(ordered, axis=-1), axis=-1)


def transfers_fit(p0: jax.Array, pairs: Pairs, delta: jax.typing.ArrayLike, floor: float = 1e-3) -> jax.Array:
    """Whether no transfer of `hard_pair_target` is capped, boolean `[B]`: then Hard's direction is Soft's, exactly."""
    at_rejected = pairs.rejected[..., None] == jnp.arange(p0.shape[-1])
    asked = jnp.sum(jnp.where(at_rejected, pairs.weight[..., None], 0), axis=-2) * delta
    return jnp.all((asked == 0) | (p0 - asked >= floor), axis=-1)


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


def conditions(
    rewards: jax.Array,
    pairs: Pairs,
    *,
    delta: jax.typing.ArrayLike | None = None,
    floor: float = 1e-3,
) -> dict[str, jax.Array]:
    """The conditions of the theory on one batch, as scalars to log beside the loss.

    Args:
      rewards: `[B,K]`.
      pairs: `Pairs`, `[B,P]`, built from them.
      delta: Hard-Pair-GRPO's delta of this update, if any, for empirical candidates (p0 = 1/K).
      floor: of the Hard target.

    Returns:
      `certificate`: mean correlation of rewards and mid-ranks (all-pairs Soft = GRPO where it is 1).
      `scheme_cosine`, `scheme_cosine_min`: the same for the pairs given.
      `largest_condition`: kappa of the score functions up to which Soft is sure to share an ascent direction with GRPO.
      `smallest_gap`: mean least reward gap; half of it is the noise that labels withstand.
      `bradley_terry_remainder`: bound of the first-order expansion's remainder over its first-order term.
      `transfers_fit` (with delta): share of groups where Hard's direction is Soft's.
    """
    cosines = scheme_cosine(rewards, pairs)
    size = rewards.shape[-1]
    first_order = jnp.abs(rewards - jnp.mean(rewards, axis=-1, keepdims=True)) * size / (2 * (size - 1))
    total = jnp.sum(first_order)
    metrics = {
        "certificate": jnp.mean(reward_rank_correlation(rewards)),
        "scheme_cosine": jnp.mean(cosines),
        "scheme_cosine_min": jnp.min(cosines),
        "largest_condition": jnp.mean((1 + cosines) / jnp.maximum(1 - cosines, 1e-6)),
        "smallest_gap": jnp.mean(smallest_gap(rewards)),
        "bradley_terry_remainder": jnp.sum(bradley_terry_bound(rewards)) / jnp.where(total > 0, total, 1),
    }
    if delta is not None:
        p0 = jnp.full(rewards.shape, 1 / size, rewards.dtype)
        metrics["transfers_fit"] = jnp.mean(transfers_fit(p0, pairs, delta, floor))
    return metrics
