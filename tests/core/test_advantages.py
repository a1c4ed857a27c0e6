import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import cases
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import pairgrpo_jax as pg

pytestmark = pytest.mark.usefixtures("x64")
compiled_gae = jax.jit(pg.gae)


@given(
    case=cases(),
    baseline=st.sampled_from(["mean", "leave_one_out"]),
    scale=st.sampled_from(["group", "batch", "none"]),
    ddof=st.sampled_from([0, 1]),
    eps=st.sampled_from([1e-4, 0.5]),
)
def test_group_advantages_match_the_reference(case, **options):
    actual = pg.group_advantages(jnp.asarray(case.rewards), **options)
    np.testing.assert_allclose(actual, reference.advantages(case.rewards, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, 1e8, -3.3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_equal_rewards_get_exactly_zero(value, dtype):
    """Even where the mean of equal numbers is not one of them in floating point, and without eps."""
    rewards = jnp.full((2, 7), value, dtype)
    for scale in ("group", "batch", "none"):
        assert not pg.group_advantages(rewards, scale=scale, eps=0.0).any()


@given(case=cases())
def test_midranks_are_scipys_average_ranks(case):
    np.testing.assert_array_equal(pg.midranks(jnp.asarray(case.rewards)), stats.rankdata(case.rewards, axis=-1))


@given(case=cases(shapes=((3, 4, None), (3, 2, None))))
def test_certificate_is_pearsons_correlation_with_the_midranks(case):
    actual = pg.reward_rank_correlation(jnp.asarray(case.rewards))
    for group, value in zip(case.rewards, actual):
        flat = np.all(group == group[0])
        expected = 1.0 if flat else stats.pearsonr(group, stats.rankdata(group)).statistic
        np.testing.assert_allclose(value, expected, rtol=1e-12)


@given(seed=st.integers(0, 1000), gae_lambda=st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_matches_its_definition(seed, gae_lambda):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, 3, 6))
    last, discounts = rng.normal(size=3), 0.9 * rng.integers(0, 2, (3, 6))  # 0 ends an episode
    actual = compiled_gae(rewards, values, last, discounts, gae_lambda=gae_lambda)
    expected = reference.gae(rewards, values, last, discounts, gae_lambda)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_discounted_returns():
    returns = pg.discounted_returns(jnp.asarray([1.0, 2, 4, 8]), jnp.asarray([0.5, 0.5, 0, 0.5]))
    assert returns.tolist() == [3.0, 4.0, 4.0, 8.0]


@pytest.mark.parametrize("ddof", [0, 1])
def test_a_dead_group_is_no_part_of_the_batch(ddof):
    rewards, alive = np.random.default_rng(0).normal(size=(5, 3)), np.array([1, 0, 1, 1, 0])
    found = pg.group_advantages(jnp.asarray(rewards), scale="batch", ddof=ddof, alive=jnp.asarray(alive))
    expected = reference.advantages(rewards[alive > 0], scale="batch", ddof=ddof)
    np.testing.assert_allclose(found[alive > 0], expected, rtol=1e-12)
    assert not found[alive == 0].any()


@pytest.mark.parametrize("unit", [1e20, 3e-24, 1.0])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_squares_of_rewards_neither_overflow_nor_underflow(scale, unit):
    """In float32 the squares of 5e20 are inf and those of 1e-24 are 0."""
    rewards = jnp.asarray(unit * np.array([[1.0, 2.0, 5.0, 0.0], [3.0, 3.0, 3.0, 3.0]]), jnp.float32)
    exact = np.asarray(rewards, np.float64)
    found = pg.group_advantages(rewards, scale=scale, eps=0.0)
    centred = exact - exact.mean(-1, keepdims=True)
    std = exact[0].std() if scale == "group" else exact.std()
    np.testing.assert_allclose(found[0], centred[0] / std, rtol=1e-6, atol=1e-6)
    assert found.dtype == jnp.float32 and not found[1].any()
    assert np.isfinite(jax.jacobian(lambda x: pg.group_advantages(x, scale=scale))(rewards)).all()
    correlation = stats.pearsonr(exact[0] / unit, [2, 3, 4, 1]).statistic
    np.testing.assert_allclose(pg.reward_rank_correlation(rewards), [correlation, 1], rtol=1e-6)


def test_nothing_is_returned_of_no_steps():
    none, last = jnp.zeros((3, 0)), jnp.ones(3)
    assert pg.gae(none, none, last, none).shape == pg.core.discounted_returns(none, none).shape == (3, 0)
