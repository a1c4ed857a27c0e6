"""What each method minimises, as a pure function of a batch and the policy's scores, and what is logged beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core.surrogate import aggregate_steps
from pairgrpo_jax.lm.alignment.batch import Batch
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.data import ranked_right
from pairgrpo_jax.lm.models.scoring import Scores

_KL = {"k1": core.kl_k1, "k2": core.kl_k2, "k3": core.kl_k3}


def objective(config: AlignConfig, batch: Batch, scores: Scores, values: jax.Array | None = None) -> core.Objective:
    """The method's terms on one batch, the penalty towards the reference, and metrics.

    Args:
      config: names the method and its weights.
      batch: what was sampled, or the pairs of a data set.
      scores: of the policy that is being trained, `[B,K,T]`.
      values: the critic's, `[B,K,T]` (ppo).

    Returns:
      Exact terms; the one that the method improves is called `surrogate`.
    """
    terms = _METHODS[config.algo](config, batch, scores.logp, values)
    terms.pop("accuracy", None)  # `pair_accuracy` of `diagnostics` is the same figure for all methods
    for name in ("policy", "fit", "dpo", "ipo"):
        if name in terms:
            terms["surrogate"] = terms.pop(name)
    if config.ref_beta > 0 and config.algo != "ppo":
        penalty = _KL[config.ref_kl](scores.logp, batch.ref_logp)
        weight = batch.alive[:, None] * jnp.ones(batch.lengths.shape)
        terms["ref_penalty"] = aggregate_steps(
            penalty, batch.mask, config.aggregate, candidate_weight=weight, weight=config.ref_beta
        )
    return terms | diagnostics(config, batch, scores)


def sft_objective(batch: Batch, scores: Scores) -> core.Objective:
    """Mean negative log-probability of a token of the chosen replies."""
    mask = batch.mask
    return {
        "surrogate": core.mean_term(-scores.logp, mask, 1.0),
        "entropy": core.mean_term(scores.entropy, mask),
        "length": core.mean_term(batch.lengths.astype(jnp.float32)),
    }


def diagnostics(config: AlignConfig, batch: Batch, scores: Scores) -> core.Objective:
    """Entropy (nats per token); KL per completion (nats): `kl_old` is KL(pi_old || pi), `kl_ref` KL(pi || pi_ref).

    Both are k3 estimates under samples of pi_old; offline, over the data set's replies, they are only distances.
    `pair_accuracy`: how often the log-ratio to the reference puts a pair the way it is labelled; ties count half.
    """
    mask = batch.mask
    terms = {"entropy": core.mean_term(scores.entropy, mask)}
    logp = jax.lax.stop_gradient(scores.logp)
    alive = jnp.broadcast_to(batch.alive[:, None], batch.lengths.shape)
    for name, other in (("old", batch.old_logp), ("ref", batch.ref_logp)):
        if other is not None:
            kl = core.kl_k3(other, logp) if name == "old" else core.kl_k3(logp, other)
            terms[f"kl_{name}"] = core.mean_term(jnp.sum(kl * mask, axis=-1), alive)
    if batch.old_logp is not None:
        terms["logp_change"] = core.mean_term(jnp.abs(logp - batch.old_logp), mask)
    if batch.pairs is not None and batch.ref_logp is not None:
        ratio = jnp.sum((logp - batch.ref_logp) * mask, axis=-1)
        won, lost = (jnp.take_along_axis(ratio, index, axis=1) for index in batch.pairs[:2])
        right = ranked_right(won - lost)
        terms["pair_accuracy"] = core.mean_term(right, (batch.pairs.weight > 0).astype(right.dtype))
    return terms


def _clip(config: AlignConfig) -> tuple[float, float]:
    return config.clip, config.clip if config.clip_high is None else config.clip_high


def _surrogate(config: AlignConfig, batch: Batch, logp, values) -> core.Objective:
    del values
    return core.grpo_loss.objective(
        logp,
        batch.old_logp,
        batch.advantages,
        mask=batch.mask,
        clip=_clip(config),
        level=config.level,
        aggregate=config.aggregate,
        candidate_weight=jnp.broadcast_to(batch.alive[:, None], logp.shape[:2]),
    )


def _soft(config: AlignConfig, batch: Batch, logp, values) -> core.Objective:
    del values
    terms = core.soft_pair_grpo_loss.objective(
        logp,
        batch.old_logp,
        batch.pairs,
        mask=batch.mask,
        clip=_clip(config),
        kl=core.kl_k2(logp, batch.old_logp),
        beta=config.beta,
        level=config.level,
        aggregate=config.aggregate,
    )
    return terms | {"kl_penalty": terms.pop("kl")}


def _hard(config: AlignConfig, batch: Batch, logp, values) -> core.Objective:
    del values
    return core.hard_pair_grpo_loss.objective(
        logp,
        batch.old_logp,
        batch.pairs,
        batch.delta,
        mask=batch.mask,
        kl=core.kl_k2(logp, batch.old_logp) if config.hinge == "tokens" else None,
        alpha=config.alpha,
        beta=config.beta,
        fit=config.fit,
        trust_region=config.trust_region,
        multiplier=batch.multiplier,
        project_target=config.project_target,
        length_normalize=config.length_normalize,
        aggregate=config.aggregate,
    )


def _ppo(config: AlignConfig, batch: Batch, logp, values) -> core.Objective:
    return core.ppo_loss.objective(
        logp,
        batch.old_logp,
        batch.advantages,
        values,
        batch.old_values,
        batch.returns,
        mask=batch.mask * batch.alive[:, None, None],
        clip=_clip(config),
        value_weight=config.value_weight,
    )


def sequence_logp(logp: jax.Array, mask: jax.Array, mean: bool = False) -> jax.Array:
    """`[B,K,T]` log-probabilities summed (or averaged) over real tokens, `[B,K]`."""
    total = jnp.sum(logp * mask, axis=-1)
    return total / jnp.maximum(jnp.sum(mask, axis=-1), 1) if mean else total


def _preference(loss: core.terms.Loss):
    def method(config: AlignConfig, batch: Batch, logp, values) -> core.Objective:
        del values
        mine, ref = (sequence_logp(x, batch.mask, config.length_normalize) for x in (logp, batch.ref_logp))
        return loss.objective(mine[:, 0], mine[:, 1], ref[:, 0], ref[:, 1], beta=config.beta)

    return method


def _orpo(config: AlignConfig, batch: Batch, logp, values) -> core.Objective:
    del values
    mean = sequence_logp(logp, batch.mask, mean=True)
    terms = core.orpo_loss.objective(mean[:, 0], mean[:, 1], weight=config.beta)
    return terms | {"surrogate": terms.pop("nll")}


_METHODS = {
    "grpo": _surrogate,
    "rank": _surrogate,
    "soft": _soft,
    "hard": _hard,
    "ppo": _ppo,
    "dpo": _preference(core.dpo_loss),
    "ipo": _preference(core.ipo_loss),
    "orpo": _orpo,
}
