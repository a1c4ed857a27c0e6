"""Clipped-surrogate objectives: GRPO, Soft-Pair-GRPO and PPO."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from pairgrpo_jax.core.checks import (
    require_choice,
    require_finite,
    require_no_list,
    require_nonnegative,
    require_positive,
    require_rank,
    require_same_shape,
    require_scalar,
    require_values,
)
from pairgrpo_jax.core.pairs import Pairs, groups_with_pairs, pair_rewards, usable_pairs
from pairgrpo_jax.core.terms import Objective, Term, as_float, divisor, frozen, loss, masked, mean_term

Level = Literal["token", "sequence"]
Aggregate = Literal["sequence_mean", "token_mean", "constant"]
PolicyLoss = Literal["clip", "cispo"]
LEVELS, AGGREGATES, POLICY_LOSSES = get_args(Level), get_args(Aggregate), get_args(PolicyLoss)
Clip = float | tuple[float, float]


def clipped_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, clip: Clip = 0.2, dual_clip: jax.typing.ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """Elementwise `-min(rho A, clip(rho, 1 - low, 1 + high) A)` (arXiv 1707.06347, eq. 7).

    With `dual_clip` = c, `-max(min(rho A, clip(rho) A), c A)` where A < 0 (dual clip, arXiv 1912.09729): the min alone
    has no bound there, so that one step that became far more likely would outweigh a batch.

    Args:
      log_ratio: log rho, any shape.
      advantages: broadcasts against it.
      clip: epsilon, or `(low, high)` (DAPO's clip-higher, arXiv 2503.14476).
      dual_clip: c, more than 1; None for no bound.

    Returns:
      The loss and a 0/1 array that marks where clipping removed the gradient, both of `log_ratio`'s shape.

    Raises:
      ValueError: for a negative clip, or a dual_clip of at most 1.
    """
    sides = clip if isinstance(clip, (tuple, list)) else (clip, clip)
    if len(sides) != 2:
        raise ValueError(f"clip must be epsilon or (low, high), got {clip}")
    low, high = sides
    require_nonnegative(**{"clip (low)": low, "clip (high)": high})
    require_values("> 1", lambda x: x > 1, dual_clip=dual_clip)
    ratio = jnp.exp(jax.lax.stop_gradient(log_ratio))
    outside = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
    ceiling = 1 + high
    if dual_clip is not None:
        outside |= (ratio > dual_clip) & (advantages < 0)
        ceiling = jnp.where(advantages < 0, dual_clip, ceiling)
    flat = outside | (advantages == 0)
    # Elsewhere the min is rho A. Where no gradient flows nothing is differentiated either: 0 * exp(90) would be nan.
    moving = jnp.exp(jnp.where(flat, 0, log_ratio))
    value = jnp.where(flat, jnp.clip(ratio, 1 - low, ceiling) * advantages, moving * advantages)
    return -value, outside.astype(value.dtype)


def capped_weight_loss(
    log_ratio: jax.Array, logp: jax.Array, advantages: jax.Array, clip: Clip = 0.2
) -> tuple[jax.Array, jax.Array]:
    """Elementwise `-min(rho, 1 + clip) A log p` (CISPO, arXiv 2506.13585, eq. 4 and 5); no gradient flows through rho.

    Every step keeps its gradient, with a weight that is capped; as in that paper's runs, nothing bounds it below.

    Args:
      log_ratio: log rho, any shape.
      logp: log-probabilities of the steps under the policy, like it.
      advantages: broadcasts against it.
      clip: how far above 1 the weight goes.

    Returns:
      The loss and a 0/1 array that marks where the weight is capped, both of `log_ratio`'s shape.

    Raises:
      ValueError: for a clip that is negative, or has a lower part, which would have no effect.
    """
    if isinstance(clip, (tuple, list)):
        raise ValueError(f'clip must be one number with policy_loss="cispo", which has no lower bound, got {clip}')
    require_nonnegative(clip=clip)
    ratio = jnp.exp(jax.lax.stop_gradient(log_ratio))
    weighted = jnp.minimum(ratio, 1 + clip) * advantages
    value = weighted * jnp.where(weighted == 0, 0, logp)  # 0 * -inf would be nan
    return -value, (ratio > 1 + clip).astype(value.dtype)


def aggregate_steps(
    x: jax.Array,
    mask: jax.Array,
    rule: str,
    *,
    candidate_weight: jax.Array | None = None,
    max_length: int | None = None,
    weight: jax.typing.ArrayLike = 0.0,
    threshold: jax.typing.ArrayLike | None = None,
) -> Term:
    """Reduces per-step values to one exact mean.

    Args:
      x: `[B,K,T]`.
      mask: `[B,K,T]`, 1 where a step counts.
      rule: "sequence_mean": mean over a candidate's steps, then over candidates (GRPO, arXiv 2402.03300; a fully masked
        candidate counts as 0). "token_mean": sum over all steps / their number (DAPO, arXiv 2503.14476).
        "constant": sum over all steps / (candidates x `max_length`) (Dr. GRPO, arXiv 2503.20783).
      candidate_weight: `[B,K]`, 0 takes a candidate out of numerator and denominator.
      max_length: the constant of "constant", in steps; T by default.
      weight: the term's weight in the loss.
      threshold: the term's hinge threshold.

    Returns:
      A `Term`.

    Raises:
      ValueError: for an unknown rule.
    """
    require_choice("aggregate", rule, AGGREGATES)
    require_positive(max_length=max_length)
    mask = mask.astype(x.dtype)
    alive = jnp.ones(x.shape[:2], x.dtype) if candidate_weight is None else candidate_weight.astype(x.dtype)
    mask = mask * (alive > 0)[..., None]  # what is left out is not read
    sums, lengths = jnp.sum(masked(x, mask) * mask, axis=-1), jnp.sum(mask, axis=-1)
    if rule == "sequence_mean":
        total, count = jnp.sum(alive * sums / divisor(lengths)), jnp.sum(alive)
    elif rule == "token_mean":
        total, count = jnp.sum(alive * sums), jnp.sum(alive * lengths)
    else:
        total, count = jnp.sum(alive * sums), jnp.sum(alive) * (max_length or x.shape[-1])
    return Term(total, count, weight, threshold)


def with_steps(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`[B,K]` or `[B,K,T]` broadcast to `shape` = `[B,K,T]`; ValueError that names the argument for anything else."""
    require_no_list(**{name: x})
    x = as_float(x)
    if x.shape not in (shape, shape[:2]):
        raise ValueError(f"{name} must be [B,K] = {shape[:2]} or [B,K,T] = {shape}, got {x.shape}")
    return jnp.broadcast_to(x[..., None] if x.ndim == 2 else x, shape)


def prepare(logp: jax.Array, old_logp: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checks shapes; returns `log_ratio`, `old_logp` and `mask`, all `[B,K,T]` (a `[B,K]` input is one step)."""
    require_rank("logp", logp, {2, 3}, "[B,K] or [B,K,T]")
    require_same_shape(logp=logp, old_logp=old_logp)
    if logp.shape[1] < 1 or logp.shape[0] < 1:
        raise ValueError(f"logp must hold at least one group and one candidate, got shape {logp.shape}")
    if mask is not None:
        require_same_shape(logp=logp, mask=mask)
        require_nonnegative(mask=mask)
    shape = logp.shape if logp.ndim == 3 else (*logp.shape, 1)
    mask = jnp.ones(shape, jnp.float32) if mask is None else with_steps("mask", mask, shape)
    logp = masked(with_steps("logp", logp, shape), mask)
    old_logp = masked(with_steps("old_logp", frozen(old_logp), shape), mask)
    return logp - old_logp, old_logp, mask


def policy_kl(log_ratio: jax.Array, mask: jax.Array | None) -> Objective:
    """The KL between the policies, in nats per step, as the term `approx_kl`; the same for every loss with a ratio.

    It is the k3 estimate of KL(pi_old || pi_theta) under samples of pi_old, the mean over all steps of all groups,
    whatever the loss weighs, aggregates or takes a ratio of.

    Args:
      log_ratio: `logp - old_logp` of each step, 0 at masked ones; any shape.
      mask: 1 where a step counts; None: all do.
    """
    return {"approx_kl": mean_term(jnp.expm1(log_ratio) - log_ratio, mask)}


@loss
def grpo_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    *,
    mask: jax.Array | None = None,
    clip: Clip = 0.2,
    dual_clip: jax.typing.ArrayLike | None = None,
    policy_loss: str = "clip",
    kl: jax.Array | None = None,
    beta: jax.typing.ArrayLike = 0.0,
    level: str = "token",
    aggregate: str = "sequence_mean",
    candidate_weight: jax.Array | None = None,
    max_length: int | None = None,
) -> Objective:
    """GRPO (arXiv 2402.03300, eq. 3): `-min(rho A, clip(rho) A) + beta * KL`, aggregated over steps and candidates.

    Args:
      logp: `[B,K,T]` log-probabilities of the steps under the policy, or `[B,K]` for one step per candidate.
      old_logp: the same under pi_old, which sampled them. No gradient flows into it.
      advantages: `[B,K]`, or `[B,K,T]` for per-step advantages. No gradient flows into them.
      mask: like `logp`, 1 where a step counts; build it from lengths.
      clip: epsilon, or `(low, high)`.
      dual_clip: bound of the ratio where A < 0; see `clipped_surrogate`.
      policy_loss: "clip", or "cispo", see `capped_weight_loss`; its `clip` is one number, and `dual_clip` None.
      kl: an elementwise estimate of the KL to any policy (`kl_k3(logp, ref_logp, mask)`), `[B,K]` or `[B,K,T]`; None
        for no KL term.
      beta: weight of `kl`; no effect without one.
      level: ratio per "token" or per "sequence", `exp(mean over masked steps of log rho)` (GSPO, arXiv 2507.18071).
      aggregate: "sequence_mean", "token_mean" or "constant"; see `aggregate_steps`.
      candidate_weight: `[B,K]`, 0 leaves a candidate out of numerator and denominator.
      max_length: the constant of `aggregate="constant"`, in steps; T by default.

    Returns:
      `(loss, metrics)`; metrics `policy`, `kl`, `clip_fraction`, and `approx_kl`, see `policy_kl`.

    Raises:
      ValueError: for shapes that do not fit, an unknown `level`, `aggregate` or `policy_loss`, a negative clip, mask,
        weight or beta, a dual_clip of at most 1, a clip or dual_clip without effect, or advantages that are not finite
        where they count (where these are concrete).
    """
    require_choice("level", level, LEVELS)
    require_choice("policy_loss", policy_loss, POLICY_LOSSES)
    if policy_loss != "clip" and dual_clip is not None:
        raise ValueError(f"dual_clip={dual_clip} has no effect with policy_loss={policy_loss!r}; leave it at None")
    log_ratio, _, mask = prepare(logp, old_logp, mask)
    require_scalar(beta=beta)
    require_no_list(advantages=advantages, candidate_weight=candidate_weight)
    require_nonnegative(candidate_weight=candidate_weight, beta=beta)
    divergence = policy_kl(log_ratio, mask)
    if candidate_weight is not None:
        candidate_weight = jnp.asarray(candidate_weight)
        if candidate_weight.shape != log_ratio.shape[:2]:
            raise ValueError(f"candidate_weight must be [B,K] = {log_ratio.shape[:2]}, got {candidate_weight.shape}")
        mask = mask * (candidate_weight > 0)[..., None]  # what is left out is not read
        log_ratio = masked(log_ratio, mask)
    advantages = masked(with_steps("advantages", frozen(advantages), log_ratio.shape), mask)
    require_finite(advantages=advantages)
    if level == "sequence":
        mean = jnp.sum(log_ratio * mask, axis=-1) / divisor(jnp.sum(mask, axis=-1))
        log_ratio = with_steps("log_ratio", mean, log_ratio.shape)
    if policy_loss == "clip":
        policy, clipped = clipped_surrogate(log_ratio, advantages, clip, dual_clip)
    else:
        logp = masked(with_steps("logp", logp, log_ratio.shape), mask)
        policy, clipped = capped_weight_loss(log_ratio, logp, advantages, clip)

    def term(x: jax.Array, weight: jax.typing.ArrayLike = 0.0) -> Term:
        return aggregate_steps(
            x, mask, aggregate, candidate_weight=candidate_weight, max_length=max_length, weight=weight
        )

    terms = {"policy": term(policy, 1.0), "clip_fraction": term(clipped), **divergence}
    if kl is not None:
        terms["kl"] = term(with_steps("kl", kl, log_ratio.shape), beta)
    return terms


@loss
def soft_pair_grpo_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    pairs: Pairs,
    *,
    mask: jax.Array | None = None,
    clip: Clip = 0.2,
    dual_clip: jax.typing.ArrayLike | None = None,
    policy_loss: str = "clip",
    kl: jax.Array | None = None,
    beta: jax.typing.ArrayLike = 0.01,
    level: str = "token",
    aggregate: str = "sequence_mean",
    max_length: int | None = None,
) -> Objective:
    """Soft-Pair-GRPO (arXiv 2605.06375): GRPO on +1 for the preferred candidate of a pair and -1 for the rejected.

    Groups without a pair leave numerator and denominator; the others count all K candidates.

    Args:
      logp: `[B,K]` or `[B,K,T]` log-probabilities under the policy.
      old_logp: the same under pi_old.
      pairs: `Pairs`, `[B,P]`.
      mask: like `logp`, 1 where a step counts.
      clip: epsilon, or `(low, high)`.
      dual_clip: bound of the ratio where A < 0; see `clipped_surrogate`.
      policy_loss: "clip" or "cispo"; see `grpo_loss`.
      kl: elementwise KL estimate, the paper's is to pi_old: `kl_k2(logp, old_logp, mask)`; None for no KL term.
      beta: weight of `kl`; no effect without one.
      level: "token" or "sequence".
      aggregate: see `aggregate_steps`.
      max_length: see `aggregate_steps`.

    Returns:
      `(loss, metrics)` as `grpo_loss`, plus `groups_without_pair`, their share, and `invalid_pairs`, the share of
      pairs that make no sense and got weight 0.

    Raises:
      ValueError: as `grpo_loss` and for pairs as `usable_pairs`.
    """
    require_rank("logp", logp, {2, 3}, "[B,K] or [B,K,T]")
    pairs, invalid = usable_pairs(pairs, *logp.shape[:2])
    active = groups_with_pairs(pairs)
    terms = grpo_loss.objective(
        logp,
        old_logp,
        pair_rewards(pairs, logp.shape[1]),
        mask=mask,
        clip=clip,
        dual_clip=dual_clip,
        policy_loss=policy_loss,
        kl=kl,
        beta=beta,
        level=level,
        aggregate=aggregate,
        candidate_weight=jnp.broadcast_to(active[:, None], logp.shape[:2]),
        max_length=max_length,
    )
    return terms | {"groups_without_pair": mean_term(1 - active), "invalid_pairs": mean_term(as_float(invalid))}


def value_terms(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    *,
    mask: jax.Array | None = None,
    value_clip: float | None = None,
    value_weight: jax.typing.ArrayLike = 0.5,
) -> Objective:
    """Squared value error (arXiv 1707.06347, eq. 9), optionally clipped around the old values, as the term `value`.

    Args:
      values: V(s) under the current parameters, any shape.
      old_values: V(s) when the batch was collected.
      returns: regression targets.
      mask: 1 where a step counts.
      value_clip: largest change of the value that still gets a gradient, in units of the value; None for no clipping.
      value_weight: weight of `mean((V - return)^2)` in the loss.

    Raises:
      ValueError: if shapes differ, or value_clip, value_weight or a mask is negative.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    values, old_values, returns = as_float(values), frozen(old_values), frozen(returns)
    require_scalar(value_weight=value_weight)
    require_nonnegative(value_clip=value_clip, value_weight=value_weight, mask=mask)
    values, old_values, returns = (masked(x, mask) for x in (values, old_values, returns))
    errors = jnp.square(values - returns)
    if value_clip is not None:
        near = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
        errors = jnp.maximum(errors, jnp.square(near - returns))
    return {"value": mean_term(errors, mask, value_weight)}


@loss
def ppo_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    *,
    mask: jax.Array | None = None,
    clip: Clip = 0.2,
    dual_clip: jax.typing.ArrayLike | None = None,
    value_clip: float | None = None,
    value_weight: jax.typing.ArrayLike = 0.5,
    entropy: jax.Array | None = None,
    entropy_weight: jax.typing.ArrayLike = 0.0,
) -> Objective:
    """PPO (arXiv 1707.06347, eq. 7 and 9): clipped policy loss + `value_weight` * squared value error - entropy bonus.

    It is `grpo_loss` averaged over all steps and `value_terms`, of which the trainers make their PPO too; they do not
    clip the value.

    Args:
      logp: log-probabilities of the actions under the policy, any shape.
      old_logp: the same under pi_old.
      advantages: normally `gae`, normalised by the caller.
      values: V(s) under the current parameters.
      old_values: V(s) when the batch was collected.
      returns: value targets.
      mask: 1 where a step counts.
      clip: epsilon, or `(low, high)`.
      dual_clip: bound of the ratio where A < 0; see `clipped_surrogate`.
      value_clip: see `value_terms`.
      value_weight: weight of the mean squared value error.
      entropy: the policy's entropy at each step, like `logp`; None for no bonus.
      entropy_weight: weight of the bonus.

    Returns:
      `(loss, metrics)`; metrics `policy`, `value`, `entropy`, `clip_fraction`, `approx_kl`. All are means over
      masked steps.

    Raises:
      ValueError: if shapes differ, a clip, value_weight or mask is negative, dual_clip is at most 1, or an advantage
        that counts is not finite.
    """
    shapes = {"logp": logp, "old_logp": old_logp, "advantages": advantages, "values": values}
    require_same_shape(**shapes, mask=mask, entropy=entropy)
    require_scalar(entropy_weight=entropy_weight)
    flat = [jnp.reshape(x, (1, -1)) for x in (logp, old_logp, advantages)]
    counted = None if mask is None else jnp.reshape(mask, (1, -1))
    terms = grpo_loss.objective(*flat, mask=counted, clip=clip, dual_clip=dual_clip, aggregate="token_mean")
    if entropy is not None:
        terms["entropy"] = mean_term(as_float(entropy), mask, -entropy_weight)  # type: ignore[operator]
    return terms | value_terms(values, old_values, returns, mask=mask, value_clip=value_clip, value_weight=value_weight)
