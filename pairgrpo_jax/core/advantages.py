"""Advantages of the candidates of a group, and along time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax.core.checks import (
    require_choice,
    require_no_list,
    require_nonnegative,
    require_rank,
    require_same_shape,
    require_share,
)
from pairgrpo_jax.core.terms import as_float, magnitude


def as_groups(name: str, x: jax.typing.ArrayLike) -> jax.Array:
    """`x`, an array or lists, in float32 at least; ValueError unless it is `[B,K]` with at least two candidates."""
    try:
        x = as_float(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers [B,K]: {error}") from None
    require_rank(name, x, {2}, "[B,K]")
    if x.shape[-1] < 2:
        raise ValueError(f"{name} must have K >= 2 candidates in a group, got K = {x.shape[-1]}")
    return x


def group_advantages(
    rewards: jax.Array,
    *,
    baseline: str = "mean",
    scale: str = "group",
    ddof: int = 0,
    eps: float = 1e-4,
    alive: jax.Array | None = None,
) -> jax.Array:
    """Group-relative advantages, `A_i = (R_i - baseline) / (std + eps)`.

    A group of equal rewards gets exactly 0. With K = 2, `eps = 0` and the defaults, advantages are +1 and -1 whatever
    the rewards, up to rounding: that of a mean which is large beside the differences, and of squares.

    Args:
      rewards: `[B,K]` rewards of the K candidates of B groups.
      baseline: "mean" of the group (GRPO, arXiv 2402.03300) or "leave_one_out", the mean of the others
        (RLOO, arXiv 2402.14740).
      scale: divide by the std of the "group" (GRPO), of the whole "batch", or by "none" (Dr. GRPO, arXiv 2503.20783).
      ddof: 0 for the population std, 1 for the sample std.
      eps: added to the std.
      alive: `[B]`, 0 for a group that gets 0 and is not part of the batch; None: all are.

    Returns:
      `[B,K]` advantages.

    Raises:
      ValueError: for a rank other than 2, K < 2, ddof not 0 or 1, a negative eps, an unknown baseline or scale, or
        `alive` that is not `[B]`.
    """
    rewards = as_groups("rewards", rewards)
    require_choice("baseline", baseline, ("mean", "leave_one_out"))
    require_choice("scale", scale, ("group", "batch", "none"))
    require_nonnegative(eps=eps)
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    require_no_list(alive=alive)
    if alive is not None and jnp.shape(alive) != rewards.shape[:1]:
        raise ValueError(f"alive must be [B] = {rewards.shape[:1]}, got shape {jnp.shape(alive)}")
    size = rewards.shape[-1]
    counted = jnp.ones_like(rewards[:, :1]) if alive is None else (alive > 0).astype(rewards.dtype)[:, None]
    equal = jnp.all(rewards == rewards[:, :1], axis=-1, keepdims=True) | (counted == 0)
    centred = jnp.where(equal, 0, rewards - jnp.mean(rewards, axis=-1, keepdims=True))
    if baseline == "leave_one_out":
        centred = centred * (size / (size - 1))
    if scale == "none":
        return centred
    axis = -1 if scale == "group" else None
    count = size if scale == "group" else jnp.maximum(jnp.sum(counted), 1) * size
    kept = rewards if alive is None else jnp.where(counted > 0, rewards, 0)
    spread = counted * (kept - jnp.sum(kept, axis=axis, keepdims=True) / count)
    unit = magnitude(spread, axis)
    variance = jnp.sum(jnp.square(spread / unit), axis=axis, keepdims=True) / (count - ddof)
    # The inner `where` keeps the square root's gradient finite where all rewards are equal.
    flat = jnp.logical_or(variance == 0, jnp.all(equal) if scale == "batch" else equal)
    std = jnp.sqrt(jnp.where(flat, 1, variance))
    # The compiler must know a 0 for one: it rounds a division by a square root otherwise than one by a sum.
    shift = 0.0 if isinstance(eps, (int, float)) and eps == 0 else eps / unit
    return jnp.where(flat, 0, centred / unit / (std + shift))


def midranks(values: jax.Array) -> jax.Array:
    """Ranks within each group, 1 for the lowest, ties sharing their mean rank.

    Args:
      values: `[B,K]`.

    Returns:
      `[B,K]` mid-ranks in `[1, K]`; NaN has none, and gets NaN.

    Raises:
      ValueError: for values that are not `[B,K]` with K >= 2.
    """
    values = as_groups("values", values)
    mine, other = values[:, :, None], values[:, None, :]
    below = jnp.sum(mine > other, axis=-1)
    equal = jnp.sum(mine == other, axis=-1)  # counts itself
    return jnp.where(jnp.isnan(values), values, (below + (equal + 1) / 2).astype(values.dtype))


def rank_advantages(rewards: jax.Array) -> jax.Array:
    """Centred mid-ranks scaled to [-1, 1]: rank-GRPO, the control for what binary pairs change.

    Equal to the all-pairs Soft reward, wins minus losses over K - 1.

    Args:
      rewards: `[B,K]`.

    Returns:
      `[B,K]` advantages, 0 where all rewards of a group are equal.

    Raises:
      ValueError: for rewards that are not `[B,K]` with K >= 2.
    """
    rewards = as_groups("rewards", rewards)
    size = rewards.shape[-1]
    return (midranks(rewards) - (size + 1) / 2) * (2 / (size - 1))


def reward_rank_correlation(rewards: jax.Array) -> jax.Array:
    """The equivalence certificate: Pearson correlation of the rewards with their mid-ranks, per group.

    It is the cosine between GRPO's and all-pairs Soft-Pair-GRPO's advantages: 1 means that turning rewards into
    pairs loses nothing but the size. Groups of equal rewards, where both advantages are 0, get 1.

    Args:
      rewards: `[B,K]`.

    Returns:
      `[B]` correlations in [0, 1].

    Raises:
      ValueError: for rewards that are not `[B,K]` with K >= 2.
    """
    ranks, rewards = rank_advantages(rewards), as_float(rewards)
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    centred = centred / magnitude(centred, -1)
    norms = jnp.sum(ranks**2, axis=-1) * jnp.sum(centred**2, axis=-1)
    flat = jnp.logical_or(norms == 0, jnp.all(ranks == 0, axis=-1))
    return jnp.where(flat, 1, jnp.sum(ranks * centred, axis=-1) / jnp.sqrt(jnp.where(flat, 1, norms)))


def discounted_returns(rewards: jax.Array, discounts: jax.Array) -> jax.Array:
    """`G_t = r_t + discount_t * G_{t+1}` along the last axis, with `G_T = 0`.

    Args:
      rewards: `[..., T]`.
      discounts: `[..., T]`, gamma, or 0 where an episode ends after step t.

    Returns:
      `[..., T]` returns to go.

    Raises:
      ValueError: if shapes differ, or a discount is outside [0, 1].
    """
    require_same_shape(rewards=rewards, discounts=discounts)
    zeros = jnp.zeros_like(rewards)
    return gae(rewards, zeros, jnp.zeros_like(rewards, shape=rewards.shape[:-1]), discounts, gae_lambda=1.0)


def gae(
    rewards: jax.Array,
    values: jax.Array,
    last_value: jax.Array,
    discounts: jax.Array,
    *,
    gae_lambda: jax.typing.ArrayLike = 0.95,
) -> jax.Array:
    """Generalised advantage estimation (arXiv 1506.02438) along the last axis.

    Args:
      rewards: `[..., T]`.
      values: `[..., T]`, V(s_t).
      last_value: `[...]`, V(s_T), the bootstrap after the last step.
      discounts: `[..., T]`, gamma, or 0 where the episode terminates at step t.
      gae_lambda: lambda, in [0, 1].

    Returns:
      `[..., T]` advantages; add `values` for the value targets.

    Raises:
      ValueError: if rewards, values and discounts differ in shape, last_value does not fit, or a discount or gae_lambda
        is outside [0, 1].
    """
    require_no_list(last_value=last_value)
    require_same_shape(rewards=rewards, values=values, discounts=discounts)
    rewards, values, discounts = as_float(rewards), as_float(values), as_float(discounts)
    if jnp.shape(last_value) != rewards.shape[:-1]:
        raise ValueError(f"last_value must be {rewards.shape[:-1]}, rewards without T, got {jnp.shape(last_value)}")
    require_share(discounts=discounts, gae_lambda=gae_lambda)
    next_values = jnp.concatenate([values, as_float(last_value)[..., None]], axis=-1)[..., 1:]
    errors = rewards + discounts * next_values - values

    def step(carry, inputs):
        error, decay = inputs
        carry = error + decay * carry
        return carry, carry

    inputs = (jnp.moveaxis(errors, -1, 0), jnp.moveaxis(discounts * gae_lambda, -1, 0))
    _, advantages = jax.lax.scan(step, jnp.zeros_like(errors, shape=errors.shape[:-1]), inputs, reverse=True)
    return jnp.moveaxis(advantages, 0, -1)
