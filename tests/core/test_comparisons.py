"""Plans of comparisons against sorting, counting, and SciPy's optimizer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from pairgrpo_jax.core.comparisons import (
    both_orders,
    check_comparisons,
    fitted,
    follow,
    make_plan,
    most_questions,
    no_comparisons,
)


def honest(values, asked=None):
    """A judge that knows the candidates' values, and what it was asked."""

    def answer(i, j):
        return 0.5 if values[i] == values[j] else float(values[j] > values[i])

    def ask(questions):
        if asked is not None:
            asked.extend(questions)
        return [answer(i, j) for i, j in questions]

    return ask


def table(found, size):
    """Signed weights `[K,K]`, antisymmetric."""
    weights = np.zeros((size, size))
    np.add.at(weights, (found.preferred, found.rejected), found.weight)
    return weights - weights.T


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=12))
def test_a_sort_gives_the_pairs_of_all_comparisons_ties_too(values):
    size, asked = len(values), []
    found = follow(make_plan("sort", size), honest(values, asked))
    want = follow(make_plan("all", size), honest(values))
    np.testing.assert_allclose(table(found, size), table(want, size))
    np.testing.assert_allclose(table(want, size) * (size - 1), np.sign(np.subtract.outer(values, values)))
    assert len(asked) <= most_questions("sort", size) <= most_questions("all", size)
    assert len({frozenset(pair) for pair in asked}) == len(asked), "no pair twice"


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_the_bound_of_a_sort_is_reached(size):
    counts = []
    for values in itertools.permutations(range(size)):
        asked = []
        follow(make_plan("sort", size), honest(values, asked))
        counts.append(len(asked))
    assert max(counts) == most_questions("sort", size)


def test_eight_candidates_take_at_most_three_fifths_of_the_questions_on_average():
    rng, counts = np.random.default_rng(0), []
    for _ in range(300):
        asked = []
        follow(make_plan("sort", 8), honest(rng.permutation(8), asked))
        counts.append(len(asked))
    assert np.mean(counts) <= 0.6 * 28 and max(counts) == most_questions("sort", 8) == 17


@pytest.mark.parametrize("count", [1, 5, 9, 15])
def test_a_number_of_questions_is_that_number_of_different_pairs(count):
    asked = []
    found = follow(make_plan(str(count), 6), honest([3, 1, 4, 0, 5, 2], asked))
    assert len({frozenset(pair) for pair in asked}) == len(asked) == count == most_questions(str(count), 6)
    assert len(found.weight) == 15 and found.weight.max() <= 1 / 5


def test_all_questions_of_a_fit_order_the_candidates():
    values = [3, 1, 4, 0, 5, 2]
    found = follow(make_plan("15", 6), honest(values))
    assert (np.sign(table(found, 6)) == np.sign(np.subtract.outer(values, values))).all()


def test_the_second_round_asks_where_the_fit_is_least_sure():
    rounds, ask = [], honest([0, 1, 2, 3])

    def record(questions):
        rounds.append([frozenset(pair) for pair in questions])
        return ask(questions)

    follow(make_plan("4", 4), record)
    assert rounds[0] == [{0, 1}, {2, 3}] and set(rounds[1]) in ({frozenset({0, 2}), frozenset({1, 3})},)


def test_the_fit_is_the_mode_that_an_optimizer_finds():
    rng = np.random.default_rng(1)
    first, second = np.triu_indices(5, k=1)
    answers = rng.choice([0.0, 0.5, 1.0], size=10)

    def loss(strength):
        gap = strength[first] - strength[second]
        likelihood = (1 - answers) * special.log_expit(gap) + answers * special.log_expit(-gap)
        return -likelihood.sum() + (strength**2).sum() / 8

    mode, covariance = fitted(first, second, answers, 5)
    best = optimize.minimize(loss, np.zeros(5), tol=1e-12)
    np.testing.assert_allclose(mode, best.x, atol=1e-5)
    step, eye = 1e-4, np.eye(5)
    hessian = [
        [
            (loss(mode + step * (a + b)) - loss(mode + step * (a - b)) - loss(mode - step * (a - b))
             + loss(mode - step * (a + b))) / (4 * step**2)
            for a in eye
        ]
        for b in eye
    ]  # fmt: skip
    np.testing.assert_allclose(np.linalg.inv(hessian), covariance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["all", "disjoint", "sort", "7"])
def test_both_orders_turn_a_position_bias_into_ties_and_change_no_honest_answer(name):
    values = [3, 1, 4, 0, 5, 2]
    found = follow(both_orders(make_plan(name, 6)), lambda questions: [0] * len(questions))
    assert np.abs(found.weight).max() < 1e-12
    plain, twice = follow(make_plan(name, 6), honest(values)), follow(both_orders(make_plan(name, 6)), honest(values))
    np.testing.assert_array_equal(table(plain, 6), table(twice, 6))
    assert [x.shape for x in no_comparisons(name, 6)] == [x.shape for x in plain]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sorted", 4, "did you mean sort"),
        ("best", 4, "choose all, disjoint, sort or a number"),
        ("0", 4, r"must be in \[1, 6\]"),
        ("7", 4, r"must be in \[1, 6\]"),
        ("-2", 4, "unknown"),
        ("disjoint", 5, "even number of candidates, got 5"),
    ],
)
def test_bad_plans_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        check_comparisons(name, size)
    with pytest.raises(ValueError, match=message):
        make_plan(name, size)
