"""What fewer comparisons lose, against closed forms and enumeration."""

import functools

import jax
import numpy as np
import pytest

from pairgrpo_jax.theory import comparisons


@pytest.mark.parametrize("error", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_comparisons_expect_a_ladder(size, error):
    """Each of K - 1 comparisons is right with probability 1 - e: (1 - 2 e) times the ladder."""
    found = comparisons.exact_means("all", size, error) if size < 4 else None
    sampled = comparisons.pair_rewards_by_rank(np.random.default_rng(0), "all", size, error, 4000)[0]
    want = (1 - 2 * error) * comparisons.ladder(size)
    if found is not None:
        np.testing.assert_allclose(found, want, atol=1e-12)
    np.testing.assert_allclose(sampled.mean(0), want, atol=0.06)


@pytest.mark.parametrize("plan", ["all", "sort", "disjoint", "2"])
def test_samples_agree_with_all_orders_and_answers(plan):
    size = 4 if plan in ("sort", "disjoint") else 3
    exact = comparisons.exact_means(plan, size, 0.3)
    rewards, _, _ = comparisons.pair_rewards_by_rank(np.random.default_rng(1), plan, size, 0.3, 4000)
    assert (np.abs(rewards.mean(0) - exact) <= 5 * rewards.std(0) / np.sqrt(4000) + 1e-12).all()


@pytest.mark.parametrize(("plan", "questions"), [("all", 28), ("disjoint", 4), ("16", 16)])
def test_questions_and_orders_are_counted(plan, questions):
    rng = np.random.default_rng(2)
    once, twice = (comparisons.lost(rng, plan, 8, 0.0, 20, both) for both in (False, True))
    assert once.questions == questions and twice.questions == 2 * questions and once.share == twice.share


def test_a_sort_asks_three_fifths_of_the_questions_at_the_same_expected_gradient():
    found = comparisons.lost(np.random.default_rng(3), "sort", 8, 0.2, 600)
    assert found.share <= 0.6 and found.expected >= 0.98 and found.sampling < 0.01
    assert found.group < comparisons.lost(np.random.default_rng(3), "all", 8, 0.2, 600).group - 0.05


def test_the_table_has_every_plan():
    rows = comparisons.comparison_table(jax.random.key(0), sizes=(4,), errors=(0.2,), groups=5)
    assert [row.plan for row in rows[:6]] == list(comparisons.plans(4)) and {row.size for row in rows} == {4, 8}
    assert sum(row.twice for row in rows) == len(comparisons.plans(8))


def test_the_statement_tells_the_tables_figures(monkeypatch):
    """In one report one plan must not have two figures."""
    small = functools.partial(comparisons.comparison_table, groups=20)
    monkeypatch.setattr(comparisons, "comparison_table", small)
    statement = comparisons.fewer_comparisons(jax.random.key(0))
    told = {(row.plan, row.error): row.group for row in small(jax.random.key(0)) if row.size == 8 and not row.twice}
    for plan, name in (("all", "all"), ("16", "16 questions"), ("sort", "sort")):
        assert f"{told[plan, 0.2]:.2f} ({name})" in statement.condition
        assert statement.numbers[f"{plan}, 20% errors: group"] == told[plan, 0.2]
