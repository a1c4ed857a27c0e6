"""Statements 1 to 4: when Soft-Pair-GRPO's gradient is a positive multiple of GRPO's."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core import (
    evaluate,
    group_advantages,
    pair_rewards,
    pairs_from_rewards,
    rank_advantages,
    reward_rank_correlation,
)
from pairgrpo_jax.theory import certificates
from pairgrpo_jax.theory.objectives import grpo, labelled_pairs, soft
from pairgrpo_jax.theory.problems import (
    GroupObjective,
    Problem,
    bandit,
    expected_gradients,
    gaussian_quadratic,
    softmax_bandit,
    string_transformer,
)
from pairgrpo_jax.theory.statement import FAILS, HOLDS, HOLDS_IF, Statement, angle, cosine, require_float64, slope

REWARD_LAWS = ("normal", "uniform", "exponential", "student_t", "binary")


def score_weights(objective: GroupObjective, rewards: jax.Array) -> jax.Array:
    """What an objective multiplies each candidate's score function with at theta_old, `[B,K]`, group by group.

    Read off the loss itself: minus K times its gradient with respect to `logp`. GRPO's are its advantages.
    """
    zeros = jnp.zeros_like(rewards[:1])

    def one(row):
        return jax.grad(lambda logp: evaluate(objective(logp, zeros, row[None]))[0])(zeros)[0]

    return -rewards.shape[-1] * jax.jit(jax.vmap(one))(rewards)


class Groups(NamedTuple):
    """Random groups: score functions `scores [B,K,D]` and `rewards [B,K]`."""

    scores: jax.Array
    rewards: jax.Array


def random_rewards(key: jax.Array, shape: tuple[int, ...], law: str) -> jax.Array:
    """Rewards of a given law, centred and of unit scale where it has one: see `REWARD_LAWS`."""
    if law == "normal":
        return jax.random.normal(key, shape)
    if law == "uniform":
        return jax.random.uniform(key, shape, minval=-1, maxval=1)
    if law == "exponential":
        return jax.random.exponential(key, shape)
    if law == "student_t":
        return jax.random.t(key, 2.0, shape)
    if law == "binary":
        return jax.random.bernoulli(key, 0.5, shape).astype(float)
    raise ValueError(f"law={law!r} is unknown; choose one of {', '.join(REWARD_LAWS)}")


class Policies(NamedTuple):
    """Random softmax policies: features `table [B,N,D]`, `params [B,D]`, and the arms `drawn [B,K]` of each."""

    table: jax.Array
    params: jax.Array
    drawn: jax.Array

    @property
    def logits(self) -> jax.Array:
        """`[B,N]`."""
        return jnp.einsum("bnd,bd->bn", self.table, self.params)


def random_policies(
    key: jax.Array, groups: int, size: int, *, arms: int = 16, features: int | None = None, repeat: bool = True
) -> Policies:
    """The policies and draws of `random_groups`, with the same arguments."""
    feature_key, param_key, draw_key, _ = jax.random.split(key, 4)  # the fourth is the rewards'
    table = jnp.broadcast_to(jnp.eye(arms), (groups, arms, arms))
    if features is not None:
        table = jax.random.normal(feature_key, (groups, arms, features))
    params = jax.random.normal(param_key, (groups, table.shape[-1])) * (1.0 if features is None else 0.5)
    logits = jnp.einsum("bnd,bd->bn", table, params)
    if repeat:
        drawn = jax.random.categorical(draw_key, logits[:, None], shape=(groups, size))
    else:
        _, drawn = jax.lax.top_k(logits + jax.random.gumbel(draw_key, logits.shape), size)
    return Policies(table, params, drawn)


def random_groups(
    key: jax.Array,
    groups: int,
    size: int,
    *,
    law: str = "normal",
    arms: int = 16,
    features: int | None = None,
    repeat: bool = True,
) -> Groups:
    """K draws from each of `groups` random softmax policies over arms of random rewards.

    Args:
      key: PRNG key.
      groups: B, each with its own policy, features and rewards.
      size: K.
      law: of the arms' rewards; see `REWARD_LAWS`.
      arms: number of actions.
      features: D, parameters shared by the arms through normal features; None is tabular, D = arms.
      repeat: whether an arm can be drawn twice.
    """
    policies = random_policies(key, groups, size, arms=arms, features=features, repeat=repeat)
    table, _, drawn = policies
    mean = jnp.einsum("bn,bnd->bd", jax.nn.softmax(policies.logits), table)
    scores = jnp.take_along_axis(table, drawn[..., None], axis=1) - mean[:, None]
    rewards = random_rewards(jax.random.split(key, 4)[3], (groups, arms), law)
    return Groups(scores, jnp.take_along_axis(rewards, drawn, axis=1))


def gradients(groups: Groups, weights: jax.Array) -> jax.Array:
    """Each group's gradient, `[B,D]`, from score weights `[B,K]`."""
    return jnp.einsum("bk,bkd->bd", weights, groups.scores) / weights.shape[-1]


class Cosines(NamedTuple):
    """Median and smallest cosine of a group's Soft and GRPO gradients, and GRPO's own under the same noise."""

    law: str
    size: int
    scheme: str
    noise: float
    median: float
    smallest: float
    grpo_median: float


def cosine_table(
    key: jax.Array,
    *,
    sizes: tuple[int, ...] = (2, 4, 8, 16),
    schemes: tuple[str, ...] = ("all", "matched", "best_worst", "margin_weighted"),
    laws: tuple[str, ...] = REWARD_LAWS,
    noises: tuple[float, ...] = (0.0, 0.5),
    groups: int = 1000,
) -> list[Cosines]:
    """Cosine of Soft's gradient with noiseless GRPO's, by law, K, scheme and noise of the rewards that make the pairs.

    `grpo_median` is the cosine of GRPO from the same noisy rewards with noiseless GRPO: what noise alone costs.
    """

    @jax.jit
    def cosines(batch, noisy):
        weights = [group_advantages(noisy, eps=0.0)]
        weights += [pair_rewards(pairs_from_rewards(noisy, scheme=s), noisy.shape[-1]) for s in schemes]
        clean = gradients(batch, group_advantages(batch.rewards, eps=0.0))
        values = jnp.stack([cosine(clean, gradients(batch, w)) for w in weights])
        values = jnp.where(jnp.any(clean != 0, axis=-1), values, jnp.nan)  # equal rewards ask for nothing
        return jnp.nanmedian(values, axis=-1), jnp.nanmin(values, axis=-1)

    rows, (key, noise_key) = [], jax.random.split(key)
    for size, law in itertools.product(sizes, laws):
        batch = random_groups(key, groups, size, law=law)
        for noise in noises:
            noisy = batch.rewards + noise * jax.random.normal(noise_key, batch.rewards.shape)
            median, smallest = (np.asarray(x).tolist() for x in cosines(batch, noisy))
            numbers = zip(schemes, median[1:], smallest[1:])
            rows += [Cosines(law, size, scheme, noise, m, low, median[0]) for scheme, m, low in numbers]
    return rows


def exact_problems(key: jax.Array) -> list[Problem]:
    """A bandit with shared features, a transformer over all strings of length 3, and a Gaussian on a quadratic."""
    return [softmax_bandit(key), string_transformer(key), gaussian_quadratic()]


def two_candidates(key: jax.Array) -> Statement:
    """1. With K = 2 and the population std, GRPO's gradient is Soft's."""
    require_float64()
    worst, ratio, tie, dr_grpo = 0.0, 0.0, 0.0, 1.0
    for problem in exact_problems(key):
        a, b, unscaled = expected_gradients(problem, (grpo(), soft(), grpo(scale="none")), 2)
        worst, dr_grpo = max(worst, float(angle(a, b))), min(dr_grpo, float(cosine(unscaled, b)))
        tie = float(1 - jnp.sum(problem.probs**2))  # chance that the two draws differ
        ratio = max(ratio, abs(float(jnp.linalg.norm(a) / jnp.linalg.norm(b)) - tie))
    rewards = jax.random.normal(key, (1000, 2))
    off = jnp.max(jnp.abs(score_weights(grpo(), rewards) - score_weights(soft(), rewards)))
    return Statement(
        item="1",
        claim="K = 2: GRPO's gradient is Soft-Pair-GRPO's, for any policy and rewards",
        verdict=HOLDS,
        condition="population std and eps = 0; over a batch, up to the share of tied groups, which GRPO counts",
        measured=worst,
        predicted=0.0,
        bound=1e-12,
        checks={
            "in one group the score weights agree to 1e-12": float(off) <= 1e-12,
            "over a batch the gradients' ratio is the chance of no tie": ratio <= 1e-12,
        },
        numbers={
            "largest difference of score weights": float(off),
            "|GRPO| / |Soft| with ties (last problem)": tie,
            "smallest cosine if GRPO does not divide by std (Dr. GRPO)": dr_grpo,
        },
    )


def pair_in_a_group(key: jax.Array) -> Statement:
    """2. In a larger group a pair also carries a common-mode term, so a positive multiple is not what comes out."""
    require_float64()
    batch = random_groups(key, 4000, 8)
    batch = Groups(*(x[jnp.ptp(batch.rewards, axis=-1) > 0] for x in batch))
    advantages = score_weights(grpo(), batch.rewards)
    mean, std = batch.rewards.mean(axis=-1), batch.rewards.std(axis=-1)
    gap = (batch.rewards[:, 0] - batch.rewards[:, 1])[:, None]
    middle = ((batch.rewards[:, 0] + batch.rewards[:, 1]) / 2 - mean)[:, None]
    p, r = batch.scores[:, 0], batch.scores[:, 1]
    formula = (gap / 2 * (p - r) + middle * (p + r)) / std[:, None]
    error = jnp.max(jnp.abs(advantages[:, :1] * p + advantages[:, 1:2] * r - formula))

    clean = gradients(batch, advantages)
    expected = {"all": 0.96, "matched": 0.88, "best_worst": 0.84}
    found = {s: cosine(clean, gradients(batch, score_weights(soft(scheme=s), batch.rewards))) for s in expected}
    opposite = bandit([[1.0], [12.0], [0.0]], [0.0], [1.0, 0.25, 0.0], "three arms, one parameter")
    a, b = expected_gradients(opposite, (grpo(), soft(scheme="all")), 3)
    return Statement(
        item="2",
        claim="K > 2: Soft's gradient is a positive multiple of GRPO's",
        verdict=FAILS,
        condition="3 arms, 1 parameter, features (1, 12, 0), rewards (1, 1/4, 0): opposite expected gradients",
        measured=float(cosine(a, b)),
        predicted=-1.0,
        bound=1e-12,
        checks={
            "the pair's part in GRPO is the formula's, to 1e-12": float(error) <= 1e-12,
            "median cosines at K = 8, tabular, are 0.96, 0.88, 0.84 to 0.02": all(
                abs(float(jnp.median(found[s])) - value) <= 0.02 for s, value in expected.items()
            ),
        },
        numbers={"largest error of the formula": float(error)}
        | {f"median cosine, K = 8, {s}": float(jnp.median(values)) for s, values in found.items()}
        | {f"smallest cosine, K = 8, {s}": float(jnp.min(values)) for s, values in found.items()},
        curves={f"cosines {s}": np.asarray(values) for s, values in found.items()},
    )


def all_pairs_are_ranks(key: jax.Array) -> Statement:
    """3. All-pairs Soft weighs candidates by centred mid-ranks; its cosine to GRPO's advantages is a correlation."""
    require_float64()
    worst, ranks, binary = 0.0, 0.0, 0.0
    for size in (2, 5, 16):
        rewards = jnp.round(jax.random.normal(key, (500, size)), 1)  # rounding makes ties
        weights = score_weights(soft(scheme="all"), rewards)
        ranks = max(ranks, float(jnp.max(jnp.abs(weights - rank_advantages(rewards)))))
        certificate = reward_rank_correlation(rewards)
        flat = jnp.all(rewards == rewards[:, :1], axis=-1)
        found = jnp.where(flat, 1, cosine(weights, score_weights(grpo(), rewards)))
        worst = max(worst, float(jnp.max(jnp.abs(found - certificate))))
        coins = random_rewards(key, (500, size), "binary")
        binary = max(binary, float(jnp.max(jnp.abs(1 - reward_rank_correlation(coins)))))
    return Statement(
        item="3",
        claim="all-pairs Soft = centred mid-rank advantages; cosine to GRPO = correlation of rewards and mid-ranks",
        verdict=HOLDS,
        condition="a cosine of advantages; see 3b for gradients",
        measured=worst,
        predicted=0.0,
        bound=1e-12,
        checks={
            "score weights are centred mid-ranks to 1e-12": ranks <= 1e-12,
            "binary rewards: correlation 1 for every K to 1e-12": binary <= 1e-12,
        },
        numbers={"largest error of mid-ranks": ranks, "largest |1 - correlation|, binary": binary},
    )


def gradient_bound(key: jax.Array) -> Statement:
    """3b. The Gram matrix of score functions turns the advantage-space cosine into a bound of the gradients' cosine."""
    require_float64()
    batch = random_groups(key, 4000, 4, features=40, arms=40, repeat=False)
    clean = gradients(batch, group_advantages(batch.rewards, eps=0.0))
    kappa = certificates.centred_condition_number(batch.scores)
    slack, bounds, values = jnp.asarray(jnp.inf), [], []
    for scheme in ("all", "matched", "best_worst"):
        pairs = pairs_from_rewards(batch.rewards, scheme=scheme)
        found = cosine(clean, gradients(batch, pair_rewards(pairs, 4)))
        bound = certificates.gradient_cosine_bound(certificates.scheme_cosine(batch.rewards, pairs), kappa)
        slack = jnp.minimum(slack, jnp.min(found - bound))
        bounds.append(bound)
        values.append(found)
    # The worst Gram matrix: its smallest eigenvector halves the angle between the two advantages.
    u, v = jnp.array([0.6, 0.8]), jnp.array([0.6, -0.8])
    stretched = jnp.array([1.0, 3.0])
    worst = cosine(u * stretched, v * stretched)
    return Statement(
        item="3b",
        claim="gradient cosine >= ((1+c) - kappa (1-c)) / ((1+c) + kappa (1-c)), c of advantages, kappa of scores",
        verdict=HOLDS,
        condition="kappa < (1+c)/(1-c) makes Soft an ascent direction of GRPO's surrogate; D < K - 1 or a repeated "
        "candidate gives kappa = inf: nothing is sure",
        measured=float(worst),
        predicted=float(certificates.gradient_cosine_bound(jnp.sum(u * v), jnp.asarray(9.0))),
        bound=1e-12,
        checks={
            "no gradient cosine of 12000 lies below its bound": float(slack) >= -1e-12,
            "fewer parameters than K - 1 give no bound": bool(
                certificates.gradient_cosine_bound(
                    jnp.asarray(0.9), certificates.centred_condition_number(jnp.ones((4, 2)))
                )
                == -1
            ),
        },
        numbers={
            "smallest distance to the bound": float(slack),
            "median kappa, K = 4, D = 40": float(jnp.median(kappa)),
            "share of groups with a positive bound": float(jnp.mean(jnp.stack(bounds) > 0)),
        },
        curves={"bound": np.asarray(jnp.stack(bounds)), "cosine": np.asarray(jnp.stack(values))},
    )


def bradley_terry_remainder(key: jax.Array) -> Statement:
    """4. Under Bradley-Terry labels, expected Soft is a positive multiple of GRPO plus a cubic remainder."""
    require_float64()
    gaps = jnp.linspace(-8, 8, 2001)
    pointwise = jnp.max(jnp.abs(jnp.tanh(gaps / 2) - gaps / 2) / jnp.maximum(jnp.abs(gaps) ** 3 / 24, 1e-300))
    base = jax.random.normal(key, (200, 4))
    size = base.shape[-1]

    @jax.jit
    def expected(rewards):
        def one(row):
            pairs, probs = labelled_pairs(row)
            return jnp.sum(probs[:, None] * pair_rewards(pairs, size), axis=0)

        return jax.vmap(one)(rewards)

    scales = jnp.geomspace(1e-2, 2.0, 8)
    relative, allowed, turned, worst, tight = [], [], [], -1.0, 0.0
    for scale in scales:
        rewards = scale * base
        linear = size / (2 * (size - 1)) * score_weights(grpo(scale="none"), rewards)
        found = expected(rewards)
        remainder = found - linear
        turned.append(float(jnp.mean(angle(found, linear))))
        bound = certificates.bradley_terry_bound(rewards)
        worst = max(worst, float(jnp.max(jnp.abs(remainder) - bound)))
        tight = float(jnp.max(jnp.abs(remainder) / bound))
        relative.append(float(jnp.linalg.norm(remainder) / jnp.linalg.norm(linear)))
        allowed.append(float(jnp.linalg.norm(bound) / jnp.linalg.norm(linear)))
    keys = jax.random.split(key, 4000)
    row = base[:1]
    draws = jax.vmap(lambda k: pair_rewards(pairs_from_rewards(row, scheme="bradley_terry", key=k), size)[0])(keys)
    error = jnp.abs(draws.mean(axis=0) - expected(row)[0]) / (draws.std(axis=0) / jnp.sqrt(len(keys)))
    return Statement(
        item="4",
        claim="Bradley-Terry labels: E[Soft] = K/(2(K-1)) x unscaled GRPO + e, |e_i| <= sum_j |R_i-R_j|^3 / (24(K-1))",
        verdict=HOLDS_IF,
        condition="reward gaps are small on the labels' logistic scale; then the remainder relative to the first term "
        "(measured: its order in the scale of the rewards) and the angle vanish at second order, 1 - cosine at fourth",
        measured=slope(scales[:4], jnp.asarray(relative[:4])),
        predicted=2.0,
        bound=0.02,
        checks={
            "the angle is of order 2 in the scale too (0.02)": abs(slope(scales[:4], turned[:4]) - 2) <= 0.02,
            "remainder <= bound (to 1e-14) in every group at every scale": worst <= 1e-14,
            "|tanh(d/2) - d/2| <= |d|^3/24 on [-8, 8]": float(pointwise) <= 1 + 1e-9,
            "the library's random labels have the enumerated mean (4.5 standard errors)": float(error.max()) <= 4.5,
        },
        numbers={
            "order of the angle": slope(scales[:4], turned[:4]),
            "order of 1 - cosine": slope(scales[:4], 2 * np.sin(np.array(turned[:4]) / 2) ** 2),
            "largest remainder / bound at scale 2": tight,
            "relative remainder at unit-scale rewards": float(jnp.interp(1.0, scales, jnp.asarray(relative))),
        },
        curves={"scale": np.asarray(scales), "remainder": np.asarray(relative), "bound": np.asarray(allowed)},
    )


def margin_weighted_pairs(key: jax.Array) -> Statement:
    """2b. Pairs weighted by their reward gap restore the equivalence for every K."""
    require_float64()
    worst = 0.0
    for problem in exact_problems(key):
        a, b = expected_gradients(problem, (grpo(), soft(scheme="margin_weighted")), 3)
        worst = max(worst, float(angle(a, b)))
    off = 0.0
    for size in (2, 3, 8):
        rewards = random_rewards(key, (500, size), "student_t")
        weights = score_weights(soft(scheme="margin_weighted"), rewards)
        off = max(off, float(jnp.max(jnp.abs(weights - group_advantages(rewards, eps=0.0)))))
    return Statement(
        item="2b",
        claim='pairs weighted by |R_i - R_j| / (K std) ("margin_weighted") give GRPO\'s gradient for every K',
        verdict=HOLDS,
        condition="reward gaps must be known; labels alone do not carry them",
        measured=worst,
        predicted=0.0,
        bound=1e-12,
        checks={"score weights are GRPO's advantages for K = 2, 3, 8 to 1e-12": off <= 1e-12},
        numbers={"largest difference of score weights": off},
    )
