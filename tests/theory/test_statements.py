"""Each statement of the theory comes out as stated, with the tolerance that its `bound` and `checks` carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax import theory
from pairgrpo_jax.theory.statement import Statement, angle, cosine, slope

VERDICTS = {
    "two_candidates": "holds",
    "pair_in_a_group": "fails",
    "margin_weighted_pairs": "holds",
    "all_pairs_are_ranks": "holds",
    "gradient_bound": "holds",
    "bradley_terry_remainder": "holds if",
    "hard_direction": "holds",
    "off_policy": "holds",
    "clipping_and_kl": "holds if",
    "preferred_can_fall": "fails",
    "covariance_sign": "fails",
    "variance_under_noise": "holds if",
    "irrelevant_candidates": "holds if",
    "travel_budget": "fails",
    "realised_step": "holds if",
    "monotonic_improvement": "fails",
    "trust_region_bound": "holds",
    "determinism": "holds if",
    "chosen_budget": "holds",
    "limited_step": "holds",
    "certified_step": "holds",
    "fewer_comparisons": "holds if",
}
EXACT = ("two_candidates", "margin_weighted_pairs", "all_pairs_are_ranks", "hard_direction", "irrelevant_candidates")


@pytest.mark.parametrize("function", theory.STATEMENTS, ids=lambda f: f.__name__)
def test_statement_comes_out_as_stated(function):
    statement = function(jax.random.key(0))
    assert statement.confirmed, statement.failures
    assert statement.verdict == VERDICTS[function.__name__]
    assert statement.item == function.__doc__.split(".")[0]
    assert bool(statement.condition) or statement.verdict == "holds"
    if function.__name__ in EXACT:
        assert (statement.predicted, statement.bound) == (0.0, 1e-12)


def test_single_precision_is_refused():
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="float64"):
        theory.STATEMENTS[0](jax.random.key(0))


def test_a_statement_is_not_confirmed_by_a_wrong_number_a_nan_or_a_failed_check():
    right = Statement("0", "one is one", "holds", measured=1.0, predicted=1.0, bound=1e-12, checks={"a": True})
    wrong = Statement("0", "one is two", "holds", measured=1.0, predicted=2.0, bound=1e-12, checks={"a": True})
    nan = Statement("0", "one is not a number", "holds", measured=float("nan"), predicted=1.0, bound=1e-12)
    failed = Statement("0", "one is one", "holds", measured=1.0, predicted=1.0, bound=1e-12, checks={"a": False})
    assert right.confirmed and not (wrong.confirmed or nan.confirmed or failed.confirmed)
    assert failed.failures == ["a"] and len(wrong.failures) == len(nan.failures) == 1


def test_angle_cosine_and_slope():
    a, b = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])
    for x, y, expected in (
        (a, b, np.pi / 4),
        (a, -3 * a, np.pi),
        (a, 2 * a, 0.0),
        (b, jnp.array([-1.0, 1.0]), np.pi / 2),
    ):
        np.testing.assert_allclose(angle(x, y), expected, atol=1e-15)
        np.testing.assert_allclose(cosine(5 * x, y), np.cos(expected), atol=1e-15)
    assert angle(a, jnp.array([1.0, 1e-12])) == 1e-12 and cosine(a, 0 * a) == 0
    np.testing.assert_allclose(slope([1.0, 2.0, 4.0], [3.0, 24.0, 192.0]), 3.0)


def test_cosine_table_knows_where_pairs_lose_nothing():
    rows = theory.cosine_table(jax.random.key(0), sizes=(2, 4), laws=("normal", "binary"), noises=(0.0,), groups=300)
    for row in rows:
        exact = row.size == 2 or row.scheme == "margin_weighted" or (row.law, row.scheme) == ("binary", "all")
        assert (row.smallest > 1 - 1e-9) == exact, row
