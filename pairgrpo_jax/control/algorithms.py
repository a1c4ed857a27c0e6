"""The five methods: each turns the scores of a batch into a learning signal, and a signal into an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.control.config import ControlConfig
from pairgrpo_jax.training import TrainState


class Labels(NamedTuple):
    """Pairs `[G,P]`, and Hard's target `[G,K]`, which all updates on a batch share."""

    pairs: core.Pairs
    target: jax.Array | None = None


class Algorithm(NamedTuple):
    """A method.

    Attributes:
      signal: `(scores [G,K], key, state) -> pytree of [G, ...]`, computed once per batch; `Labels` for a pair method.
      objective: `(logp [G,K,T], old_logp [G,K,T], signal, kl [G,K,T], state) -> Objective`; `kl` is the exact
        KL(pi_theta || pi_old) at every step, `state` gives delta and multiplier.
    """

    signal: Callable[[jax.Array, jax.Array, TrainState], Any]
    objective: Callable[..., core.Objective]


def make_algorithm(config: ControlConfig) -> Algorithm:
    """The method that `config.algo` names."""
    return {"ppo": _ppo, "grpo": _grpo, "rank": _rank, "soft": _soft, "hard": _hard}[config.algo](config)


def _surrogate(config: ControlConfig, advantages: Callable[[jax.Array], jax.Array]) -> Algorithm:
    """The clipped surrogate on advantages that are a function of the scores."""

    def objective(logp, old_logp, signal, kl, state):
        del kl, state
        return core.grpo_loss.objective(logp, old_logp, signal, clip=config.clip)

    return Algorithm(lambda scores, key, state: advantages(scores), objective)


def _ppo(config: ControlConfig) -> Algorithm:
    """Advantages normalised over the batch. The trainer adds what `core.ppo_loss` has beside it."""
    return _surrogate(config, lambda scores: (scores - jnp.mean(scores)) / (jnp.std(scores) + 1e-8))


def _grpo(config: ControlConfig) -> Algorithm:
    return _surrogate(config, core.group_advantages)


def _rank(config: ControlConfig) -> Algorithm:
    return _surrogate(config, core.rank_advantages)


def _pairs(config: ControlConfig, scores: jax.Array, key: jax.Array) -> core.Pairs:
    return core.pairs_from_rewards(scores, scheme=config.scheme, margin=config.margin, key=key)


def _soft(config: ControlConfig) -> Algorithm:
    def signal(scores, key, state):
        del state
        return Labels(_pairs(config, scores, key))

    def objective(logp, old_logp, labels: Labels, kl, state):
        del state
        return core.soft_pair_grpo_loss.objective(
            logp, old_logp, labels.pairs, clip=config.clip, kl=kl, beta=config.beta
        )

    return Algorithm(signal, objective)


def _hard(config: ControlConfig) -> Algorithm:
    delta = core.delta_schedule(config.delta_0, config.delta_gamma)

    def signal(scores, key, state: TrainState):
        pairs, zeros = _pairs(config, scores, key), jnp.zeros_like(scores)
        p0 = jnp.exp(core.candidate_log_probs(zeros, zeros)[0])  # as the loss has it
        radius = config.beta if config.project_target else None
        return Labels(pairs, core.hard_pair_target(p0, pairs, delta(state.delta_step), max_kl=radius))

    def objective(logp, old_logp, labels: Labels, kl, state: TrainState):
        return core.hard_pair_grpo_loss.objective(
            logp,
            old_logp,
            labels.pairs,
            delta(state.delta_step),
            kl=kl,
            alpha=config.alpha,
            beta=config.beta,
            fit=config.fit,
            trust_region=config.trust_region,
            multiplier=state.multiplier,
            target=labels.target,
        )

    return Algorithm(signal, objective)
