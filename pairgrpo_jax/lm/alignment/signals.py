"""From verdicts to what a method learns from, with the critic's targets; and the figures logged with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core import Pairs
from pairgrpo_jax.core.pairs import groups_with_pairs
from pairgrpo_jax.lm.alignment.batch import Batch
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.methods import METHODS, Adaptive, Likelihoods, Verdict


def learning_signal(
    config: AlignConfig,
    batch: Batch,
    rewards: jax.Array | None,
    pairs: Pairs | None,
    key: jax.Array,
    adaptive: Adaptive,
    others: Likelihoods | None = None,
) -> Batch:
    """Adds the method's signal to a batch, and the critic's targets.

    Args:
      config: the method.
      batch: sampled, with `alive` (and `old_values` of a critic), or a data set's pairs.
      rewards: `[B,K]`, or None where a judge compared.
      pairs: the judge's or the data set's, or None where there are rewards.
      key: for random labels.
      adaptive: what the method changes from batch to batch.
      others: likelihoods of the replies after prompts that they do not belong to, for a method that asks.

    Raises:
      ValueError: if the method needs rewards and there are none.
    """
    method, scores = config.method, rewards
    if pairs is None or not method.comparisons:
        if rewards is None:
            fit = " or ".join(m.name for m in METHODS if m.comparisons and m.online)
            raise ValueError(f"{method.name} needs rewards, and the judge gives pairs: use {fit}, or rewards")
        pairs = None
    if config.critic is not None:
        batch, scores = _value_targets(batch, rewards, config.critic.gae_lambda, config.reference.ref_beta)
    verdict = Verdict(scores, pairs, batch.alive, batch.mask, others)
    return batch._replace(signal=method.signal(verdict, key, adaptive))


def _value_targets(batch: Batch, rewards, gae_lambda: float, ref_beta: float) -> tuple[Batch, jax.Array]:
    """The critic's targets and the advantages `[B,K,T]`, by GAE.

    The reward comes with the last token; every token pays `ref_beta` times its log-ratio to the reference.
    """
    mask = batch.mask
    last = mask * (1 - jnp.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1))))
    shaped = last * rewards[..., None]
    if ref_beta:
        shaped -= ref_beta * mask * (batch.old_logp - batch.ref_logp)
    values = batch.old_values * mask
    advantages = core.gae(shaped, values, jnp.zeros_like(rewards), mask - last, gae_lambda=gae_lambda)
    return batch._replace(returns=(advantages + values) * mask), advantages


def verdict_metrics(lengths: jax.Array, alive: jax.Array, ended: jax.Array, rewards: jax.Array | None) -> core.Metrics:
    """What is known before an update.

    Args:
      lengths: of completions, `[B,K]`.
      alive: `[B]`, 0 for a group without a usable verdict.
      ended: `[B,K]`, 1 where a completion stopped by itself.
      rewards: `[B,K]`, or None.

    Returns:
      `length` (tokens), `truncated` (share), `failed_groups` (count); with rewards, `reward`, `reward_std` in a group,
      `flat_groups` (share whose rewards are all equal), `rank_correlation` (the equivalence certificate).
    """
    metrics = {
        "length": jnp.mean(lengths.astype(jnp.float32)),
        "truncated": 1 - jnp.mean(ended),
        "failed_groups": jnp.sum(1 - alive),
        "tokens": jnp.sum(lengths).astype(jnp.float32),
    }
    if rewards is not None:

        def mean(x):
            return core.mean_term(x, alive).mean

        metrics["reward"] = mean(jnp.mean(rewards, axis=-1))
        metrics["reward_std"] = mean(jnp.std(rewards, axis=-1))
        metrics["flat_groups"] = mean((jnp.max(rewards, -1) == jnp.min(rewards, -1)).astype(jnp.float32))
        metrics["rank_correlation"] = mean(core.reward_rank_correlation(rewards))
    return metrics


def pair_metrics(alive: jax.Array, pairs: Pairs | None) -> core.Metrics:
    """Of pairs `[B,P]` that are learned from: `pairs` (count), `ties` (slots of `alive` groups `[B]` that hold none),
    `groups_without_pair` (share); nothing of None."""
    if pairs is None:
        return {}
    held = (pairs.weight > 0).astype(jnp.float32)
    return {
        "pairs": jnp.sum(held),
        "ties": jnp.sum(alive[:, None] * (1 - held)),
        "groups_without_pair": 1 - jnp.mean(groups_with_pairs(pairs)),
    }
