"""The conditions that training logs, against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata

import pairgrpo_jax as pg

pytestmark = pytest.mark.usefixtures("x64")
REWARDS = np.random.default_rng(0).normal(size=(6, 4))


def test_all_pairs_cosine_is_the_correlation_of_rewards_and_ranks():
    rewards = np.round(REWARDS, 0)
    rewards[0] = [1, 2, 2, 3]
    rewards = rewards[np.ptp(rewards, axis=1) > 0]
    found = pg.scheme_cosine(jnp.asarray(rewards), pg.pairs_from_rewards(rewards, scheme="all"))
    np.testing.assert_allclose(found, [pearsonr(r, rankdata(r))[0] for r in rewards], atol=1e-12)


def test_a_group_without_pairs_is_certified_and_a_lost_pair_is_not():
    equal = jnp.ones((1, 4))
    assert pg.scheme_cosine(equal, pg.pairs_from_rewards(equal, scheme="all")) == 1
    rewards = jnp.array([[0.0, 1.0, 2.0, 3.0]])
    assert pg.scheme_cosine(rewards, pg.pairs_from_rewards(rewards, scheme="all", margin=5.0)) == 0


def test_bradley_terry_bound_is_the_cubic_sum():
    gaps = np.abs(REWARDS[:, :, None] - REWARDS[:, None, :])
    exact = (np.tanh(gaps / 2) - gaps / 2).sum(axis=-1) / 3  # all of one sign: the largest remainder there can be
    bound = np.asarray(pg.bradley_terry_bound(jnp.asarray(REWARDS)))
    np.testing.assert_allclose(bound, (gaps**3).sum(axis=-1) / 72, atol=1e-12)
    assert (np.abs(exact) <= bound).all()


def test_conditions_are_computed_in_float32_of_half_precision():
    rewards = jnp.asarray(REWARDS, jnp.bfloat16)
    pairs = pg.pairs_from_rewards(rewards)
    found, wanted = (pg.conditions(x, pairs, delta=0.1) for x in (rewards, rewards.astype(jnp.float32)))
    for name in wanted:
        assert found[name] == wanted[name], name
    assert {pg.scheme_cosine(rewards, pairs).dtype, pg.bradley_terry_bound(rewards).dtype} == {jnp.dtype("float32")}


def test_smallest_gap_is_what_a_label_withstands():
    np.testing.assert_allclose(pg.smallest_gap(jnp.array([[3.0, 0.0, 1.0, 7.5]])), [1.0])


def test_transfers_fit_where_the_target_moves_all_that_was_asked():
    p0 = jnp.array([[0.7, 0.2, 0.1]])
    pairs = pg.Pairs(jnp.array([[0, 0]]), jnp.array([[2, 1]]), jnp.ones((1, 2)))
    for delta, fits in ((0.05, True), (0.098, True), (0.0995, False), (0.3, False)):
        assert bool(pg.transfers_fit(p0, pairs, delta)[0]) == fits
        moved = float(pg.hard_pair_target(p0, pairs, delta)[0, 0] - 0.7)
        assert (abs(moved - 2 * delta) < 1e-9) == fits


def test_a_distribution_rounded_to_half_precision_is_one():
    """Thirds of bfloat16 sum to 1.002."""
    pairs = pg.Pairs(jnp.array([[0]]), jnp.array([[1]]), jnp.ones((1, 1)))
    p0 = jnp.full((1, 3), 1 / 3, jnp.bfloat16)
    assert pg.transfers_fit(p0, pairs, 0.1)[0] and pg.hard_pair_target(p0, pairs, 0.1)[0, 0] > 0.4


def test_conditions_of_a_batch():
    rewards = jnp.array([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 2.0, 5.0], [0.0, 3.0, 3.0, 4.0]])
    pairs = pg.pairs_from_rewards(rewards, scheme="best_worst")
    found = pg.conditions(rewards, pairs, delta=0.248)
    correlations = [1, 1, pearsonr([0, 1, 2, 5], [1, 2, 3, 4])[0], pearsonr([0, 3, 3, 4], [1, 2.5, 2.5, 4])[0]]
    # Of the best and the worst alone: (A_best - A_worst) / (sqrt 2 |A|).
    cosines = [1 / np.sqrt(2), 1, *(np.ptp(r) / np.sqrt(2) / np.linalg.norm(r - r.mean()) for r in rewards[2:])]
    expected = {
        "rank_correlation": np.mean(correlations),
        "tied_groups": 1 / 4,
        "binary_groups": 1 / 4,
        "smallest_gap": 1 / 4,
        "bradley_terry_remainder": pg.bradley_terry_bound(rewards).sum() / (4 / 6 * (2 + 6 + 5)),
        "scheme_cosine": np.mean(cosines),
        "scheme_cosine_min": np.min(cosines),
        "largest_condition": min((1 + c) / (1 - c) for c in cosines if c < 1),  # whatever the tied group
        "transfers_fit": 1,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    assert pg.conditions(rewards, pairs, delta=0.2495)["transfers_fit"] == 1 / 4  # the tied group asks for nothing
    assert pg.conditions(rewards, pairs, delta=0.2495, floor=1e-4)["transfers_fit"] == 1


def test_conditions_without_pairs_or_delta_leave_those_entries_out():
    pairs = pg.pairs_from_rewards(REWARDS)
    assert not {"scheme_cosine", "transfers_fit"} & pg.conditions(jnp.asarray(REWARDS)).keys()
    assert "transfers_fit" not in pg.conditions(jnp.asarray(REWARDS), pairs)
    with pytest.raises(ValueError, match="rewards"):
        pg.conditions(jnp.ones(3))
    with pytest.raises(ValueError, match="pairs"):
        pg.conditions(jnp.ones((2, 4)), pairs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_conditions_work_in_a_compiled_update(dtype):
    with jax.enable_x64(False):
        rewards = jnp.asarray(REWARDS, dtype)
        pairs = pg.pairs_from_rewards(rewards, scheme="all")
        metrics = jax.jit(pg.conditions)(rewards, pairs, delta=0.02)
    assert all(np.isfinite(x) and x.shape == () and x.dtype == jnp.float32 for x in metrics.values())
    assert np.isclose(metrics["rank_correlation"], metrics["scheme_cosine"], atol=1e-6)
    assert metrics["transfers_fit"] == 1


def test_conditions_of_tied_rewards_are_finite():
    metrics = pg.conditions(jnp.ones((2, 4)), pg.pairs_from_rewards(jnp.ones((2, 4))), delta=0.1)
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["tied_groups"] == 1 and metrics["binary_groups"] == 0 and metrics["bradley_terry_remainder"] == 0


def test_a_candidate_below_the_floor_that_gives_nothing_fits():
    p0, one = jnp.array([[1e-4, 0.4999, 0.5]]), jnp.ones((1, 1))
    pairs = pg.Pairs(jnp.array([[0]]), jnp.array([[2]]), one)
    assert pg.transfers_fit(p0, pairs, 0.1)[0]
    assert not pg.transfers_fit(p0, pairs._replace(rejected=jnp.array([[0]]), preferred=jnp.array([[2]])), 0.1)[0]
