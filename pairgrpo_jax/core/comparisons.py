"""Which candidates of a group a judge is asked to compare, and the pairs that follow from its answers.

A plan is a generator: it yields questions, a list of `(i, j)`, and is sent their answers, a list of 0 (i is better),
1 (j), or 0.5 (a tie). Questions of one round do not depend on each other. It returns a group's `Comparisons`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from pairgrpo_jax.core.checks import did_you_mean

COMPARISONS = ("all", "disjoint", "sort")
Question = tuple[int, int]
Plan = Generator[list[Question], Sequence[float], Any]
_PRIOR = 2.0  # std of strengths, in logits: a candidate one std better wins 88% of its comparisons


class Comparisons(NamedTuple):
    """The pairs of one group: `preferred` and `rejected`, int `[P]`, and `weight [P]`, 0 for a tie."""

    preferred: np.ndarray
    rejected: np.ndarray
    weight: np.ndarray


def check_comparisons(comparisons: str, size: int, name: str = "comparisons") -> None:
    """Raises ValueError, of an argument `name`, for a plan that there is not or that K = `size` does not suit."""
    pairs = size * (size - 1) // 2
    if comparisons.isdecimal():
        if not 1 <= int(comparisons) <= pairs:
            raise ValueError(f"{name}={comparisons} must be in [1, {pairs}], the pairs among {size} candidates")
    elif comparisons not in COMPARISONS:
        otherwise = f"choose {', '.join(COMPARISONS)} or a number of questions"
        hint = did_you_mean(comparisons, COMPARISONS, otherwise)
        raise ValueError(f"{name}={comparisons!r} is unknown; {hint}")
    elif comparisons == "disjoint" and size % 2:
        raise ValueError(f'{name}="disjoint" needs an even number of candidates, got {size}; use "all" or "sort"')


def most_questions(comparisons: str, size: int) -> int:
    """The largest number of questions that a plan asks about K = `size` candidates."""
    if comparisons.isdecimal():
        return int(comparisons)
    if comparisons == "sort":
        return sum(math.ceil(math.log2(rank)) for rank in range(1, size + 1))
    return size // 2 if comparisons == "disjoint" else size * (size - 1) // 2


def make_plan(comparisons: str, size: int) -> Plan:
    """The plan of that name for one group of K = `size` candidates, which come in no order.

    Args:
      comparisons: "all": every two, weight 1/(K-1). "disjoint": 0 and 1, 2 and 3, ..., weight 1. "sort": a merge sort;
        its order gives all pairs, and a tie makes two candidates equal from then on. A number N: the N questions that
        a Bradley-Terry fit to the answers so far expects most of; each of all pairs gets the fit's odds, see `fitted`.
      size: K.

    Raises:
      ValueError: see `check_comparisons`.
    """
    check_comparisons(comparisons, size)
    if comparisons.isdecimal():
        return _informative(int(comparisons), size)
    if comparisons == "sort":
        return _sort(size)
    step = 2 if comparisons == "disjoint" else 0
    pairs = [(i, i + 1) for i in range(0, size, step)] if step else list(itertools.combinations(range(size), 2))
    return _asked(pairs, 1.0 if step else 1 / (size - 1))


def no_comparisons(comparisons: str, size: int) -> Comparisons:
    """What a plan returns where nothing is known: as many pairs, of weight 0."""
    count = size // 2 if comparisons == "disjoint" else size * (size - 1) // 2
    return Comparisons(np.zeros(count, int), np.zeros(count, int), np.zeros(count))


def follow(plan: Plan, ask: Callable[[list[Question]], Sequence[float]]) -> Any:
    """Runs a plan with answers from `ask`; returns what the plan does."""
    answers: Any = None
    while True:
        try:
            questions = plan.send(answers)
        except StopIteration as end:
            return end.value
        answers = ask(questions)


def both_orders(plan: Plan) -> Plan:
    """Asks `(i, j)` and `(j, i)` for each question of a plan; where the answers disagree it is a tie."""
    answers: Any = None
    while True:
        try:
            questions = plan.send(answers)
        except StopIteration as end:
            return end.value
        found = np.asarray((yield [*questions, *((j, i) for i, j in questions)]))
        forth, back = found[: len(questions)], 1 - found[len(questions) :]
        answers = np.where(forth == back, forth, 0.5).tolist()


def _asked(pairs: list[Question], weight: float) -> Plan:
    answers = np.asarray((yield pairs))
    first, second = np.array(pairs).T
    return _labelled(first, second, weight * np.sign(0.5 - answers))


def _labelled(first: np.ndarray, second: np.ndarray, signed: np.ndarray) -> Comparisons:
    """Pairs whose first is preferred where the signed weight is positive, and the second where it is negative."""
    swapped = signed < 0
    return Comparisons(np.where(swapped, second, first), np.where(swapped, first, second), np.abs(signed))


def _sort(size: int) -> Plan:
    classes = yield from _sorted(list(range(size)))
    rank = np.zeros(size)
    for place, members in enumerate(classes):
        rank[members] = place
    first, second = np.triu_indices(size, k=1)
    return _labelled(first, second, np.sign(rank[second] - rank[first]) / (size - 1))


def _sorted(items: list[int]) -> Plan:
    """Classes of candidates that are equal, best first."""
    if len(items) == 1:
        return [items]
    half = len(items) // 2
    left, right = yield from _together([_sorted(items[:half]), _sorted(items[half:])])
    merged = []
    while left and right:
        (answer,) = yield [(left[0][0], right[0][0])]
        if answer == 0.5:
            merged.append(left.pop(0) + right.pop(0))
        else:
            merged.append((left if answer == 0 else right).pop(0))
    return merged + left + right


def _together(plans: list[Plan]) -> Plan:
    """Runs plans side by side, their questions in common rounds; what each returns."""
    results: list[Any] = [None] * len(plans)
    asked: dict[int, list[Question]] = {}

    def advance(number: int, answers: Any) -> None:
        try:
            asked[number] = plans[number].send(answers)
        except StopIteration as end:
            results[number] = end.value
            asked.pop(number, None)

    for number in range(len(plans)):
        advance(number, None)
    while asked:
        rounds = list(asked.items())
        answers = iter((yield [question for _, questions in rounds for question in questions]))
        for number, questions in rounds:
            advance(number, list(itertools.islice(answers, len(questions))))
    return results


def _informative(count: int, size: int) -> Plan:
    """Each round asks about disjoint pairs, the most informative first, so that a fit serves K/2 questions."""
    first, second = np.triu_indices(size, k=1)
    asked: list[int] = []
    answers: list[float] = []
    while len(asked) < count:
        mean, covariance = fitted(first[asked], second[asked], np.array(answers), size)
        gap, variance = _difference(mean, covariance, first, second)
        chance = scipy.special.expit(gap)
        information = chance * (1 - chance) * variance
        information[asked] = -1
        chosen, free = [], set(range(size))
        for pair in np.argsort(-information, kind="stable").tolist():
            ends = {int(first[pair]), int(second[pair])}
            if information[pair] >= 0 and ends <= free and len(asked) + len(chosen) < count:
                chosen.append(pair)
                free -= ends
        answers += yield [(int(first[pair]), int(second[pair])) for pair in chosen]
        asked += chosen
    mean, covariance = fitted(first[asked], second[asked], np.array(answers), size)
    gap, variance = _difference(mean, covariance, first, second)
    return _labelled(first, second, scipy.special.erf(gap / np.sqrt(2 * variance)) / (size - 1))


def _difference(mean, covariance, first, second) -> tuple[np.ndarray, np.ndarray]:
    variance = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
    return mean[first] - mean[second], variance


def fitted(first: np.ndarray, second: np.ndarray, answers: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bradley-Terry strengths of K candidates under a normal prior: mode `[K]` and Laplace's covariance `[K,K]`.

    P(i beats j) = sigmoid(s_i - s_j) (Bradley and Terry, Biometrika 39, 1952); by Newton's method, a tie half a win.
    P(s_i > s_j) under the approximation is what a pair is weighted with, less that of the contrary.

    Args:
      first: int `[N]`, one side of each question.
      second: int `[N]`, the other.
      answers: `[N]`, 0 where the first is better, 1 where the second is, 0.5 for a tie.
      size: K.
    """
    design = np.zeros((len(first), size))
    rows = np.arange(len(first))
    design[rows, first], design[rows, second] = 1.0, -1.0
    strength, prior = np.zeros(size), np.eye(size) / _PRIOR**2
    while True:
        chance = scipy.special.expit(design @ strength)
        curvature = prior + (design.T * (chance * (1 - chance))) @ design
        step = np.linalg.solve(curvature, design.T @ (1 - answers - chance) - strength / _PRIOR**2)
        strength = strength + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-8:
            return strength, np.linalg.inv(curvature)
