import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy import integrate, stats

import pairgrpo_jax as pg

pytestmark = pytest.mark.usefixtures("x64")
LOGITS, OTHER = np.random.default_rng(0).normal(size=(2, 5))
P, Q = (np.exp(x) / np.exp(x).sum() for x in (LOGITS, OTHER))


def expected(estimator, logits):
    """`E[estimator]` under samples of the policy itself, whose distribution carries no gradient."""
    logp, other = jax.nn.log_softmax(logits), jax.nn.log_softmax(jnp.asarray(OTHER))
    return jnp.sum(jnp.asarray(P) * estimator(logp, other))


def reverse_kl(logits):
    return pg.categorical_kl(logits, jnp.asarray(OTHER))


def forward_kl(logits):
    return pg.categorical_kl(jnp.asarray(OTHER), logits)


@pytest.mark.parametrize(
    "estimator, formula",
    [
        (pg.kl_k1, lambda r: r),
        (pg.kl_k2, lambda r: r**2 / 2),
        (pg.kl_k3, lambda r: np.exp(-r) + r - 1),
    ],
)
def test_estimators_are_their_formulas(estimator, formula):
    r = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(estimator(jnp.asarray(r - 1), jnp.full(13, -1.0)), formula(r), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "estimator, unbiased, gradient_of",
    [
        (pg.kl_k1, True, lambda logits: 0.0 * jnp.sum(logits)),
        (pg.kl_k2, False, reverse_kl),
        (pg.kl_k3, True, forward_kl),
    ],
)
def test_the_table_of_the_module(estimator, unbiased, gradient_of):
    """The module's docstring: the expected value and the expected gradient of each estimator, on-policy."""
    exact = reference.kl_divergence(P, Q)
    assert (abs(expected(estimator, jnp.asarray(LOGITS)) - exact) < 1e-12) == unbiased
    gradient = jax.grad(lambda x: expected(estimator, x))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient, jax.grad(gradient_of)(jnp.asarray(LOGITS)), atol=1e-12)


@pytest.mark.parametrize("estimator", [pg.kl_k1, pg.kl_k2, pg.kl_k3])
def test_masked_steps_are_0_and_not_read(estimator):
    logp, other = jnp.asarray([[-1.0, -9e3], [-2.0, -jnp.inf]]), jnp.asarray([[-1.5, -1.0], [-1.0, jnp.nan]])
    mask = jnp.asarray([[1.0, 0.0], [1.0, 0.0]])
    value, slope = jax.value_and_grad(lambda x: jnp.sum(estimator(x, other, mask)))(logp)
    one, expected = jax.value_and_grad(lambda x: jnp.sum(estimator(x, other[:, 0])))(logp[:, 0])
    assert value == one and not slope[:, 1].any()
    np.testing.assert_array_equal(slope[:, 0], expected)


def test_k2_is_close_for_close_policies():
    """Its relative bias vanishes with the distance."""
    near = jax.nn.log_softmax(jnp.asarray(LOGITS) + 1e-3 * jnp.asarray(OTHER))
    value = jnp.sum(jnp.asarray(P) * pg.kl_k2(jax.nn.log_softmax(jnp.asarray(LOGITS)), near))
    np.testing.assert_allclose(value, reference.kl_divergence(P, np.exp(near)), rtol=1e-2)


def test_k3_is_never_negative_in_float32():
    r = np.random.default_rng(0).normal(size=20_000) * 10.0 ** np.random.default_rng(1).uniform(-9, 1, 20_000)
    assert pg.kl_k3(jnp.asarray(r, jnp.float32), jnp.zeros(r.shape, jnp.float32)).min() >= 0


def test_categorical_kl_is_exact_and_allows_impossible_classes():
    np.testing.assert_allclose(reverse_kl(jnp.asarray(LOGITS)), reference.kl_divergence(P, Q), rtol=1e-12)
    masked = jnp.asarray(LOGITS).at[2].set(-jnp.inf)
    kept = jnp.asarray([0, 1, 3, 4])
    possible = reference.kl_divergence(np.exp(jax.nn.log_softmax(masked[kept])), Q[np.asarray(kept)])
    value, gradient = jax.value_and_grad(reverse_kl)(masked)
    np.testing.assert_allclose(value, possible, rtol=1e-12)
    assert np.all(np.isfinite(gradient)) and gradient[2] == 0
    np.testing.assert_allclose(reverse_kl(jnp.asarray(LOGITS) + 7), reference.kl_divergence(P, Q), rtol=1e-12)
    both = jnp.asarray(OTHER).at[2].set(-jnp.inf)
    assert np.isfinite(pg.categorical_kl(masked, both)) and np.isinf(pg.categorical_kl(jnp.asarray(LOGITS), both))


def test_gaussian_kl_equals_the_integral():
    mean, log_std, other_mean, other_log_std = 0.3, -0.2, -0.5, 0.4
    density, other = stats.norm(mean, np.exp(log_std)), stats.norm(other_mean, np.exp(other_log_std))
    integral, _ = integrate.quad(lambda x: density.pdf(x) * (density.logpdf(x) - other.logpdf(x)), -15, 15)
    repeated = (jnp.full(3, x) for x in (mean, log_std, other_mean, other_log_std))
    np.testing.assert_allclose(pg.gaussian_kl(*repeated), 3 * integral, rtol=1e-10)


def test_gaussian_kl_broadcasts_a_shared_log_std():
    mean, log_std = jnp.ones((4, 3)), jnp.zeros(3)
    np.testing.assert_allclose(pg.gaussian_kl(mean, log_std, 0 * mean, log_std), np.full(4, 1.5), rtol=1e-12)
