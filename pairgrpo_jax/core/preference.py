"""Offline preference losses: DPO, IPO, ORPO and SimPO over P pairs of sequences, KTO over N sequences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pairgrpo_jax.core.checks import (
    require_no_list,
    require_nonnegative,
    require_positive,
    require_rank,
    require_same_shape,
    require_scalar,
    require_values,
)
from pairgrpo_jax.core.terms import Objective, as_float, frozen, loss, masked, mean_term


def ranked_right(margins: Any) -> Any:
    """1 where a pair is ranked as labelled (a positive margin), 0.5 at a tie, 0 elsewhere; any shape, NaN is wrong."""
    return (margins > 0) + (margins == 0) / 2


def odds(mean_logp: jax.Array) -> jax.Array:
    """ORPO's `log odds = x - log(1 - exp x)` of mean log-probabilities x, any shape, stable at both ends."""
    x = jnp.minimum(mean_logp, -1e-7)  # where the odds are still finite
    small = x > -jnp.log(2.0)
    near_zero = jnp.log(-jnp.expm1(jnp.where(small, x, -1.0)))
    far = jnp.log1p(-jnp.exp(jnp.where(small, -1.0, x)))
    return x - jnp.where(small, near_zero, far)


def _require_pairs(mask, chosen_logp, rejected_logp, **others):
    require_rank("chosen_logp", chosen_logp, {1}, "[P], one number per sequence")
    require_same_shape(chosen_logp=chosen_logp, rejected_logp=rejected_logp, **others, mask=mask)
    require_nonnegative(mask=mask)


def _margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, mask):
    """Implicit rewards (without beta) of the chosen and the rejected sequences, `[P]` each."""
    references = {"ref_chosen_logp": ref_chosen_logp, "ref_rejected_logp": ref_rejected_logp}
    for name, x in references.items():
        if x is None:
            raise ValueError(f"{name} must be [P], got None; dpo_loss(..., reference_free=True) goes without")
    _require_pairs(mask, chosen_logp, rejected_logp, **references)
    chosen = as_float(chosen_logp) - frozen(ref_chosen_logp)
    rejected = as_float(rejected_logp) - frozen(ref_rejected_logp)
    return masked(chosen, mask), masked(rejected, mask)


def _terms(name, losses, chosen, rejected, mask):
    return {
        name: mean_term(losses, mask, 1.0),
        "accuracy": mean_term(ranked_right(chosen - rejected), mask),
        "chosen_reward": mean_term(chosen, mask),
        "rejected_reward": mean_term(rejected, mask),
    }


@loss
def dpo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    ref_chosen_logp: jax.Array,
    ref_rejected_logp: jax.Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
    mask: jax.Array | None = None,
) -> Objective:
    """DPO (arXiv 2305.18290, eq. 7): `-log sigmoid(beta * margin)`, averaged over pairs.

    Args:
      chosen_logp: `[P]` log-probability of each chosen sequence: summed over tokens in the paper, per-token means
        for the length-normalised form.
      rejected_logp: `[P]`, the same of the rejected sequences.
      ref_chosen_logp: `[P]` under the reference policy. No gradient.
      ref_rejected_logp: `[P]` under the reference policy. No gradient.
      beta: inverse temperature of the implicit reward.
      label_smoothing: probability that a label is wrong, in [0, 0.5) (conservative DPO).
      reference_free: take the reference as uniform, margin = chosen - rejected.
      mask: `[P]`, 0 for a pair that does not count; None: all do.

    Returns:
      `(loss, metrics)`; metrics `dpo`, `accuracy`, and the implicit `chosen_reward`, `rejected_reward`.

    Raises:
      ValueError: if shapes differ, label_smoothing or beta is out of range, or the mask is negative.
    """
    require_values("in [0, 0.5)", lambda x: (x >= 0) & (x < 0.5), label_smoothing=label_smoothing)
    require_nonnegative(beta=beta)
    if reference_free:
        ref_chosen_logp, ref_rejected_logp = jnp.zeros_like(chosen_logp), jnp.zeros_like(rejected_logp)
    chosen, rejected = _margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, mask)
    logit = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(logit) - label_smoothing * jax.nn.log_sigmoid(-logit)
    return _terms("dpo", losses, beta * chosen, beta * rejected, mask)


@loss
def ipo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    ref_chosen_logp: jax.Array,
    ref_rejected_logp: jax.Array,
    *,
    beta: float = 0.1,
    mask: jax.Array | None = None,
) -> Objective:
    """IPO (arXiv 2310.12036, eq. 17): `(margin - 1 / (2 beta))^2`, averaged over pairs.

    Args:
      chosen_logp: `[P]`: summed over tokens in the paper; its authors later recommend per-token means.
      rejected_logp: `[P]`.
      ref_chosen_logp: `[P]` under the reference policy. No gradient.
      ref_rejected_logp: `[P]` under the reference policy. No gradient.
      beta: regularisation (the paper's tau).
      mask: `[P]`, 0 for a pair that does not count; None: all do.

    Returns:
      `(loss, metrics)`; metrics `ipo`, `accuracy`, `chosen_reward`, `rejected_reward`.

    Raises:
      ValueError: if shapes differ, beta is not above 0 or the mask is negative.
    """
    require_positive(beta=beta)
    chosen, rejected = _margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, mask)
    losses = jnp.square(chosen - rejected - 1 / (2 * beta))
    return _terms("ipo", losses, beta * chosen, beta * rejected, mask)


@loss
def orpo_loss(
    chosen_logp: jax.Array, rejected_logp: jax.Array, *, weight: float = 0.1, mask: jax.Array | None = None
) -> Objective:
    """ORPO (arXiv 2403.07691, eq. 6): `-chosen_logp + weight * -log sigmoid(log odds(chosen) - log odds(rejected))`.

    Args:
      chosen_logp: `[P]` *per-token mean* log-probabilities of the chosen sequences.
      rejected_logp: `[P]`, the same of the rejected sequences.
      weight: of the odds-ratio term (the paper's lambda).
      mask: `[P]`, 0 for a pair that does not count; None: all do.

    Returns:
      `(loss, metrics)`; metrics `nll`, `odds_ratio`, `accuracy`.

    Raises:
      ValueError: if shapes differ, or weight or the mask is negative.
    """
    require_scalar(weight=weight)
    require_nonnegative(weight=weight)
    _require_pairs(mask, chosen_logp, rejected_logp)
    chosen, rejected = masked(as_float(chosen_logp), mask), masked(as_float(rejected_logp), mask)
    ratio = odds(chosen) - odds(rejected)
    return {
        "nll": mean_term(-chosen, mask, 1.0),
        "odds_ratio": mean_term(-jax.nn.log_sigmoid(ratio), mask, weight),
        "accuracy": mean_term(ranked_right(chosen - rejected), mask),
    }


@loss
def simpo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    mask: jax.Array | None = None,
) -> Objective:
    """SimPO (arXiv 2405.14734, eq. 6): `-log sigmoid(beta * (chosen_logp - rejected_logp) - gamma)`.

    Args:
      chosen_logp: `[P]` *per-token mean* log-probabilities of the chosen sequences.
      rejected_logp: `[P]`, the same of the rejected sequences.
      beta: scale of the implicit reward, 2 to 2.5 in the paper.
      gamma: target margin of `beta * logp`, in nats; the paper's is 0.3 to 1.6, a gamma / beta of 0.1 to 0.8.
      mask: `[P]`, 0 for a pair that does not count; None: all do.

    Returns:
      `(loss, metrics)`, means over pairs; metrics `simpo`, `accuracy`, `chosen_reward`, `rejected_reward`.

    Raises:
      ValueError: if shapes differ, beta is not above 0, or gamma or the mask is negative.
    """
    _require_pairs(mask, chosen_logp, rejected_logp)
    require_positive(beta=beta)
    require_nonnegative(gamma=gamma)
    chosen, rejected = (beta * masked(as_float(x), mask) for x in (chosen_logp, rejected_logp))
    return _terms("simpo", -jax.nn.log_sigmoid(chosen - rejected - gamma), chosen, rejected, mask)


def kto_reference_point(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """KTO's z_0 (arXiv 2402.01306, sec. 4.1), in nats: `max(mean(logp - ref_logp), 0)`, without a gradient.

    Args:
      logp: summed log-probabilities of sequences after prompts that they do not belong to, any shape.
      ref_logp: the same under the reference policy.
      mask: like `logp`, 0 for a sequence that does not count; None: all do.

    Returns:
      A scalar, a biased estimate of KL(pi_theta || pi_ref) that shares its sign.

    Raises:
      ValueError: if shapes differ.
    """
    require_same_shape(logp=logp, ref_logp=ref_logp, mask=mask)
    return jnp.maximum(mean_term(frozen(logp) - frozen(ref_logp), mask).mean, 0)


@loss
def kto_loss(
    logp: jax.Array,
    ref_logp: jax.Array,
    desirable: jax.Array,
    reference_point: jax.typing.ArrayLike,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    mask: jax.Array | None = None,
) -> Objective:
    """KTO (arXiv 2402.01306, eq. 8): `lambda_y - v`, averaged over sequences.

    With r = logp - ref_logp, v is `lambda_D * sigmoid(beta * (r - z_0))` of a desirable sequence and
    `lambda_U * sigmoid(beta * (z_0 - r))` of an undesirable one.

    Args:
      logp: `[N]` summed log-probabilities of the sequences.
      ref_logp: `[N]` under the reference policy. No gradient.
      desirable: `[N]` bool, which of them are desirable.
      reference_point: z_0 in nats, a scalar or `[N]`; see `kto_reference_point`. No gradient.
      beta: steepness of v, per nat.
      desirable_weight: lambda_D.
      undesirable_weight: lambda_U; the paper keeps `lambda_D * n_D / (lambda_U * n_U)` in [1, 1.5].
      mask: `[N]`, 0 for a sequence that does not count; None: all do.

    Returns:
      `(loss, metrics)`; metrics `kto`, `reference_point`, and `desirable_reward`, `undesirable_reward`, the mean
      `beta * r` of each kind.

    Raises:
      ValueError: if shapes do not fit, `desirable` is not boolean, beta not above 0, or a weight or mask negative.
    """
    require_rank("logp", logp, {1}, "[N], one number per sequence")
    require_same_shape(logp=logp, ref_logp=ref_logp, desirable=desirable, mask=mask)
    if desirable.dtype != bool:
        raise ValueError(f"desirable must be boolean, got {desirable.dtype}")
    require_positive(beta=beta)
    require_nonnegative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight, mask=mask)
    require_no_list(reference_point=reference_point)
    if jnp.shape(reference_point) not in {(), logp.shape}:
        raise ValueError(f"reference_point must be a scalar or [N] = {logp.shape}, got {jnp.shape(reference_point)}")
    ratio = masked(as_float(logp) - frozen(ref_logp), mask)
    point = masked(jnp.broadcast_to(frozen(reference_point), ratio.shape), mask)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    losses = weight * jax.nn.sigmoid(beta * jnp.where(desirable, point - ratio, ratio - point))
    counted = jnp.ones_like(ratio) if mask is None else mask
    return {
        "kto": mean_term(losses, counted, 1.0),
        "reference_point": mean_term(point, counted),
        "desirable_reward": mean_term(beta * ratio, counted * desirable),
        "undesirable_reward": mean_term(beta * ratio, counted * ~desirable),
    }
