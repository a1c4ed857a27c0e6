"""Section 4 of the specification: what is true of the family, in float64.

`g` is the matrix of score functions `g_i = grad log pi(a_i)` at theta_old, of a softmax policy over linear features, so
that parameters are shared between actions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import pairgrpo_jax as pg

pytestmark = pytest.mark.usefixtures("x64")


def policy(seed, size, actions=12, parameters=20):
    """`(theta_old, logp)`: `logp(theta)` is `[1,size]`, the log-probabilities of sampled candidates."""
    rng = np.random.default_rng(seed)
    features, theta = rng.normal(size=(actions, parameters)), jnp.asarray(rng.normal(size=parameters)) / 3
    chosen = rng.choice(actions, size, replace=False)
    return theta, lambda theta: jax.nn.log_softmax(features @ theta)[chosen][None]


def scores(theta, logp):
    return np.asarray(jax.jacobian(logp)(theta)[0])


def cosine(a, b):
    return np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


def pair(preferred, rejected):
    return pg.Pairs(jnp.asarray([[preferred]]), jnp.asarray([[rejected]]), jnp.ones((1, 1)))


@pytest.mark.parametrize("seed", range(3))
def test_1_grpo_and_soft_are_equal_for_two_candidates(seed):
    theta, logp = policy(seed, 2)
    rewards = jnp.asarray(np.random.default_rng(seed).normal(size=(1, 2)) * 10.0**seed)
    advantages = pg.group_advantages(rewards, eps=0.0)
    np.testing.assert_allclose(np.abs(advantages), 1, rtol=1e-12)
    pairs = pg.pairs_from_rewards(rewards)
    old_logp = logp(theta)
    for step in (0.0, 0.1):  # at theta_old and off it
        both = [
            lambda x: pg.grpo_loss(logp(x), old_logp, advantages),
            lambda x: pg.soft_pair_grpo_loss(logp(x), old_logp, pairs),
        ]
        grpo, soft = jax.jit(lambda x, both=both: [jax.grad(lambda y, f=f: f(y)[0])(x) for f in both])(theta + step)
        np.testing.assert_allclose(grpo, soft, rtol=1e-11, atol=1e-13)
        assert abs(cosine(grpo, soft) - 1) < 1e-12


@pytest.mark.parametrize("size", [3, 8])
def test_2_a_pair_inside_a_larger_group_has_a_common_mode(size):
    theta, logp = policy(size, size)
    g, rewards = scores(theta, logp), np.random.default_rng(0).normal(size=(1, size))
    mu, sigma, difference, middle = (
        rewards.mean(),
        rewards.std(),
        rewards[0, 0] - rewards[0, 2],
        rewards[0, [0, 2]].mean(),
    )
    members = np.isin(np.arange(size), [0, 2])[None].astype(float)
    advantages = pg.group_advantages(jnp.asarray(rewards), eps=0.0)
    loss = lambda x: pg.grpo_loss(logp(x), logp(theta), advantages, candidate_weight=members)[0]  # noqa: E731
    opposite, common = difference / (2 * sigma) * (g[0] - g[2]), (middle - mu) / sigma * (g[0] + g[2])
    np.testing.assert_allclose(-2 * jax.jit(jax.grad(loss))(theta), opposite + common, rtol=1e-11, atol=1e-13)
    soft = -size * jax.jit(jax.grad(lambda x: pg.soft_pair_grpo_loss(logp(x), logp(theta), pair(0, 2))[0]))(theta)
    np.testing.assert_allclose(soft, g[0] - g[2], rtol=1e-11, atol=1e-13)
    assert abs(cosine(soft, opposite + common)) < 1 - 1e-4


@pytest.mark.parametrize("scheme, median", [("all", 0.965), ("matched", 0.81), ("best_worst", 0.79)])
def test_2_median_cosine_to_grpo_at_eight_candidates(scheme, median):
    """Tabular softmax, all actions candidates, normal rewards; shared features give other medians, in one order."""
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.normal(size=(4000, 8)))
    probabilities = jax.nn.softmax(jnp.asarray(rng.normal(size=(4000, 8))))
    gradient = lambda weights: weights - probabilities * weights.sum(-1, keepdims=True)  # noqa: E731  sum_i w_i g_i
    grpo = gradient(pg.group_advantages(rewards))
    soft = gradient(pg.pair_rewards(pg.pairs_from_rewards(rewards, scheme=scheme), 8))
    cosines = (grpo * soft).sum(-1) / jnp.linalg.norm(grpo, axis=-1) / jnp.linalg.norm(soft, axis=-1)
    assert abs(np.median(cosines) - median) < 0.01
    assert cosines.min() < median - 0.1


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("size", [2, 8])
def test_3_all_pairs_soft_is_rank_grpo_and_its_cosine_is_the_certificate(size, binary):
    rewards = np.random.default_rng(size).normal(size=(20, size))
    rewards = (rewards > 0).astype(float) if binary else np.round(rewards, 1)  # rounding makes ties
    rewards[:, :2] = [0, 1]  # no group of equal rewards
    soft = np.asarray(pg.pair_rewards(pg.pairs_from_rewards(jnp.asarray(rewards), scheme="all"), size))
    np.testing.assert_allclose(soft, pg.rank_advantages(jnp.asarray(rewards)), atol=1e-14)
    ranks = stats.rankdata(rewards, axis=-1)
    np.testing.assert_allclose(soft, 2 * (ranks - (size + 1) / 2) / (size - 1), atol=1e-14)
    grpo = np.asarray(pg.group_advantages(jnp.asarray(rewards)))
    cosines = [cosine(a, b) for a, b in zip(soft, grpo)]
    np.testing.assert_allclose(cosines, pg.reward_rank_correlation(jnp.asarray(rewards)), rtol=1e-12)
    np.testing.assert_allclose(cosines, [stats.pearsonr(*x).statistic for x in zip(rewards, ranks)], rtol=1e-12)
    if binary:
        np.testing.assert_allclose(cosines, 1, rtol=1e-12)


def test_4_bradley_terry_labels_give_grpo_up_to_a_cubic_remainder():
    rewards, draws = np.array([0.0, 0.3, -0.5, 1.1]), 40_000
    size = len(rewards)
    keys = jax.random.split(jax.random.key(0), draws)
    draw = lambda key: pg.pairs_from_rewards(jnp.asarray(rewards)[None], scheme="bradley_terry", key=key)  # noqa: E731
    mean = jax.jit(lambda: jnp.mean(jax.vmap(lambda key: pg.pair_rewards(draw(key), size))(keys), axis=0)[0])()
    gaps = rewards[:, None] - rewards
    expected = np.tanh(gaps / 2).sum(1) / (size - 1)
    np.testing.assert_allclose(mean, expected, atol=5 / np.sqrt(draws * (size - 1)))
    assert np.all(np.abs(np.tanh(gaps / 2) - gaps / 2) <= np.abs(gaps) ** 3 / 24)
    grpo = np.asarray(pg.group_advantages(jnp.asarray(rewards)[None], scale="none"))[0]
    np.testing.assert_allclose((gaps / 2).sum(1), size / 2 * grpo, rtol=1e-12, atol=1e-12)
    bound = (np.abs(gaps) ** 3).sum(1) / 24 / (size - 1)
    assert np.all(np.abs(expected - size / (2 * (size - 1)) * grpo) <= bound)


@pytest.mark.parametrize("candidates", ["empirical", "likelihood"])
def test_5_hard_points_along_the_pair(candidates):
    theta, logp = policy(1, 4)
    g, old_logp = scores(theta, logp), logp(theta)

    def gradient(delta, fit, step=0.0):
        loss = lambda x: pg.hard_pair_grpo_loss(logp(x), old_logp, pair(3, 1), delta, fit=fit, candidates=candidates)[0]  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(theta + step))

    direction = g[3] - g[1]
    np.testing.assert_allclose(gradient(0.02, "forward"), -0.02 * direction, rtol=1e-11, atol=1e-15)
    errors = [np.linalg.norm(gradient(delta, "reverse") + delta * direction) for delta in (1e-4, 1e-3)]
    assert abs(np.log10(errors[1] / errors[0]) - 2) < 0.05  # O(delta^2)
    soft = jax.jit(jax.grad(lambda x: pg.soft_pair_grpo_loss(logp(x), old_logp, pair(3, 1))[0]))(theta)
    assert abs(cosine(soft, gradient(0.02, "forward")) - 1) < 1e-12
    assert abs(cosine(soft, gradient(0.02, "forward", step=0.1))) < 0.9999  # off theta_old they part


def test_7_the_preferred_may_fall_under_shared_parameters():
    logp = lambda t: jax.nn.log_softmax(t * jnp.asarray([1.0, 2.0, -3.0]))[None]  # noqa: E731
    t = jnp.asarray(0.0)
    gradient = jax.grad(lambda x: pg.soft_pair_grpo_loss(logp(x), logp(t), pair(0, 1))[0])(t)
    before, after = np.exp(logp(t)[0]), np.exp(logp(t - 0.001 * jnp.sign(gradient))[0])
    np.testing.assert_allclose(after[:2], [0.3329994, 0.3326666], atol=5e-8)
    assert after[0] < before[0] and after[1] < before[1]
    assert after[0] / after[1] > before[0] / before[1]


def test_9_reverse_fit_moves_untouched_logits_and_forward_does_not():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=5))
    logp = lambda x: jax.nn.log_softmax(x)[None]  # noqa: E731
    p = jax.nn.softmax(logits)
    q = pg.hard_pair_target(p[None], pair(0, 1), 0.05)[0]

    def gradient(fit):
        def loss(x):
            how = {"fit": fit, "candidates": "likelihood"}
            return pg.hard_pair_grpo_loss(logp(x), logp(logits), pair(0, 1), 0.05, **how)

        return jax.jit(jax.grad(loss, has_aux=True))(logits)[0]

    np.testing.assert_allclose(gradient("reverse")[2:], -p[2:] * jnp.sum(p * jnp.log(p / q)), rtol=1e-11)
    np.testing.assert_allclose(gradient("forward"), p - q, atol=1e-15)
    assert np.abs(gradient("forward")[2:]).max() < 1e-15


def test_10_travel_budget():
    schedule = pg.delta_schedule(0.02, 0.98)
    deltas = np.asarray(jax.vmap(schedule)(jnp.arange(3000)))
    np.testing.assert_allclose(deltas, 0.02 * 0.98 ** np.arange(3000), rtol=1e-9)
    np.testing.assert_allclose(deltas.sum(), 1.0, rtol=1e-9)
    assert np.all(np.cumsum(deltas) <= 1 + 1e-9)
    np.testing.assert_allclose(deltas[200], 3.5e-4, rtol=0.01)
    p0 = jax.nn.softmax(jnp.asarray(np.random.default_rng(0).normal(size=(1, 6))))
    for delta in deltas[[0, 50, 200]]:
        q = pg.hard_pair_target(p0, pair(2, 4), delta)
        np.testing.assert_allclose(jnp.abs(q - p0).sum(), 2 * delta, rtol=1e-12)
