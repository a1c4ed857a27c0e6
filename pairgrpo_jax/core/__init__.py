"""Pure functions on arrays: pairs, advantages, divergences and every objective. Nothing here knows a model."""

from pairgrpo_jax.core.advantages import (
    discounted_returns,
    gae,
    group_advantages,
    midranks,
    rank_advantages,
    reward_rank_correlation,
)
from pairgrpo_jax.core.certificates import (
    bradley_terry_bound,
    conditions,
    scheme_cosine,
    smallest_gap,
    transfers_fit,
)
from pairgrpo_jax.core.hard import (
    candidate_log_probs,
    delta_schedule,
    hard_pair_grpo_loss,
    hard_pair_target,
    travel_schedule,
    update_multiplier,
)
from pairgrpo_jax.core.kl import categorical_kl, gaussian_kl, kl_k1, kl_k2, kl_k3
from pairgrpo_jax.core.pairs import Pairs, chosen_rejected_pairs, pair_rewards, pairs_from_rewards
from pairgrpo_jax.core.preference import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    simpo_loss,
)
from pairgrpo_jax.core.step import largest_step, limit_step
from pairgrpo_jax.core.surrogate import grpo_loss, ppo_loss, soft_pair_grpo_loss, value_terms
from pairgrpo_jax.core.terms import Metrics, Objective, Term, evaluate, loss, mean_term

__all__ = [
    "Metrics",
    "Objective",
    "Pairs",
    "Term",
    "bradley_terry_bound",
    "candidate_log_probs",
    "categorical_kl",
    "chosen_rejected_pairs",
    "conditions",
    "delta_schedule",
    "discounted_returns",
    "dpo_loss",
    "evaluate",
    "gae",
    "gaussian_kl",
    "group_advantages",
    "grpo_loss",
    "hard_pair_grpo_loss",
    "hard_pair_target",
    "ipo_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kto_loss",
    "kto_reference_point",
    "largest_step",
    "limit_step",
    "loss",
    "mean_term",
    "midranks",
    "orpo_loss",
    "pair_rewards",
    "pairs_from_rewards",
    "ppo_loss",
    "rank_advantages",
    "reward_rank_correlation",
    "scheme_cosine",
    "simpo_loss",
    "smallest_gap",
    "soft_pair_grpo_loss",
    "transfers_fit",
    "travel_schedule",
    "update_multiplier",
    "value_terms",
]
