import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import pairgrpo_jax as pg
from pairgrpo_jax.core import simpo_loss

pytestmark = pytest.mark.usefixtures("x64")


def draw(seed, scale=3.0):
    return -scale * np.random.default_rng(seed).exponential(1.0, (4, 6)) - 1e-3


@given(seed=st.integers(0, 1000), beta=st.sampled_from([0.01, 0.1, 2.0]), label_smoothing=st.sampled_from([0.0, 0.3]))
def test_dpo_and_ipo_match_the_reference(seed, beta, label_smoothing):
    x = draw(seed)
    dpo, _ = pg.dpo_loss(*x, beta=beta, label_smoothing=label_smoothing)
    ipo, _ = pg.ipo_loss(*x, beta=beta)
    np.testing.assert_allclose(dpo, reference.dpo(*x, beta, label_smoothing), rtol=1e-11)
    np.testing.assert_allclose(ipo, reference.ipo(*x, beta), rtol=1e-11)


@given(seed=st.integers(0, 1000), weight=st.sampled_from([0.0, 0.1, 2.0]), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_orpo_matches_the_reference(seed, weight, scale):
    chosen, rejected = draw(seed, scale)[:2]
    np.testing.assert_allclose(
        pg.orpo_loss(chosen, rejected, weight=weight)[0], reference.orpo(chosen, rejected, weight), rtol=1e-9
    )


@given(
    seed=st.integers(0, 1000),
    beta=st.sampled_from([0.05, 0.1, 2.0]),
    weights=st.sampled_from([(1.0, 1.0), (1.33, 1.0), (0.0, 2.0)]),
    shift=st.sampled_from([-5.0, 0.0, 5.0]),
)
def test_kto_matches_the_reference(seed, beta, weights, shift):
    logp, ref_logp, other, ref_other = draw(seed)
    other = other + shift  # where the estimate is negative, the reference point is 0
    desirable = np.random.default_rng(seed).random(6) < 0.6
    options = {"beta": beta, "desirable_weight": weights[0], "undesirable_weight": weights[1]}

    def loss(logp):
        return pg.kto_loss(logp, ref_logp, desirable, pg.kto_reference_point(other, ref_other), **options)

    (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logp))
    expected, gradient = reference.kto(logp, ref_logp, desirable, other, ref_other, beta, *weights)
    np.testing.assert_allclose(value, expected, rtol=1e-11)
    np.testing.assert_allclose(slope, gradient, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(metrics["reference_point"], max(np.mean(other - ref_other), 0), rtol=1e-11)
    for kind, chosen in (("desirable", desirable), ("undesirable", ~desirable)):
        rewards = beta * (logp - ref_logp)[chosen]
        np.testing.assert_allclose(metrics[f"{kind}_reward"], rewards.mean() if chosen.any() else 0, atol=1e-12)


def test_no_gradient_flows_through_ktos_reference_point():
    def loss(others):
        point = pg.kto_reference_point(others, jnp.zeros(3))
        return pg.kto_loss(jnp.zeros(2), jnp.zeros(2), jnp.array([True, False]), point, beta=1.0)[0]

    others = jnp.array([1.0, 2.0, 3.0])
    assert not jax.grad(loss)(others).any()
    np.testing.assert_allclose(loss(others), (reference.sigmoid(2) + reference.sigmoid(-2)) / 2, rtol=1e-12)


def test_reference_free_is_a_reference_of_zeros():
    x = draw(0)
    free, zeros = pg.dpo_loss(*x, reference_free=True), pg.dpo_loss(*x[:2], *np.zeros((2, 6)))
    jax.tree.map(np.testing.assert_array_equal, free, zeros)


def test_metrics():
    _, metrics = pg.dpo_loss(*map(jnp.asarray, ([-1.0, -2], [-2.0, -1], [-1.5, -2], [-1.5, -2])), beta=0.5)
    expected = {"accuracy": 0.5, "chosen_reward": 0.125, "rejected_reward": 0.125}
    assert {name: float(metrics[name]) for name in expected} == expected
    _, metrics = pg.orpo_loss(jnp.asarray([-1.0, -2]), jnp.asarray([-2.0, -1]))
    assert metrics["accuracy"] == 0.5 and metrics["nll"] == 1.5


@pytest.mark.parametrize(
    "loss",
    [pg.dpo_loss, lambda *x: pg.dpo_loss(*x, label_smoothing=0.2), pg.ipo_loss, lambda c, r, *_: pg.orpo_loss(c, r)],
)
def test_gradients_reach_the_policy_alone(loss):
    x = list(map(jnp.asarray, draw(0, 0.7)))
    check_grads(lambda c, r: loss(c, r, *x[2:])[0], x[:2], order=1, modes=["rev"], atol=1e-7, rtol=1e-6, eps=1e-6)
    references = jax.grad(lambda *ref: loss(*x[:2], *ref)[0], argnums=(0, 1))(*x[2:])
    assert not any(gradient.any() for gradient in references)


MASKED = {
    "dpo": lambda x, r, mask: pg.dpo_loss(x[0], x[1], r[0], r[1], mask=mask, label_smoothing=0.1),
    "dpo without a reference": lambda x, r, mask: pg.dpo_loss(x[0], x[1], *r, mask=mask, reference_free=True),
    "ipo": lambda x, r, mask: pg.ipo_loss(x[0], x[1], r[0], r[1], mask=mask),
    "orpo": lambda x, r, mask: pg.orpo_loss(x[0], x[1], mask=mask),
    "simpo": lambda x, r, mask: simpo_loss(x[0], x[1], mask=mask),
    "kto": lambda x, r, mask: pg.kto_loss(x[0], r[0], jnp.asarray(DESIRABLE)[: x.shape[1]], r[1], mask=mask),
}
DESIRABLE = [True, False, False, True, True, False]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf, 1e300])
@pytest.mark.parametrize("name", MASKED)
def test_what_is_masked_out_may_be_anything_and_gets_no_gradient(name, bad):
    """The same value, metrics and gradient as without it, wherever it stands."""
    loss = jax.value_and_grad(MASKED[name], has_aux=True)
    x, mask = jnp.asarray(draw(0)), jnp.arange(6) < 4
    (expected, metrics), slope = loss(x[:2, :4], x[2:, :4], jnp.ones(4))
    for place in range(4):
        poisoned = x.at[place, 4:].set(bad)
        (value, found), gradient = loss(poisoned[:2], poisoned[2:], mask)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, metrics)
        np.testing.assert_allclose(gradient[:, :4], slope, rtol=1e-12)
        assert not gradient[:, 4:].any()
