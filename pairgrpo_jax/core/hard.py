"""Hard-Pair-GRPO: an explicit target that moves probability from rejected to preferred, fitted under a trust region.

A candidate's own probability means nothing for a sequence (about e^-100) or a density, so masses live on the
*candidate distribution* of a group, `p_i = p0_i rho_i / sum_j p0_j rho_j`, rho the importance ratio to pi_old.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pairgrpo_jax.core.bisection import largest_fitting
from pairgrpo_jax.core.checks import (
    require_choice,
    require_finite,
    require_no_list,
    require_nonnegative,
    require_positive,
    require_rank,
    require_scalar,
    require_values,
)
from pairgrpo_jax.core.pairs import Pairs, groups_with_pairs, scatter_pairs, usable_pairs
from pairgrpo_jax.core.surrogate import AGGREGATES, aggregate_steps, policy_kl, prepare, with_steps
from pairgrpo_jax.core.terms import Objective, as_float, divisor, frozen, loss, masked, mean_term

CANDIDATES = ("empirical", "likelihood")
FLOOR = 1e-3
Fit = Literal["reverse", "forward"]
TrustRegion = Literal["hinge", "lagrangian"]
FITS, TRUST_REGIONS = get_args(Fit), get_args(TrustRegion)


_require_factor = functools.partial(require_values, "in (0, 1]", lambda x: (x > 0) & (x <= 1))


def delta_schedule(delta_0: jax.typing.ArrayLike, gamma: jax.typing.ArrayLike) -> optax.Schedule:
    """`delta_t = delta_0 * gamma^t` (arXiv 2605.06375), an optax schedule of the number of target updates t.

    The total mass a pair can ever move is `delta_0 / (1 - gamma)`, 1 at the paper's 0.02 and 0.98.

    Raises:
      ValueError: for delta_0 < 0 or gamma outside (0, 1].
    """
    require_nonnegative(delta_0=delta_0)
    _require_factor(gamma=gamma)
    return lambda count: delta_0 * gamma ** jnp.asarray(count, float)


def travel_schedule(budget: float, updates: int, *, final: float = 0.1) -> optax.Schedule:
    """`delta_t = delta_0 * gamma^t` with delta_0 and gamma chosen so that `updates` of them sum to `budget` exactly.

    Under `delta_schedule` the total mass a pair can move follows from two rates that say nothing about the length of
    training. Here it is the choice, and the length is a parameter.

    Args:
      budget: sum of delta_t over the run: an upper bound of the total variation that targets travel per unit of pair
        weight; a policy that is fitted by Adam can travel more.
      updates: number of target updates, >= 1; delta is 0 after them.
      final: the last delta as a fraction of the first, in (0, 1]; 1 keeps delta constant.

    Raises:
      ValueError: for budget < 0, updates < 1 or final outside (0, 1].
    """
    require_nonnegative(budget=budget)
    if not isinstance(updates, (int, np.integer)) or updates < 1:
        raise ValueError(f"updates must be an integer >= 1, got {updates}")
    _require_factor(final=final)
    gamma = final ** (1 / max(updates - 1, 1))
    delta = delta_schedule(budget / sum(gamma**t for t in range(updates)), gamma)
    return lambda count: jnp.where(jnp.asarray(count) < updates, delta(count), 0)


def candidate_log_probs(
    logp: jax.Array,
    old_logp: jax.Array,
    *,
    mask: jax.Array | None = None,
    candidates: str = "empirical",
    length_normalize: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The candidate distributions of pi_old and of the policy.

    Args:
      logp: `[B,K]` or `[B,K,T]`; log-ratios are summed over masked steps.
      old_logp: like `logp`.
      mask: like `logp`.
      candidates: "empirical", p0 = 1/K, the measure of K samples; or "likelihood", p0 = softmax(log pi_old), exact
        where the candidates are all actions.
      length_normalize: mean instead of sum over steps, for sequences of very different lengths; of log pi_old too,
        so that a "likelihood" p0 is the softmax of its means.

    Returns:
      `log p0` and `log p_theta`, `[B,K]`, both normalised; they are equal where logp = old_logp.

    Raises:
      ValueError: if shapes differ, or `candidates` is unknown.
    """
    return _candidates(*prepare(logp, old_logp, mask), candidates, length_normalize)


def _candidates(log_ratio, old_logp, mask, candidates, length_normalize):
    require_choice("candidates", candidates, CANDIDATES)
    steps = divisor(jnp.sum(mask, axis=-1)) if length_normalize else 1
    log_ratio = jnp.sum(log_ratio * mask, axis=-1) / steps
    old_logp = jnp.sum(old_logp * mask, axis=-1) / steps
    log_p0 = jax.nn.log_softmax(jnp.zeros_like(old_logp) if candidates == "empirical" else old_logp)
    return log_p0, jax.nn.log_softmax(log_p0 + log_ratio)


def hard_pair_target(
    p0: jax.Array,
    pairs: Pairs,
    delta: jax.typing.ArrayLike,
    *,
    floor: float = FLOOR,
    max_kl: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Moves `weight * delta` of probability from the rejected to the preferred candidate of each pair.

    Transfers of several pairs add up. What leaves a candidate is capped so that its probability stays at `floor`
    or above (pairs that share it shrink alike), so every row sums to 1 and nothing that was above 0 reaches it.

    Args:
      p0: `[B,K]`, candidate probabilities under pi_old.
      pairs: `Pairs`, `[B,P]`.
      delta: scalar, probability mass per unit of pair weight.
      floor: least probability that a transfer may leave behind; a candidate already below it gives nothing.
      max_kl: if given, each group's transfers shrink together until KL(q || p0) <= max_kl (nats), by bisection.

    Returns:
      `[B,K]` target probabilities q.

    Raises:
      ValueError: for wrong shapes, K < 2, a delta that is negative or not finite, a negative max_kl, floor outside
        (0, 1), rows of p0 that do not sum to 1 (within 0.01), or pairs that make no sense.
    """
    require_rank("p0", p0, {2}, "[B,K]")
    p0 = as_float(p0)
    require_scalar(max_kl=max_kl)
    require_nonnegative(max_kl=max_kl)
    require_distribution(p0=p0)
    pairs, _ = usable_pairs(pairs, *p0.shape)
    return _target(p0, _flow(p0, pairs, delta, floor, max_kl), floor)


def _flow(p0, pairs, delta, floor, max_kl):
    """The mass `[B,K]` each candidate gains (or loses)."""
    require_transfer(delta, floor)
    asked = as_float(pairs.weight) * delta
    outflow = scatter_pairs(pairs, jnp.zeros_like(asked), asked, p0.shape[-1])
    share = jnp.minimum(1, jnp.maximum(p0 - floor, 0) / divisor(outflow))
    moved = asked * jnp.take_along_axis(share, pairs.rejected, axis=-1)
    flow = scatter_pairs(pairs, moved, -moved, p0.shape[-1])
    return flow if max_kl is None else flow * _shrinkage(p0, flow, max_kl)


require_distribution = functools.partial(
    require_values,
    "probabilities that sum to 1 in each group",
    lambda p: (np.abs(p.sum(-1) - 1) < 1e-2) & (p >= 0).all(-1),
)


def require_transfer(delta: jax.typing.ArrayLike, floor: jax.typing.ArrayLike) -> None:
    """ValueError unless both are scalars and, where concrete, delta is a mass and floor lies in (0, 1)."""
    require_scalar(delta=delta, floor=floor)
    require_nonnegative(delta=delta)
    require_finite(delta=delta)
    require_values("in (0, 1)", lambda x: (x > 0) & (x < 1), floor=floor)


def _target(p0, flow, floor):
    """`p0 + flow`, held at the floor where rounding (a floor near the resolution of p0) would cross it, even to 0."""
    return jnp.maximum(p0 + flow, jnp.minimum(p0, floor))


def _shrinkage(p0, flow, max_kl, iterations=40):
    """Largest s `[B,1]` in [0, 1] with KL(p0 + s flow || p0) <= max_kl; the KL grows with s, so bisection finds it.

    With x = q / p0 - 1 it is `sum p0 ((1 + x) log(1 + x) - x)`, since the flow sums to 0: no term is negative. Those of
    a small x, which would cancel, are summed as their series.
    """
    whole = flow / jnp.where(flow == 0, 1, p0)

    def fits(scale):
        x = scale * whole
        series = p0 * jnp.square(x) * (1 / 2 - x * (1 / 6 - x * (1 / 12 - x / 20)))
        exact = (p0 + scale * flow) * jnp.log1p(x) - scale * flow
        return jnp.sum(jnp.where(jnp.abs(x) < 1e-2, series, exact), axis=-1, keepdims=True) <= max_kl

    one = jnp.ones_like(p0[:, :1])
    return jnp.where(fits(one), one, largest_fitting(fits, one, iterations))


@loss
def hard_pair_grpo_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    pairs: Pairs,
    delta: jax.typing.ArrayLike,
    *,
    mask: jax.Array | None = None,
    kl: jax.Array | None = None,
    alpha: jax.typing.ArrayLike = 0.5,
    beta: jax.typing.ArrayLike = 0.01,
    fit: str = "reverse",
    candidates: str = "empirical",
    floor: float = FLOOR,
    trust_region: str = "hinge",
    multiplier: jax.typing.ArrayLike | None = None,
    project_target: bool = False,
    target: jax.Array | None = None,
    length_normalize: bool = False,
    aggregate: str = "sequence_mean",
) -> Objective:
    """Hard-Pair-GRPO (arXiv 2605.06375): `KL(p_theta || q) + alpha * max(KL(pi_theta || pi_old) - beta, 0)`.

    q is `hard_pair_target` of the group's candidate distribution. Means are over the groups that have a pair; the
    hinge acts on the *mean* KL.

    Args:
      logp: `[B,K]` or `[B,K,T]` log-probabilities under the policy; log-ratios are summed over masked steps. The only
        argument that gets a gradient, with `kl`.
      old_logp: the same under pi_old.
      pairs: `Pairs`, `[B,P]`.
      delta: scalar, mass moved per unit of pair weight; see `delta_schedule`. Size it to K: p0 is 1/K.
      mask: like `logp`, 1 where a step counts.
      kl: elementwise KL(pi_theta || pi_old), `[B,K]` or `[B,K,T]`, reduced by `aggregate`; None takes the
        KL(p_theta || p0) of the candidate distributions.
      alpha: weight of the hinge.
      beta: radius of the trust region, in nats.
      fit: "reverse", KL(p_theta || q), the paper's; or "forward", KL(q || p_theta), whose gradient at theta_old leaves
        candidates outside all pairs alone.
      candidates: "empirical" or "likelihood"; see `candidate_log_probs`.
      floor: least probability that a transfer leaves behind.
      trust_region: "hinge" (paper) or "lagrangian": `multiplier * KL`, the multiplier learned by `update_multiplier`
        (MPO, arXiv 1806.06920).
      multiplier: scalar, needed by "lagrangian".
      project_target: shrink delta in each group until KL(q || p0) <= beta.
      target: q `[B,K]`, above 0 where it is not p0, where several updates share a batch and it was made once:
        `hard_pair_target` of this p0. Delta, floor and project_target then have no effect.
      length_normalize: mean instead of sum over steps; see `candidate_log_probs`.
      aggregate: how a given `kl` is reduced; see `aggregate_steps`.

    Returns:
      `(loss, metrics)`; metrics `fit`, the trust region's `kl` (`candidate_kl` where it is that of the candidate
      distributions) and `kl_active` (hinge), `approx_kl` (`policy_kl`), `target_mass` and `moved_mass` (half the L1
      distance of q, and of p_theta, from p0), `groups_without_pair`, and `invalid_pairs`, the share of pairs that
      make no sense and got weight 0.

    Raises:
      ValueError: for shapes that do not fit, K < 2, an unknown option, a missing multiplier, pairs that make no sense
        (`usable_pairs`), a delta that is negative or not finite, a floor outside (0, 1), a negative alpha, beta,
        multiplier or mask, or a target that is no distribution in a group with a pair. Of what a given target makes
        idle nothing is checked.
    """
    require_choice("fit", fit, FITS)
    require_choice("aggregate", aggregate, AGGREGATES)
    _require_trust_region(trust_region, alpha, beta, multiplier)
    log_ratio, old_logp, steps = prepare(logp, old_logp, mask)
    pairs, invalid = usable_pairs(pairs, *steps.shape[:2])
    active = groups_with_pairs(pairs)
    read = masked(log_ratio, steps * active[:, None, None])
    log_p0, log_p = _candidates(read, old_logp, steps, candidates, length_normalize)
    p0, p = jnp.exp(log_p0), jnp.exp(log_p)
    if target is None:
        flow = frozen(_flow(p0, pairs, delta, floor, beta if project_target else None))
        target = _target(p0, flow, floor)
    else:
        target, flow = _given_target(target, p0, active)
    # Candidates outside all pairs keep log p0 exactly: a likelihood of e^-100 underflows as a probability.
    log_q = jnp.where(flow == 0, log_p0, jnp.log(jnp.where(flow == 0, 1, target)))
    if kl is None:
        trust = mean_term(_kl(log_p, log_p0), active)
    else:
        alive = jnp.broadcast_to(active[:, None], steps.shape[:2])
        trust = aggregate_steps(with_steps("kl", kl, steps.shape), steps, aggregate, candidate_weight=alive)
    if trust_region == "hinge":
        trust = trust._replace(weight=alpha, threshold=beta)
    else:
        trust = trust._replace(weight=jax.lax.stop_gradient(jnp.asarray(multiplier)))
    return {
        "fit": mean_term(_kl(log_p, log_q) if fit == "reverse" else _kl(log_q, log_p), active, 1.0),
        "candidate_kl" if kl is None else "kl": trust,
        **policy_kl(log_ratio, steps),
        "target_mass": mean_term(jnp.sum(jnp.abs(flow), axis=-1) / 2, active),
        "moved_mass": mean_term(jnp.sum(jnp.abs(p - p0), axis=-1) / 2, active),
        "groups_without_pair": mean_term(1 - active),
        "invalid_pairs": mean_term(as_float(invalid)),
    }


def _require_trust_region(trust_region, alpha, beta, multiplier):
    require_choice("trust_region", trust_region, TRUST_REGIONS)
    if trust_region == "lagrangian" and multiplier is None:
        raise ValueError('trust_region="lagrangian" needs multiplier=, the dual variable of the train state')
    require_scalar(alpha=alpha, beta=beta, multiplier=multiplier)
    require_nonnegative(alpha=alpha, beta=beta, multiplier=multiplier)


def _given_target(target, p0, active):
    """A target that was made before, uniform where a group has no pair, and its flow; ValueError for no target."""
    require_no_list(target=target)
    if jnp.shape(target) != p0.shape:
        raise ValueError(f"target must be [B,K] = {p0.shape}, got shape {jnp.shape(target)}")
    target = jnp.where(active[:, None] > 0, frozen(target), 1 / target.shape[-1])
    flow = target - p0
    require_positive(target=jnp.where(flow == 0, 1, target))
    require_distribution(target=target)
    return target, flow


def _kl(log_p, log_q):
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def update_multiplier(
    multiplier: jax.Array, kl: jax.Array, beta: jax.typing.ArrayLike, *, rate: float = 0.1, largest: float = 1e4
) -> jax.Array:
    """One dual ascent step on the log of the Lagrange multiplier: it grows while the KL exceeds beta, else it falls.

    Args:
      multiplier: scalar > 0.
      kl: scalar, the realised KL of the update, in nats.
      beta: radius of the trust region, in nats.
      rate: step size on the log, per unit of `kl / beta - 1`, which is clipped to [-1, 1].
      largest: bounds the multiplier to [1/largest, largest].

    Returns:
      The new multiplier, of the old one's type; the old one if the KL is not a number.

    Raises:
      ValueError: for a beta, rate or largest that is not positive.
    """
    require_positive(beta=beta, rate=rate, largest=largest)
    step = rate * jnp.clip(kl / beta - 1, -1, 1)
    multiplier = jnp.asarray(multiplier)
    updated = jnp.clip(multiplier * jnp.exp(step), 1 / largest, largest)
    return jnp.where(jnp.isfinite(updated), updated, multiplier).astype(multiplier.dtype)
