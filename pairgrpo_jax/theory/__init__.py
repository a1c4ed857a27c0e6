"""The theory of the Pair-GRPO family, executable: each claim measured on a problem whose expectations are exact.

`STATEMENTS` lists the checks in the order of a report; each maps a PRNG key to a `Statement` and needs float64.
`certificates` holds the conditions that a training run can evaluate.
"""

from pairgrpo_jax.theory import certificates
from pairgrpo_jax.theory.comparisons import comparison_table, fewer_comparisons
from pairgrpo_jax.theory.direction import (
    clipping_and_kl,
    hard_direction,
    irrelevant_candidates,
    off_policy,
    preferred_can_fall,
)
from pairgrpo_jax.theory.equivalence import (
    all_pairs_are_ranks,
    bradley_terry_remainder,
    cosine_table,
    gradient_bound,
    margin_weighted_pairs,
    pair_in_a_group,
    two_candidates,
)
from pairgrpo_jax.theory.improvement import certified_step, monotonic_improvement, trust_region_bound
from pairgrpo_jax.theory.noise import covariance_sign, determinism, variance_under_noise
from pairgrpo_jax.theory.statement import Statement
from pairgrpo_jax.theory.travel import chosen_budget, limited_step, realised_step, travel_budget

STATEMENTS = (
    two_candidates,
    pair_in_a_group,
    margin_weighted_pairs,
    all_pairs_are_ranks,
    gradient_bound,
    bradley_terry_remainder,
    hard_direction,
    off_policy,
    clipping_and_kl,
    preferred_can_fall,
    covariance_sign,
    variance_under_noise,
    irrelevant_candidates,
    travel_budget,
    realised_step,
    monotonic_improvement,
    trust_region_bound,
    determinism,
    chosen_budget,
    limited_step,
    certified_step,
    fewer_comparisons,
)

__all__ = ["STATEMENTS", "Statement", "certificates", "comparison_table", "cosine_table"]
