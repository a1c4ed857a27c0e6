"""The sampling transforms against `transformers`' warpers, and the two-level draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import Sampling
from pairgrpo_jax.lm.models.sampling import draw, transform

LOGITS = np.random.default_rng(0).normal(size=(6, 613)).astype(np.float32) * 3


@pytest.mark.parametrize(
    ("warper", "option"),
    [
        ("TopKLogitsWarper", {"top_k": 5}),
        ("TopKLogitsWarper", {"top_k": 1}),
        ("TopKLogitsWarper", {"top_k": 1000}),
        ("TopPLogitsWarper", {"top_p": 0.9}),
        ("TopPLogitsWarper", {"top_p": 0.1}),
        ("TopPLogitsWarper", {"top_p": 1e-6}),
        ("MinPLogitsWarper", {"min_p": 0.05}),
        ("TemperatureLogitsWarper", {"temperature": 0.6}),
    ],
)
def test_transforms_match_transformers(warper, option):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process

    oracle = getattr(logits_process, warper)(*option.values())
    want = oracle(None, torch.as_tensor(LOGITS)).numpy()
    got = np.asarray(transform(jnp.asarray(LOGITS), Sampling(**option)))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_order_is_temperature_top_k_top_p_min_p():
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as lp

    want = torch.as_tensor(LOGITS)
    for warper in (
        lp.TemperatureLogitsWarper(1.7),
        lp.TopKLogitsWarper(50),
        lp.TopPLogitsWarper(0.8),
        lp.MinPLogitsWarper(0.2),
    ):
        want = warper(None, want)
    got = np.asarray(transform(jnp.asarray(LOGITS), Sampling(1.7, 50, 0.8, 0.2)))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want.numpy()))


def test_ties_and_a_flat_distribution_survive():
    flat = jnp.zeros((2, 300))
    for option in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 1.0}):
        assert np.isfinite(transform(flat, Sampling(**option))).all()


def test_gradient_is_finite_under_every_transform():
    f = lambda x: jax.nn.log_softmax(transform(x, Sampling(0.5, 50, 0.9, 0.01)))[..., 0].sum()  # noqa: E731
    x = jnp.asarray(LOGITS).at[:, 0].set(9.0)
    assert np.isfinite(jax.grad(f)(x)).all()


def test_draw_is_categorical_and_reports_its_logp():
    from scipy.stats import chisquare

    n, vocab = 20_000, 600
    logits = jnp.where(jnp.arange(vocab) % 7 == 0, jnp.linspace(-3, 2, vocab), -jnp.inf)
    keys = jax.random.split(jax.random.key(3), n)
    tokens, logp = draw(keys, jnp.broadcast_to(logits, (n, vocab)), jnp.asarray(False))
    expected = np.asarray(jax.nn.softmax(logits), np.float64) * n
    counts = np.bincount(tokens, minlength=vocab)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert chisquare(counts[kept], expected[kept] * n / expected.sum()).pvalue > 1e-3
    np.testing.assert_allclose(logp, jax.nn.log_softmax(logits)[tokens], atol=1e-5)


def test_greedy_takes_the_first_of_the_best():
    logits = jnp.asarray(LOGITS).at[0, jnp.asarray([300, 599])].set(50.0)
    tokens, logp = draw(jax.random.split(jax.random.key(0), 6), logits, jnp.asarray(True))
    np.testing.assert_array_equal(tokens, np.asarray(logits).argmax(-1))
    np.testing.assert_allclose(logp, jax.nn.log_softmax(logits)[np.arange(6), tokens], atol=1e-5)
