"""Statements 5, 6, 7 and 9: where Hard-Pair-GRPO's gradient points, and what happens away from the old policy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core import Pairs, evaluate, hard_pair_grpo_loss, pairs_from_rewards
from pairgrpo_jax.theory import certificates
from pairgrpo_jax.theory.equivalence import random_policies
from pairgrpo_jax.theory.objectives import NO_CLIP, grpo, hard, soft
from pairgrpo_jax.theory.problems import (
    GroupObjective,
    Problem,
    bandit,
    expected_gradients,
    gradient_function,
    softmax_bandit,
)
from pairgrpo_jax.theory.statement import FAILS, HOLDS, HOLDS_IF, Statement, angle, cosine, require_float64, slope


def hard_gradient(problem: Problem, pair: tuple[int, int], delta: jax.typing.ArrayLike, **options) -> jax.Array:
    """Gradient `[D]` at theta_old of Hard's loss for one pair, with all outcomes of the problem as one group."""
    pairs = Pairs(jnp.array([[pair[0]]]), jnp.array([[pair[1]]]), jnp.ones((1, 1)))
    old_logp = problem.log_prob(problem.params)[None]

    def loss(theta):
        return hard_pair_grpo_loss(problem.log_prob(theta)[None], old_logp, pairs, delta, **options)[0]

    return jax.grad(loss)(problem.params)


def hard_direction(key: jax.Array) -> Statement:
    """5. At theta_old Hard's gradient is `-delta (g_p - g_r)`: forward exactly, reverse up to O(delta^2)."""
    require_float64()
    problem, pair = softmax_bandit(key, arms=5, features=4), (3, 1)
    scores = problem.scores
    h = scores[pair[0]] - scores[pair[1]]
    exact, second, off = 0.0, 0.0, {"empirical": [], "likelihood": []}
    least = jnp.min(problem.probs[jnp.array(pair)])
    deltas = least * jnp.geomspace(1e-3, 1e-1, 7)  # what counts is delta over the probability that it changes
    for candidates in off:
        p0 = problem.probs if candidates == "likelihood" else jnp.full(5, 0.2)
        centred = scores - p0 @ scores
        correction = (centred[pair[0]] / p0[pair[0]] + centred[pair[1]] / p0[pair[1]]) / 2

        def both(delta, candidates=candidates):
            return tuple(
                hard_gradient(problem, pair, delta, candidates=candidates, fit=f) for f in ("forward", "reverse")
            )

        forward, reverse = jax.jit(jax.vmap(both))(deltas)
        linear = -deltas[:, None] * h
        exact = max(exact, float(jnp.linalg.norm((forward - linear)[-1]) / jnp.linalg.norm(linear[-1])))
        off[candidates] = np.asarray(jnp.linalg.norm(reverse - linear, axis=-1))  # type: ignore
        predicted = deltas[:, None] ** 2 * correction
        second = max(second, float(jnp.linalg.norm((reverse - linear - predicted)[0]) / jnp.linalg.norm(predicted[0])))
    gradients = expected_gradients(problem, [soft(scheme="all"), hard(0.01, scheme="all", fit="forward")], 3)
    return Statement(
        item="5",
        claim="at theta_old, Hard's forward gradient is -delta (g_p - g_r) exactly; reverse adds O(delta^2)",
        verdict=HOLDS,
        condition="no transfer is capped by the floor (`certificates.transfers_fit`); the hinge is silent at theta_old",
        measured=exact,
        predicted=0.0,
        bound=1e-12,
        checks={
            "reverse: the difference is of order 2 (0.02)": all(
                abs(slope(deltas[:4], x[:4]) - 2) <= 0.02 for x in off.values()
            ),
            "reverse: its second-order term is delta^2/2 ((g_p-E g)/p_p + (g_r-E g)/p_r), to 1%": second <= 0.01,
            "expected Hard is parallel to expected Soft for all pairs, K = 3 (1e-12)": float(angle(*gradients))
            <= 1e-12,
        },
        numbers={
            "order of the reverse difference": slope(deltas[:4], off["empirical"][:4]),
            "relative third order": second,
        },
        curves={"delta": np.asarray(deltas)} | off,
    )


def off_policy(key: jax.Array) -> Statement:
    """6. Away from theta_old Soft and Hard part at first order in the step; GRPO and Soft at K = 2 never do."""
    require_float64()
    problem_key, step_key = jax.random.split(key)
    problem = softmax_bandit(problem_key)
    direction = jax.random.normal(step_key, problem.params.shape)
    steps = jnp.geomspace(1e-4, 1e-1, 7)
    # A delta small enough that Hard's fit does not turn around within the step.
    objectives = [soft(), grpo(), hard(0.3, scheme="matched", fit="forward"), hard(0.3, scheme="matched", alpha=0.0)]
    gradients = gradient_function(problem, objectives, 2)
    found = jnp.stack([gradients(problem.params + step * direction) for step in steps])
    start = gradients(problem.params)
    to_grpo = float(jnp.max(angle(found[:, 0], found[:, 1])))
    forward = angle(found[:, 0], found[:, 2])
    reverse = angle(found[:, 0], found[:, 3]) - angle(start[0], start[3])
    return Statement(
        item="6",
        claim="off the old policy, Soft's and Hard's directions part at first order in the parameter step",
        verdict=HOLDS,
        condition="GRPO and unclipped Soft at K = 2 stay one gradient at every theta: they are the same function there",
        measured=slope(steps[:5], forward[:5]),
        predicted=1.0,
        bound=0.05,
        checks={
            "reverse fit: slope 1 too (0.05)": abs(slope(steps[:5], jnp.abs(reverse[:5])) - 1) <= 0.05,
            "GRPO and Soft at K = 2 stay parallel off the old policy (1e-12)": to_grpo <= 1e-12,
        },
        numbers={"angle at a step of 0.1 (radians)": float(forward[-1]), "GRPO to Soft, K = 2 (radians)": to_grpo},
        curves={"step": np.asarray(steps), "forward": np.asarray(forward), "reverse": np.abs(np.asarray(reverse))},
    )


def clipping_and_kl(key: jax.Array) -> Statement:
    """6b. A KL term of unscaled weight breaks proportionality; so does clipping where the advantages' signs differ.

    What holds is measured on a random bandit, what fails on a fixed one.
    """
    require_float64()
    rewards = [1.0, 0.6, -2.0]
    fixed = bandit([[1.0, 0.0], [2.0, 1.0], [0.0, 2.0]], [0.0, 0.0], rewards, "three arms, two parameters")
    problem = bandit(jax.random.normal(key, (3, 2)), [0.3, -0.2], rewards)
    weighted = expected_gradients(problem, _clipped(0.1, "margin_weighted"), 3, problem.params + 0.3)
    g = expected_gradients(fixed, _clipped(NO_CLIP, "all") + _clipped(0.1, "all"), 3, fixed.params + 0.3)
    unclipped, clipped = float(cosine(g[0], g[1])), float(cosine(g[2], g[3]))
    scaled = 0.5 * (rewards[0] - rewards[2]) / 2
    same, right = _one_group_cosine(fixed, (0, 2), 0.5, 0.5), _one_group_cosine(problem, (0, 2), 0.5, scaled)
    return Statement(
        item="6b",
        claim="Soft stays a positive multiple of GRPO under clipping and a KL term",
        verdict=HOLDS_IF,
        condition="clip: both give each candidate the same sign (K = 2, margin-weighted pairs); KL: beta scales with "
        "the advantages (gap/2 for Dr. GRPO at K = 2) and no group is tied, for Soft drops a tied group's KL. Else it "
        "can fail: 3 equal arms, features (1, 0), (2, 1), (0, 2), rewards (1, 0.6, -2)",
        measured=float(angle(*weighted)),
        predicted=0.0,
        bound=1e-12,
        checks={
            "counterexample: the same beta for both, cosine 0.926 (0.001)": abs(same - 0.926) <= 1e-3,
            "a scaled beta does not change the direction (1e-12)": abs(1 - right) <= 1e-12,
            "counterexample: clipping takes the cosine of all-pairs Soft from 0.9956 to 0.9996 (0.0001)": bool(
                np.allclose((unclipped, clipped), (0.9956, 0.9996), rtol=0, atol=1e-4)
            ),
        },
        numbers={
            "cosine, K = 2, same beta": same,
            "cosine, K = 2, scaled beta": right,
            "cosine, K = 3, all pairs, no clip": unclipped,
            "cosine, K = 3, all pairs, clip 0.1": clipped,
        },
    )


def _clipped(clip: float, scheme: str) -> list[GroupObjective]:
    """GRPO and Soft under one clip."""
    return [grpo(clip=clip), soft(scheme=scheme, clip=clip)]


def _one_group_cosine(problem: Problem, group: tuple[int, int], soft_beta: float, grpo_beta: float) -> float:
    """Cosine of Soft and Dr. GRPO for one group of two outcomes, away from theta_old."""
    index = jnp.asarray(group)
    old_logp, rewards = problem.log_prob(problem.params)[index][None], problem.rewards[index][None]

    def gradient(objective):
        def loss(theta):
            return evaluate(objective(problem.log_prob(theta)[index][None], old_logp, rewards))[0]

        return jax.grad(loss)(problem.params + jnp.array([0.5, -0.4]))

    return float(cosine(gradient(soft(beta=soft_beta)), gradient(grpo(scale="none", beta=grpo_beta))))


def asked_and_done(key: jax.Array, features: int, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `moves_as_asked` says of 4000 random pairs, and what a finite step down Hard's loss then does to them.

    Args:
      key: PRNG key.
      features: D, parameters shared by 16 arms.
      steps: `[S]`, lengths in units of h = g_p - g_r.

    Returns:
      Booleans `[4000,2]` (the preferred rises, the rejected falls) from the predicate, and `[4000,S,2]` from the
      log-probabilities before and after each step.
    """
    delta = 0.01  # the gradient is -delta h

    def one(table, params, drawn):
        problem = bandit(table, params, jnp.zeros(len(table)))
        asked = jnp.stack(certificates.moves_as_asked(*problem.scores[drawn]))
        gradient = hard_gradient(problem, drawn, delta, fit="forward")
        after = jax.vmap(lambda step: problem.log_prob(params - step / delta * gradient)[drawn])(steps)
        return asked, (after - problem.log_prob(params)[drawn]) * jnp.array([1, -1]) > 0

    return jax.jit(jax.vmap(one))(*random_policies(key, 4000, 2, features=features, repeat=False))


def preferred_can_fall(key: jax.Array) -> Statement:
    """7. Under shared parameters an update can lower the preferred candidate, or raise the rejected one."""
    require_float64()
    problem = bandit([[1.0], [2.0], [-3.0]], [0.0], [1.0, 0.0, -1.0], "three arms, one parameter")
    scores = problem.scores
    h = scores[0] - scores[1]
    after = jnp.exp(problem.log_prob(problem.params + 1e-3 * h))
    up, down = certificates.moves_as_asked(scores[0], scores[1])
    steps, shares, agreement = (1e-7, 0.1), {}, []
    for features in (1, 2, 4, 8, 32):
        asked, done = asked_and_done(key, features, jnp.asarray(steps))
        shares[features] = float(jnp.mean(~jnp.all(asked, axis=-1)))
        agreement.append(jnp.mean(jnp.all(done == asked[:, None], axis=-1), axis=0))
    small, large = np.min(agreement, axis=0).tolist()
    error = jnp.max(jnp.abs(after[:2] - jnp.array([0.3329994, 0.3326666])))
    return Statement(
        item="7",
        claim="an update raises the preferred candidate and lowers the rejected one",
        verdict=FAILS,
        condition="logits (t, 2t, -3t), first preferred to second: a step along h lowers both; only the ratio rises. "
        "True if |g_p|^2 > g_p.g_r and |g_r|^2 > g_p.g_r (`certificates.moves_as_asked`)",
        measured=float(after[0]),
        predicted=0.3329994,
        bound=1e-7,
        checks={
            "both probabilities are the predicted ones (1e-7)": float(error) <= 1e-7,
            "the ratio rises": bool(after[0] / after[1] > 1),
            "the predicate sees it: preferred down, rejected down": bool(~up[()] & down[()]),
            "a step of 1e-7 h down Hard's loss moves each of 20000 random pairs as the predicate says": small == 1.0,
        },
        numbers={
            "preferred after": float(after[0]),
            "rejected after": float(after[1]),
            "a step of 0.1 h: smallest share, over D, of pairs that move as the predicate says": large,
        }
        | {f"share of pairs that misbehave, D = {features}": share for features, share in shares.items()},
        curves={"features": np.array(list(shares)), "share": np.array(list(shares.values()))},
    )


def irrelevant_candidates(key: jax.Array) -> Statement:
    """9. The reverse fit moves candidates outside the pair too, by `-p_c KL(p || q)`; the forward fit does not."""
    require_float64()
    problem = softmax_bandit(key, arms=6, features=None)
    rewards = problem.rewards[None]
    pairs = pairs_from_rewards(rewards, scheme="best_worst")
    winner, loser, delta = int(pairs.preferred[0, 0]), int(pairs.rejected[0, 0]), 0.01
    p0 = problem.probs
    q = p0.at[winner].add(delta).at[loser].add(-delta)
    divergence = jnp.sum(p0 * jnp.log(p0 / q))
    others = np.setdiff1d(np.arange(6), [winner, loser])
    options = {"candidates": "likelihood", "floor": 1e-6}
    reverse = hard_gradient(problem, (winner, loser), delta, fit="reverse", **options)
    forward = hard_gradient(problem, (winner, loser), delta, fit="forward", **options)
    error = jnp.max(jnp.abs(reverse[others] + p0[others] * divergence))
    return Statement(
        item="9",
        claim="candidates outside the pair get no gradient",
        verdict=HOLDS_IF,
        condition='fit="forward" (exactly 0); the paper\'s reverse fit gives each -p_c KL(p || q), of order delta^2',
        measured=float(error),
        predicted=0.0,
        bound=1e-12,
        checks={
            "forward: 0 to 1e-12": float(jnp.max(jnp.abs(forward[others]))) <= 1e-12,
            "reverse: not 0": float(jnp.min(jnp.abs(reverse[others]))) > 1e-8,
        },
        numbers={
            "KL(p || q)": float(divergence),
            "largest reverse gradient on an untouched logit": float(jnp.max(jnp.abs(reverse[others]))),
            "largest forward one": float(jnp.max(jnp.abs(forward[others]))),
        },
    )
