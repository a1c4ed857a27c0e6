"""Conditions of the theory that a training run can evaluate on rewards and pairs alone: when pairs lose nothing.

`conditions` bundles them for a log, in one line: `metrics | conditions(rewards, pairs, delta=delta)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax.core.advantages import as_groups, group_advantages, reward_rank_correlation
from pairgrpo_jax.core.hard import FLOOR, require_distribution, require_transfer
from pairgrpo_jax.core.pairs import Pairs, pair_rewards, scatter_pairs, usable_pairs
from pairgrpo_jax.core.terms import Metrics, as_float, divisor


def scheme_cosine(rewards: jax.Array, pairs: Pairs) -> jax.Array:
    """Advantage-space cosine of Soft-Pair-GRPO (with these pairs) and GRPO, per group.

    Args:
      rewards: `[B,K]`.
      pairs: `Pairs`, `[B,P]`, of any scheme.

    Returns:
      `[B]` in [-1, 1]; 1 where both are zero. For all pairs it is `reward_rank_correlation`.

    Raises:
      ValueError: for rewards that are not `[B,K]` with K >= 2, or pairs that do not fit them.
    """
    rewards = as_groups("rewards", rewards)
    pairs, _ = usable_pairs(pairs, *rewards.shape)
    a, b = group_advantages(rewards, eps=0.0), pair_rewards(pairs, rewards.shape[-1])
    norms = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    both_zero = jnp.all(a == 0, axis=-1) & jnp.all(b == 0, axis=-1)
    return jnp.where(both_zero, 1, jnp.sum(a * b, axis=-1) / jnp.sqrt(divisor(norms)))


def bradley_terry_bound(rewards: jax.Array) -> jax.Array:
    """Bound of the remainder of the expected Bradley-Terry pair reward, per candidate.

    `E[wins - losses] / (K-1) = K / (2 (K-1)) (R_i - mean R) + e_i` with `|e_i| <= sum_j |R_i - R_j|^3 / (24 (K-1))`.

    Args:
      rewards: `[B,K]`, on the scale on which the labels are logistic.

    Returns:
      `[B,K]` bounds of |e_i|.

    Raises:
      ValueError: for rewards that are not `[B,K]` with K >= 2.
    """
    rewards = as_groups("rewards", rewards)
    gaps = jnp.abs(rewards[:, :, None] - rewards[:, None, :])
    return jnp.sum(gaps**3, axis=-1) / (24 * (rewards.shape[-1] - 1))


def smallest_gap(rewards: jax.Array) -> jax.Array:
    """Least difference `[B]` between two rewards `[B,K]` of a group: noise below half of it cannot change a label.

    Raises:
      ValueError: for rewards that are not `[B,K]` with K >= 2.
    """
    ordered = jnp.sort(as_groups("rewards", rewards), axis=-1)
    return jnp.min(jnp.diff(ordered, axis=-1), axis=-1)


def transfers_fit(p0: jax.Array, pairs: Pairs, delta: jax.typing.ArrayLike, floor: float = FLOOR) -> jax.Array:
    """Whether no transfer of `hard_pair_target` is capped, boolean `[B]`.

    Then, at theta_old, the gradient of Hard's forward fit is parallel to Soft's, and that of the reverse fit is up to
    O(delta^2).

    Args:
      p0: `[B,K]`, candidate probabilities under pi_old.
      pairs: `Pairs`, `[B,P]`.
      delta: scalar, probability mass per unit of pair weight.
      floor: of the target.

    Raises:
      ValueError: for p0 that is not `[B,K]` with K >= 2, rows of p0 that do not sum to 1, pairs that do not fit it, a
        delta that is negative or not finite, or a floor outside (0, 1).
    """
    p0 = as_groups("p0", p0)
    pairs, _ = usable_pairs(pairs, *p0.shape)
    require_distribution(p0=p0)
    require_transfer(delta, floor)
    weight = as_float(pairs.weight)
    asked = scatter_pairs(pairs, jnp.zeros_like(weight), weight, p0.shape[-1]) * delta
    return jnp.all((asked == 0) | (p0 - asked >= floor), axis=-1)


def conditions(
    rewards: jax.Array,
    pairs: Pairs | None = None,
    *,
    delta: jax.typing.ArrayLike | None = None,
    floor: float = FLOOR,
) -> Metrics:
    """The conditions of the theory on one batch, as scalars to log beside the loss.

    Args:
      rewards: `[B,K]`.
      pairs: `Pairs`, `[B,P]`, built from them; None for a method without pairs.
      delta: Hard-Pair-GRPO's delta of this update, if any, for empirical candidates (p0 = 1/K).
      floor: of the Hard target.

    Returns:
      `rank_correlation`: mean certificate, correlation of rewards and mid-ranks (in a
        group where it is 1, all-pairs Soft has GRPO's direction; the ratio of their sizes differs between groups).
      `tied_groups`: share of groups of equal rewards, which teach nothing.
      `binary_groups`: share of groups with exactly two different rewards, where it is 1.
      `smallest_gap`: mean least reward gap; half of it is the noise that labels withstand.
      `bradley_terry_remainder`: bound of the first-order expansion's remainder over its first-order term.
      With pairs, `scheme_cosine` and `scheme_cosine_min`: mean and least advantage-space cosine to GRPO;
      `largest_condition`: condition number of the score functions' Gram matrix (`theory.centred_condition_number`) up
      to which the gradients of every group surely share an ascent direction. With pairs and delta, `transfers_fit`:
      share of groups where no transfer is capped.

    Raises:
      ValueError: for rewards that are not `[B,K]` with K >= 2, pairs that do not fit them, or as `transfers_fit`.
    """
    rewards = as_groups("rewards", rewards)
    size, correlations = rewards.shape[-1], reward_rank_correlation(rewards)
    low, high = (extreme(rewards, axis=-1, keepdims=True) for extreme in (jnp.min, jnp.max))
    tied = jnp.squeeze(low == high, axis=-1)
    two_levels = jnp.all((rewards == low) | (rewards == high), axis=-1) & ~tied
    first_order = jnp.abs(rewards - jnp.mean(rewards, axis=-1, keepdims=True)) * size / (2 * (size - 1))
    total = jnp.sum(first_order)
    metrics = {
        "rank_correlation": jnp.mean(correlations),
        "tied_groups": jnp.mean(tied, dtype=rewards.dtype),
        "binary_groups": jnp.mean(two_levels, dtype=rewards.dtype),
        "smallest_gap": jnp.mean(smallest_gap(rewards)),
        "bradley_terry_remainder": jnp.sum(bradley_terry_bound(rewards)) / divisor(total),
    }
    if pairs is None:
        return metrics
    cosines = scheme_cosine(rewards, pairs)
    metrics["scheme_cosine"] = jnp.mean(cosines)
    metrics["scheme_cosine_min"] = jnp.min(cosines)
    metrics["largest_condition"] = jnp.min((1 + cosines) / jnp.maximum(1 - cosines, 1e-6))
    if delta is not None:
        fit = transfers_fit(jnp.full_like(rewards, 1 / size), pairs, delta, floor)
        metrics["transfers_fit"] = jnp.mean(fit, dtype=rewards.dtype)
    return metrics
