"""The compared objectives as functions of `(logp, old_logp, rewards)` of groups, `[B,K]` each."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core import (
    Pairs,
    group_advantages,
    grpo_loss,
    hard_pair_grpo_loss,
    kl_k2,
    pairs_from_rewards,
    soft_pair_grpo_loss,
)
from pairgrpo_jax.theory.problems import GroupObjective

NO_CLIP = 1e6


def grpo(*, scale: str = "group", clip: float = NO_CLIP, beta: float = 0.0) -> GroupObjective:
    """GRPO with `eps = 0`, unclipped by default, with `beta` times the k2 estimate of KL(pi || pi_old)."""

    def objective(logp, old_logp, rewards):
        advantages = group_advantages(rewards, scale=scale, eps=0.0)
        return grpo_loss.objective(logp, old_logp, advantages, clip=clip, kl=kl_k2(logp, old_logp), beta=beta)

    return objective


def soft(*, scheme: str = "matched", clip: float = NO_CLIP, beta: float = 0.0) -> GroupObjective:
    """Soft-Pair-GRPO, unclipped by default, with `beta` times the k2 estimate of KL(pi || pi_old)."""

    def objective(logp, old_logp, rewards):
        pairs = pairs_from_rewards(rewards, scheme=scheme)
        return soft_pair_grpo_loss.objective(logp, old_logp, pairs, clip=clip, kl=kl_k2(logp, old_logp), beta=beta)

    return objective


def hard(delta: jax.typing.ArrayLike, *, scheme: str = "matched", **options) -> GroupObjective:
    """Hard-Pair-GRPO; `options` are those of `hard_pair_grpo_loss`."""

    def objective(logp, old_logp, rewards):
        pairs = pairs_from_rewards(rewards, scheme=scheme)
        return hard_pair_grpo_loss.objective(logp, old_logp, pairs, delta, **options)

    return objective


def labelled_pairs(rewards: jax.Array) -> tuple[Pairs, jax.Array]:
    """All Bradley-Terry labellings of one group, with their probabilities.

    Args:
      rewards: `[K]`.

    Returns:
      `Pairs` with a leading axis of the 2^P labellings, P = K(K-1)/2, and probabilities `[2^P]`.
    """
    size = rewards.shape[0]
    left, right = np.triu_indices(size, k=1)
    left_wins = np.array(list(itertools.product((True, False), repeat=len(left))))
    gap = rewards[left] - rewards[right]
    probs = jnp.prod(jax.nn.sigmoid(jnp.where(left_wins, gap, -gap)), axis=-1)
    weight = jnp.full(left_wins.shape, 1 / (size - 1))
    winner, loser = np.where(left_wins, left, right), np.where(left_wins, right, left)
    return Pairs(jnp.asarray(winner, jnp.int32), jnp.asarray(loser, jnp.int32), weight), probs
