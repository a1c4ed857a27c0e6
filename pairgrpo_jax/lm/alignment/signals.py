"""From verdicts to what a method learns from: advantages, pairs, or value targets; and the figures logged with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core import Pairs
from pairgrpo_jax.core.pairs import groups_with_pairs
from pairgrpo_jax.lm.alignment.batch import Batch
from pairgrpo_jax.lm.alignment.config import PAIRED, AlignConfig


def learning_signal(
    config: AlignConfig, batch: Batch, rewards: jax.Array | None, pairs: Pairs | None, key: jax.Array
) -> Batch:
    """Adds the method's advantages, pairs or value targets to a batch.

    Args:
      config: names the method.
      batch: sampled, with `alive` (and, for ppo, `old_values`).
      rewards: `[B,K]`, or None where a judge compared.
      pairs: the judge's, or None where there are rewards.
      key: for the random labels of `scheme="bradley_terry"`.

    Raises:
      ValueError: if the method needs rewards and there are none.
    """
    if config.algo in PAIRED and pairs is not None:
        return batch._replace(pairs=pairs._replace(weight=pairs.weight * batch.alive[:, None]))
    if rewards is None:
        raise ValueError(f"algo={config.algo!r} needs rewards, and the judge gives pairs: use soft or hard, or rewards")
    if config.algo in PAIRED:
        pairs = core.pairs_from_rewards(rewards, scheme=config.scheme, margin=config.margin, key=key)
        return learning_signal(config, batch, rewards, pairs, key)
    if config.algo == "ppo":
        return _value_targets(config, batch, rewards)
    advantages = core.rank_advantages(rewards) if config.algo == "rank" else _group_advantages(config, batch, rewards)
    return batch._replace(advantages=advantages * batch.alive[:, None])


def _group_advantages(config: AlignConfig, batch: Batch, rewards: jax.Array) -> jax.Array:
    """Those of the groups alive; the std of a batch counts no others."""
    if config.scale != "batch":
        return core.group_advantages(rewards, scale=config.scale)
    share = jnp.maximum(jnp.mean(batch.alive), 1e-6)
    mean = core.mean_term(jnp.mean(rewards, axis=-1), batch.alive).mean
    filled = jnp.where(batch.alive[:, None] > 0, rewards, mean)  # adds nothing to the sum of squares, but to the count
    return core.group_advantages(filled, scale="batch") * jnp.sqrt(share)


def _value_targets(config: AlignConfig, batch: Batch, rewards) -> Batch:
    """The reward comes with the last token; every token pays `ref_beta` times its log-ratio to the reference."""
    mask = batch.mask
    last = mask * (1 - jnp.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1))))
    shaped = last * rewards[..., None] - config.ref_beta * mask * (batch.old_logp - batch.ref_logp)
    values = batch.old_values * mask
    advantages = core.gae(shaped, values, jnp.zeros_like(rewards), mask - last, trace=config.trace)
    counted = mask * batch.alive[:, None, None]
    mean, square = (core.mean_term(x, counted).mean for x in (advantages, advantages**2))
    normal = (advantages - mean) * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + 1e-8)
    return batch._replace(advantages=normal * counted, returns=(advantages + values) * mask)


def offline_signal(batch: Batch) -> Batch:
    """A data set's own labels."""
    return batch._replace(pairs=core.chosen_rejected_pairs(len(batch.lengths)))


def verdict_metrics(batch: Batch, rewards: jax.Array | None, ended: jax.Array) -> core.Metrics:
    """What is known before an update.

    Args:
      batch: with its learning signal.
      rewards: `[B,K]`, or None.
      ended: `[B,K]`, 1 where a completion stopped by itself.

    Returns:
      `length` (tokens), `truncated` (share), `failed_groups` (count); with rewards, `reward`, `reward_std` in a group,
      `flat_groups` (share whose rewards are all equal), `rank_correlation` (the equivalence certificate); with pairs,
      `pairs` (count), `ties` (pair slots that hold none), `groups_without_pair` (share).
    """
    alive = batch.alive
    metrics = {
        "length": jnp.mean(batch.lengths.astype(jnp.float32)),
        "truncated": 1 - jnp.mean(ended),
        "failed_groups": jnp.sum(1 - alive),
        "tokens": jnp.sum(batch.lengths).astype(jnp.float32),
    }
    if rewards is not None:

        def mean(x):
            return core.mean_term(x, alive).mean

        metrics["reward"] = mean(jnp.mean(rewards, axis=-1))
        metrics["reward_std"] = mean(jnp.std(rewards, axis=-1))
        metrics["flat_groups"] = mean((jnp.max(rewards, -1) == jnp.min(rewards, -1)).astype(jnp.float32))
        metrics["rank_correlation"] = mean(core.reward_rank_correlation(rewards))
    if batch.pairs is not None:
        held = (batch.pairs.weight > 0).astype(jnp.float32)
        metrics["pairs"] = jnp.sum(held)
        metrics["ties"] = jnp.sum(alive[:, None] * (1 - held))
        metrics["groups_without_pair"] = 1 - jnp.mean(groups_with_pairs(batch.pairs))
    return metrics
