"""What fewer comparisons lose: plans of `core.comparisons` under a judge that errs, beside all comparisons."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core.comparisons import both_orders, follow, make_plan, most_questions
from pairgrpo_jax.theory.equivalence import gradients, random_groups
from pairgrpo_jax.theory.statement import HOLDS_IF, Statement, cosine, require_float64

ERRORS = (0.0, 0.1, 0.2, 0.3)
SIZES = (4, 8, 16)


class Lost(NamedTuple):
    """A plan under a judge that errs.

    Attributes:
      size: K.
      plan: see `make_plan`.
      twice: whether both orders are asked.
      error: probability that an answer is the wrong one.
      questions: mean number.
      share: of the questions of "all".
      rounds: mean number of rounds, which must wait for each other.
      expected: cosine of the expected gradient to that of "all".
      sampling: how far below 1 that cosine would lie by the sampling of groups alone.
      group: mean cosine of one group's pair rewards with those of a judge that never errs.
      signal: `group^2 / (1 - group^2)` per question: what a question adds to the squared signal-to-noise ratio of a
        gradient over many groups.
    """

    size: int
    plan: str
    twice: bool
    error: float
    questions: float
    share: float
    rounds: float
    expected: float
    sampling: float
    group: float
    signal: float


def plans(size: int) -> tuple[str, ...]:
    """The plans of the table for K = `size`: the names, and numbers of questions at 30%, 60% and 80% of all."""
    pairs = most_questions("all", size)
    numbers = dict.fromkeys(str(int(share * pairs)) for share in (0.3, 0.6, 0.8))
    return ("all", "sort", *numbers, "disjoint")


def pair_rewards_by_rank(
    rng: np.random.Generator, plan: str, size: int, error: float, groups: int, twice: bool = False
) -> tuple[np.ndarray, float, float]:
    """Pair rewards `[G,K]` of the best candidate to the worst, and the mean numbers of questions and of rounds.

    Candidates come in random order; each answer is wrong with probability `error`, whatever it is about.
    """
    rewards, questions, rounds = np.zeros((groups, size)), 0, 0
    for group in range(groups):
        rank = rng.permutation(size)

        def ask(pairs, rank=rank):
            nonlocal questions, rounds
            questions, rounds = questions + len(pairs), rounds + 1
            wrong = rng.random(len(pairs)) < error
            return [float((rank[j] < rank[i]) != flip) for (i, j), flip in zip(pairs, wrong)]

        made = make_plan(plan, size)
        found = follow(both_orders(made) if twice else made, ask)
        by_candidate = np.zeros(size)
        np.add.at(by_candidate, found.preferred, found.weight)
        np.add.at(by_candidate, found.rejected, -found.weight)
        rewards[group, rank] = by_candidate
    return rewards, questions / groups, rounds / groups


def ladder(size: int) -> np.ndarray:
    """Pair rewards `[K]` of all comparisons, best first; with a share e of errors 1 - 2 e times as much is expected."""
    return np.linspace(1, -1, size)


def lost(rng: np.random.Generator, plan: str, size: int, error: float, groups: int, twice: bool = False) -> Lost:
    """One row of the table, from random groups; see `Lost`.

    Candidates are exchangeable, so the expected gradient is a sum of score functions, each times what its rank is given
    on average, and `expected` is the cosine of these averages to the ladder.
    """
    rewards, questions, rounds = pair_rewards_by_rank(rng, plan, size, error, groups, twice)
    target = ladder(size) / np.linalg.norm(ladder(size))
    mean = rewards.mean(0)
    along, across = mean @ target, mean - (mean @ target) * target
    norms = np.maximum(np.linalg.norm(rewards, axis=1), 1e-300)
    group = float((rewards @ target / norms).mean())
    noise = (rewards - np.outer(rewards @ target, target)).var(0).sum() / groups
    signal = group**2 / max(1 - group**2, 1e-12) / questions
    total = questions / (most_questions("all", size) * (1 + twice))
    expected, slip = along / np.hypot(along, np.linalg.norm(across)), np.arctan(np.sqrt(noise) / along)
    short = float(1 - np.cos(slip))
    return Lost(size, plan, twice, error, questions, total, rounds, float(expected), short, group, signal)


def comparison_table(key: jax.Array, *, sizes=SIZES, errors=ERRORS, groups: int = 200) -> list[Lost]:
    """What each plan loses, by K and error; both orders of each question at K = 8.

    The draws go through `sizes` one after the other: rows of the first ones do not depend on what follows.
    """
    rng = _generator(key)
    rows = [lost(rng, p, k, e, groups) for k, e in itertools.product(sizes, errors) for p in plans(k)]
    return rows + [lost(rng, p, 8, e, groups, True) for e in errors for p in plans(8)]


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def exact_means(plan: str, size: int, error: float) -> np.ndarray:
    """Expected pair rewards `[K]`, best first, from all orders of the candidates and all answers; for small K."""
    total, orders = np.zeros(size), list(itertools.permutations(range(size)))
    for rank in map(np.array, orders):
        pending: list[tuple[tuple[float, ...], float]] = [((), 1.0)]
        while pending:
            answers, chance = pending.pop()
            found = _replay(make_plan(plan, size), answers)
            if isinstance(found, tuple) and len(found) == 2:
                i, j = found
                right = float(rank[j] < rank[i])
                pending += [((*answers, right), chance * (1 - error)), ((*answers, 1 - right), chance * error)]
                continue
            np.add.at(total, rank[found.preferred], chance * found.weight)
            np.add.at(total, rank[found.rejected], -chance * found.weight)
    return total / len(orders)


def _replay(plan, answers: tuple[float, ...]):
    """What a plan returns when it hears these answers, or the next question that it has no answer to."""
    left = list(answers)
    try:
        questions = next(plan)
        while True:
            if len(left) < len(questions):
                return questions[len(left)]
            heard, left = left[: len(questions)], left[len(questions) :]
            questions = plan.send(heard)
    except StopIteration as end:
        return end.value


def fewer_comparisons(key: jax.Array) -> Statement:
    """C1. A sort of K = 8 asks at most 60% of all comparisons, and its expected gradient is that of all.

    Its figures are those of the table; what 200 groups leave to chance is held against 2000.
    """
    require_float64()
    rng = _generator(jax.random.fold_in(key, 1))  # not the table's draws
    table = {(x.plan, x.error): x for x in comparison_table(key, sizes=SIZES[:2]) if x.size == 8 and not x.twice}
    rows = {(plan, e): table[plan, e] for plan in ("all", "sort", "16", "disjoint") for e in ERRORS}
    many = {(plan, e): lost(rng, plan, 8, e, 2000) for plan in ("all", "sort") for e in (0.1, 0.2)}
    rewards, _, _ = pair_rewards_by_rank(rng, "sort", 8, 0.2, 2000)
    groups = random_groups(key, 2000, 8, features=40, arms=40, repeat=False)
    place = jnp.argsort(jnp.argsort(-groups.rewards, axis=-1), axis=-1)
    sorts, alls = (gradients(groups, jnp.asarray(values)[place]) for values in (rewards.mean(0), ladder(8)))
    least = float(jnp.min(cosine(sorts, alls)))
    exact = exact_means("sort", 4, 0.2)
    sampled = pair_rewards_by_rank(rng, "sort", 4, 0.2, 4000)[0]
    away = np.abs(sampled.mean(0) - exact) / (sampled.std(0) / np.sqrt(len(sampled)))
    return Statement(
        item="C1",
        claim="a merge sort of K = 8 asks at most 60% of all comparisons, and its expected gradient has cosine >= 0.98 "
        "to that of all pairs when 20% of answers are wrong",
        verdict=HOLDS_IF,
        condition="on average over batches; one group says less: with 20% errors its pair rewards have cosine "
        f"{rows['all', 0.2].group:.2f} (all), {rows['16', 0.2].group:.2f} (16 questions), "
        f"{rows['sort', 0.2].group:.2f} (sort) to those of a judge that never errs, and with 10% or 20% errors a "
        "question of `all` says more than one of a sort",
        measured=many["sort", 0.2].expected,
        predicted=1.0,
        bound=0.02,
        checks={
            "questions of a sort, K = 8: at most 60% of all, with and without errors": all(
                rows["sort", e].share <= 0.6 for e in ERRORS
            ),
            "2000 random policies of 40 parameters: cosine of each group's expected gradients >= 0.95": least >= 0.95,
            "without errors a sort loses nothing (1e-12)": abs(rows["sort", 0.0].group - 1) <= 1e-12,
            "with 10% and 20% errors a question of all says more than one of a sort": all(
                many["all", e].signal > many["sort", e].signal for e in (0.1, 0.2)
            ),
            "sampled means are those of all orders and answers, K = 4 (5 standard errors)": bool(away.max() <= 5),
        },
        numbers={"random policies: smallest cosine of a group's expected gradients": least}
        | {f"{plan}, {e:.0%} errors, 2000 groups: signal": row.signal for (plan, e), row in many.items()}
        | {
            f"{plan}, {e:.0%} errors: {name}": getattr(row, name)
            for (plan, e), row in rows.items()
            for name in ("questions", "rounds", "expected", "group")
        },
        curves={"errors": np.array(ERRORS)}
        | {plan: np.array([rows[plan, e].group for e in ERRORS]) for plan in ("all", "sort", "16", "disjoint")},
    )
