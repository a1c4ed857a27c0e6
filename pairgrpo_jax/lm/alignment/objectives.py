"""What an update minimises: a method's terms, the critic's, the penalty towards the reference, and what is logged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core.preference import ranked_right
from pairgrpo_jax.core.surrogate import aggregate_steps
from pairgrpo_jax.core.terms import with_more
from pairgrpo_jax.lm.alignment.batch import Batch
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.models.scoring import Scores
from pairgrpo_jax.methods import Adaptive, Likelihoods
from pairgrpo_jax.methods.method import terms_of

_KL = {"k2": core.kl_k2, "k3": core.kl_k3}


def objective(config: AlignConfig, batch: Batch, scores: Scores, values: Any, adaptive: Adaptive) -> core.Objective:
    """The method's terms on one batch, the penalty towards the reference, and metrics.

    Args:
      config: the method, and the weights of what is added to it.
      batch: what was sampled, or the pairs of a data set, with the method's signal.
      scores: of the policy that is being trained, `[B,K,T]`.
      values: the critic's, `[B,K,T]`, or None.
      adaptive: what the method changes from batch to batch.

    Returns:
      Exact terms; the one that the method improves is called `surrogate`.
    """
    likelihoods = Likelihoods(scores.logp, batch.old_logp, batch.ref_logp, batch.mask)
    terms = of_whole_batch(batch, terms_of(config.method, likelihoods, batch.signal, adaptive))
    terms.pop("groups_without_pair", None)  # of the whole batch it is known before
    more: core.Objective = {}
    if config.critic is not None:
        how = {"mask": batch.alive_mask, "value_weight": config.critic.value_weight}
        more |= core.value_terms(values, batch.old_values, batch.returns, **how)
    elif config.reference.ref_beta > 0:
        penalty = _KL[config.reference.ref_kl](scores.logp, batch.ref_logp, batch.alive_mask)
        alive = batch.alive[:, None] * jnp.ones(batch.lengths.shape)
        rule = getattr(config.method, "aggregate", "sequence_mean")
        more["ref_penalty"] = aggregate_steps(
            penalty, batch.mask, rule, candidate_weight=alive, weight=config.reference.ref_beta
        )
    if batch.pairs is not None and (batch.ref_logp is not None or config.method.ranks_alone):
        frozen = likelihoods._replace(logp=jax.lax.stop_gradient(scores.logp))
        reward = config.method.implicit_reward(frozen)
        won, lost = (jnp.take_along_axis(reward, index, axis=1) for index in batch.pairs[:2])
        terms.pop("accuracy", None)  # the same
        more["pair_accuracy"] = core.mean_term(ranked_right(won - lost), (batch.pairs.weight > 0).astype(won.dtype))
    return with_more(terms, more | diagnostics(batch, scores))


def of_whole_batch(batch: Batch, terms: core.Objective) -> core.Objective:
    """Terms of an update whose means count the groups that have no place in it, with a value of 0."""
    if batch.stands_for is None:
        return terms
    share = jnp.max(batch.stands_for)  # empty places have 0
    return {name: term if term.is_metric else term._replace(count=term.count * share) for name, term in terms.items()}


def sft_objective(batch: Batch, scores: Scores) -> core.Objective:
    """Mean negative log-probability of a token of the chosen replies."""
    mask = batch.mask
    return {
        "surrogate": core.mean_term(-scores.logp, mask, 1.0),
        "entropy": core.mean_term(scores.entropy, mask),
        "length": core.mean_term(batch.lengths.astype(jnp.float32), batch.alive[:, None]),
    }


def diagnostics(batch: Batch, scores: Scores) -> core.Objective:
    """Entropy, nats per token; `kl_ref`, KL(pi || pi_ref), nats per completion; `logp_change` since pi_old.

    Of groups that are alive, and in them of completions that count. The KL is a k3 estimate under samples of pi_old;
    offline, over the data set's replies, it is only a distance.
    """
    mask = batch.alive_mask
    terms = {"entropy": core.mean_term(scores.entropy, mask)}
    logp = jax.lax.stop_gradient(scores.logp)
    if batch.ref_logp is not None:
        counted = jnp.ones(batch.lengths.shape) if batch.counted is None else batch.counted
        kl = jnp.sum(core.kl_k3(logp, batch.ref_logp, mask), axis=-1)
        terms["kl_ref"] = core.mean_term(kl, counted * batch.alive[:, None])
    if batch.old_logp is not None:
        terms["logp_change"] = core.mean_term(jnp.abs(logp - batch.old_logp), mask)
    return terms
