"""The predicates against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import pearsonr, rankdata

from pairgrpo_jax import Pairs, hard_pair_target, pairs_from_rewards
from pairgrpo_jax.theory import certificates as c

REWARDS = np.random.default_rng(0).normal(size=(6, 4))


def test_all_pairs_cosine_is_the_correlation_of_rewards_and_ranks():
    rewards = np.round(REWARDS, 0)
    rewards[0] = [1, 2, 2, 3]
    rewards = rewards[np.ptp(rewards, axis=1) > 0]
    found = c.scheme_cosine(jnp.asarray(rewards), pairs_from_rewards(rewards, scheme="all"))
    np.testing.assert_allclose(found, [pearsonr(r, rankdata(r))[0] for r in rewards], atol=1e-12)


def test_a_group_without_pairs_is_certified_and_a_lost_pair_is_not():
    equal = jnp.ones((1, 4))
    assert c.scheme_cosine(equal, pairs_from_rewards(equal, scheme="all")) == 1
    rewards = jnp.array([[0.0, 1.0, 2.0, 3.0]])
    assert c.scheme_cosine(rewards, pairs_from_rewards(rewards, scheme="all", margin=5.0)) == 0


@pytest.mark.parametrize("cosine,kappa", [(0.9, 4.0), (0.5, 2.0), (0.0, 30.0)])
def test_gradient_cosine_bound_is_the_minimum(cosine, kappa):
    half = np.arccos(cosine) / 2

    def gradient_cosine(turn):  # two unit vectors at this angle, anywhere in the plane of the extreme eigenvectors
        u, v = (np.array([np.cos(turn[0] + s), np.sqrt(kappa) * np.sin(turn[0] + s)]) for s in (half, -half))
        return u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    least = min(minimize(gradient_cosine, x0=[start]).fun for start in (0.1, 0.8, 1.5))
    np.testing.assert_allclose(c.gradient_cosine_bound(jnp.asarray(cosine), jnp.asarray(kappa)), least, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_no_gradient_cosine_lies_below_its_bound(seed, size):
    rng = np.random.default_rng(seed)
    u, v = (x - x.mean() for x in rng.normal(size=(2, size)))
    scores = rng.normal(size=(size, size + 2)) * rng.exponential(size=(size, 1))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    with jax.enable_x64(True):
        kappa = c.centred_condition_number(jnp.asarray(scores))
        bound = c.gradient_cosine_bound(jnp.asarray(cosine(u, v)), kappa)
    assert cosine(scores.T @ u, scores.T @ v) >= bound - 1e-9


def test_bound_knows_its_limits():
    one, inf = jnp.asarray(1.0), jnp.asarray(jnp.inf)
    assert c.gradient_cosine_bound(one, inf) == 1 and c.gradient_cosine_bound(one / 2, inf) == -1
    assert jnp.isclose(c.gradient_cosine_bound(one / 2, one), 0.5)
    assert c.gradient_cosine_bound(one / 2, one * 2.99) > 0 > c.gradient_cosine_bound(one / 2, one * 3.01)
    repeated = jnp.array([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]])
    assert jnp.isinf(c.centred_condition_number(repeated))


def test_bradley_terry_bound_is_the_cubic_sum():
    gaps = np.abs(REWARDS[:, :, None] - REWARDS[:, None, :])
    exact = (np.tanh(gaps / 2) - gaps / 2).sum(axis=-1) / 3  # all of one sign: the largest remainder there can be
    bound = np.asarray(c.bradley_terry_bound(jnp.asarray(REWARDS)))
    np.testing.assert_allclose(bound, (gaps**3).sum(axis=-1) / 72, atol=1e-12)
    assert (np.abs(exact) <= bound).all()


def test_smallest_gap_is_what_a_label_withstands():
    np.testing.assert_allclose(c.smallest_gap(jnp.array([[3.0, 0.0, 1.0, 7.5]])), [1.0])


def test_transfers_fit_where_the_target_moves_all_that_was_asked():
    p0 = jnp.array([[0.7, 0.2, 0.1]])
    pairs = Pairs(jnp.array([[0, 0]]), jnp.array([[2, 1]]), jnp.ones((1, 2)))
    for delta, fits in ((0.05, True), (0.098, True), (0.0995, False), (0.3, False)):
        assert bool(c.transfers_fit(p0, pairs, delta)[0]) == fits
        moved = float(hard_pair_target(p0, pairs, delta)[0, 0] - 0.7)
        assert (abs(moved - 2 * delta) < 1e-9) == fits


def test_moves_as_asked_is_the_first_order_change():
    p, r = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
    assert [bool(x) for x in c.moves_as_asked(p, r)] == [False, True]
    assert [bool(x) for x in c.moves_as_asked(p, -r)] == [True, True]


def test_policy_improvement_bound_is_the_formula():
    assert jnp.isclose(c.policy_improvement_bound(jnp.asarray(1.0), jnp.asarray(0.1), jnp.asarray(2.0), 0.5), 0.84)


def test_conditions_work_in_a_compiled_float32_update():
    with jax.enable_x64(False):
        rewards = jnp.asarray(REWARDS, jnp.float32)
        pairs = pairs_from_rewards(rewards, scheme="all")
        metrics = jax.jit(c.conditions)(rewards, pairs, delta=0.02)
    assert set(metrics) == {
        "certificate", "scheme_cosine", "scheme_cosine_min", "largest_condition", "smallest_gap",
        "bradley_terry_remainder", "transfers_fit",
    }  # fmt: skip
    assert all(np.isfinite(x) and np.ndim(x) == 0 for x in metrics.values())
    assert np.isclose(metrics["certificate"], metrics["scheme_cosine"], atol=1e-6) and metrics["transfers_fit"] == 1
