import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import SCHEMES, cases
from hypothesis import given
from hypothesis import strategies as st

import pairgrpo_jax as pg
from pairgrpo_jax.core.pairs import _add_all_at_once, _add_in_order

pytestmark = pytest.mark.usefixtures("x64")


@given(case=cases(), scheme=st.sampled_from(SCHEMES[:3]), margin=st.sampled_from([0.0, 0.5, 1.0]))
def test_pairs_and_their_rewards_match_the_reference(case, scheme, margin):
    pairs = pg.pairs_from_rewards(jnp.asarray(case.rewards), scheme=scheme, margin=margin)
    expected = reference.pairs(case.rewards, scheme, margin)
    assert [sorted(group) for group in reference.listed(pairs)] == [sorted(group) for group in expected]
    rewards = pg.pair_rewards(pairs, case.size)
    np.testing.assert_allclose(rewards, reference.pair_rewards(expected, case.size), atol=1e-14)
    assert np.all(np.abs(rewards) <= 1 + 1e-14)


@pytest.mark.parametrize("scheme, slots", [("best_worst", 1), ("matched", 3), ("all", 15), ("bradley_terry", 15)])
def test_shapes_and_dtypes(scheme, slots):
    pairs = pg.pairs_from_rewards(jnp.zeros((2, 6)), scheme=scheme, key=jax.random.key(0))
    assert pairs.preferred.shape == pairs.rejected.shape == pairs.weight.shape == (2, slots)
    assert pairs.preferred.dtype == pairs.rejected.dtype == jnp.int32
    assert not pairs.weight.any()  # all tied


def test_matched_gives_every_candidate_exactly_one():
    rewards = jax.random.normal(jax.random.key(0), (50, 8))
    assert set(np.unique(pg.pair_rewards(pg.pairs_from_rewards(rewards), 8))) == {-1.0, 1.0}  # the default scheme


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gap_of_exactly_the_margin_makes_no_pair(scheme):
    rewards = jnp.asarray([[0.0, 1.0], [0.0, 1.5]])
    pairs = pg.pairs_from_rewards(rewards, scheme=scheme, margin=1.0, key=jax.random.key(0))
    assert pairs.weight.tolist() == [[0.0], [1.0]]


def test_nan_rewards_make_no_pair():
    for scheme in SCHEMES:
        pairs = pg.pairs_from_rewards(jnp.asarray([[jnp.nan, 1.0]]), scheme=scheme, key=jax.random.key(0))
        assert not pairs.weight.any()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("group", [[1.0, 2.0, 4.0], [3.0, 3.0, 1.0, 2.0], [5.0, 5.0], [0.0, 1e30]])
def test_a_reward_that_is_not_finite_leaves_its_group_margin_weighted_as_without_it(group, bad):
    rewards = jnp.asarray([[*group, bad], [*group, 0.5]])
    found = pg.pair_rewards(pg.pairs_from_rewards(rewards, scheme="margin_weighted"), len(group) + 1)
    alone = pg.pairs_from_rewards(jnp.asarray([group]), scheme="margin_weighted")
    np.testing.assert_allclose(found[0, :-1], pg.pair_rewards(alone, len(group))[0], atol=1e-14)
    np.testing.assert_allclose(found[1], pg.group_advantages(rewards[1:], eps=0)[0], atol=1e-14)
    assert found[0, -1] == 0


@pytest.mark.parametrize("group", [[jnp.nan, 1.0], [jnp.inf, 1.0], [jnp.inf, -jnp.inf], [3e38, -3e38, 0], [1e-44, 0.0]])
@pytest.mark.parametrize("scheme", [*SCHEMES[:1], *SCHEMES[2:], "margin_weighted"])
def test_no_weight_of_a_pair_is_ever_other_than_finite(scheme, group):
    rewards = jnp.asarray([group], jnp.float32)
    assert jnp.isfinite(pg.pairs_from_rewards(rewards, scheme=scheme, key=jax.random.key(0)).weight).all()


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_weights_by_the_margin_of_finite_rewards_are_the_formula_bit_for_bit(size):
    rewards = jax.random.normal(jax.random.key(size), (500, size), jnp.float32)
    pairs = pg.pairs_from_rewards(rewards, scheme="margin_weighted")
    first, second = (jnp.take_along_axis(rewards, index, -1) for index in pairs[:2])
    expected = jnp.abs(first - second) / (size * jnp.std(rewards, axis=-1, keepdims=True))
    np.testing.assert_array_equal(pairs.weight, expected)


def test_bradley_terry_is_reproducible_and_depends_on_the_key():
    rewards = jnp.asarray([[0.0, 0.3, 0.2, 0.9]])
    draws = [pg.pairs_from_rewards(rewards, scheme="bradley_terry", key=jax.random.key(k)) for k in (0, 0, 1, 2, 3)]
    labels = [tuple(draw.preferred[0].tolist()) for draw in draws]
    assert labels[0] == labels[1]
    assert len(set(labels)) > 1


def test_chosen_rejected_pairs_prefer_the_first():
    assert pg.pair_rewards(pg.chosen_rejected_pairs(3), 2).tolist() == [[1.0, -1.0]] * 3


def test_both_ways_of_adding_up_agree():
    first, second = jnp.array([0, 2, 2, 1, -1]), jnp.array([1, 1, 0, 3, 7])
    gains = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0])
    for size in (4, 5):
        one, two = (add(size, first, second, gains, -3 * gains) for add in (_add_in_order, _add_all_at_once))
        np.testing.assert_array_equal(one, [1 - 12, 8 - 3 - 6, 6, -24, 0][:size])
        np.testing.assert_array_equal(one, two)


def test_pair_rewards_can_be_differentiated_compiled_and_mapped():
    pairs = pg.pairs_from_rewards(jax.random.normal(jax.random.key(0), (5, 4)), scheme="all")

    def loss(weight, coefficients):
        return jnp.sum(pg.pair_rewards(pairs._replace(weight=weight), 4) * coefficients)

    coefficients = jax.random.normal(jax.random.key(1), (3, 5, 4))
    gradient = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(pairs.weight, coefficients)
    take = lambda index: jnp.stack([jnp.take_along_axis(c, index, -1) for c in coefficients])  # noqa: E731
    np.testing.assert_allclose(gradient, take(pairs.preferred) - take(pairs.rejected), atol=1e-15)
