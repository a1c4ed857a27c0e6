"""The exact problems against facts about them that were derived elsewhere."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from pairgrpo_jax import evaluate, group_advantages, grpo_loss
from pairgrpo_jax.theory import improvement
from pairgrpo_jax.theory import mdp as tabular
from pairgrpo_jax.theory.equivalence import exact_problems
from pairgrpo_jax.theory.noise import gradient_moments
from pairgrpo_jax.theory.objectives import grpo, labelled_pairs, soft
from pairgrpo_jax.theory.problems import enumerate_groups, expected_gradients, gaussian_quadratic, softmax_bandit
from pairgrpo_jax.theory.statement import angle

KEY = jax.random.key(3)


@pytest.mark.parametrize("which", range(3), ids=["bandit", "transformer", "gaussian"])
def test_outcomes_are_all_of_them(which):
    problem = exact_problems(KEY)[which]
    np.testing.assert_allclose(problem.probs.sum(), 1, atol=1e-12)
    np.testing.assert_allclose(problem.probs @ problem.scores, 0, atol=1e-10)  # E[score] = 0


def test_groups_are_counted_with_their_orders():
    index, orders = enumerate_groups(4, 3)
    assert len(index) == 20 and orders.sum() == 4**3
    assert orders[(index == [0, 1, 2]).all(axis=1)] == 6 and orders[(index == [1, 1, 2]).all(axis=1)] == 3
    index, orders = enumerate_groups(3, 4)
    assert orders.sum() == 3**4 and orders[(index == [0, 0, 2, 2]).all(axis=1)] == 6


@pytest.mark.parametrize("size", [2, 3])
def test_unscaled_grpo_is_the_policy_gradient(size):
    problem = softmax_bandit(KEY)
    # A baseline that contains the candidate itself shrinks the gradient of J by (K-1)/K.
    gradient = jax.grad(lambda theta: jnp.exp(problem.log_prob(theta)) @ problem.rewards)(problem.params)
    (found,) = expected_gradients(problem, [grpo(scale="none")], size)
    np.testing.assert_allclose(found, -gradient * (size - 1) / size, atol=1e-12)


def test_gaussian_expectations_are_exact():
    problem = gaussian_quadratic(optimum=1.5, mean=0.2, log_std=-0.3)
    np.testing.assert_allclose(problem.probs @ problem.rewards, -(1.3**2) - np.exp(-0.6), atol=1e-12)
    gradient = problem.scores.T @ (problem.probs * problem.rewards)
    np.testing.assert_allclose(gradient, [2 * 1.3, -2 * np.exp(-0.6)], atol=1e-12)


def test_expected_gradient_is_the_mean_of_sampled_ones():
    problem = softmax_bandit(KEY)
    drawn = jax.random.choice(KEY, 5, (20000, 3), p=problem.probs)
    rewards, zero = problem.rewards[drawn], jnp.zeros((20000, 3))
    weights = jax.grad(lambda x: soft(scheme="all")(x, zero, rewards)["policy"].mean)(zero)
    sampled = jnp.einsum("gk,gkd->d", weights, problem.scores[drawn])
    (exact,) = expected_gradients(problem, [soft(scheme="all")], 3)
    assert jnp.linalg.norm(sampled - exact) < 0.03 * jnp.linalg.norm(exact)


def test_labellings_are_all_of_them():
    pairs, probs = labelled_pairs(jnp.array([0.3, -1.0, 2.0]))
    assert pairs.preferred.shape == (8, 3) and pairs.weight[0, 0] == 0.5
    np.testing.assert_allclose(probs.sum(), 1, atol=1e-12)
    first_wins = probs[pairs.preferred[:, 0] == 0].sum()
    np.testing.assert_allclose(first_wins, 1 / (1 + np.exp(-1.3)), atol=1e-12)


def test_mdp_is_solved():
    mdp = tabular.random_mdp(KEY)
    theta = jax.random.normal(KEY, (6,))
    policy = jnp.exp(tabular.log_policy(mdp, theta))
    solution = tabular.solve(mdp, policy)
    state, value = mdp.start, 0.0
    for t in range(400):  # the discounted sum itself
        value += 0.9**t * jnp.sum(state[:, None] * policy * mdp.reward)
        state = jnp.einsum("s,sa,sat->t", state, policy, mdp.transition)
    np.testing.assert_allclose(solution.value, value, atol=1e-10)
    np.testing.assert_allclose(solution.visitation.sum(), 10, atol=1e-10)
    np.testing.assert_allclose((policy * solution.advantage).sum(axis=-1), 0, atol=1e-10)

    def gain(x):
        return tabular.surrogate_gain(solution, jnp.exp(tabular.log_policy(mdp, x)))

    exact = jax.grad(lambda x: tabular.solve(mdp, jnp.exp(tabular.log_policy(mdp, x))).value)(theta)
    np.testing.assert_allclose(jax.grad(gain)(theta), exact, atol=1e-10)  # the policy gradient theorem


def test_all_groups_of_an_mdp_give_its_policy_gradient():
    mdp = tabular.random_mdp(KEY)
    theta = jax.random.normal(KEY, (6,))
    old_logp = tabular.log_policy(mdp, theta)
    batch = improvement.Batch(tabular.solve(mdp, jnp.exp(old_logp)), old_logp)

    def unscaled(logp, old, rewards):
        return grpo_loss.objective(logp, old, group_advantages(rewards, scale="none"))

    def loss(x):
        return evaluate(improvement._all_groups(unscaled, tabular.log_policy(mdp, x), batch))[0]

    exact = jax.grad(lambda x: tabular.solve(mdp, jnp.exp(tabular.log_policy(mdp, x))).value)(theta)
    size = improvement.GROUP
    np.testing.assert_allclose(-10 * jax.grad(loss)(theta), exact * (size - 1) / size, atol=1e-10)


def test_distances_of_policies():
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(3), 4) for _ in range(2))
    np.testing.assert_allclose(tabular.state_kl(jnp.log(p), jnp.log(q)), [entropy(*rows) for rows in zip(p, q)])
    largest = max(np.maximum(a - b, 0).sum() for a, b in zip(p, q))
    np.testing.assert_allclose(tabular.largest_total_variation(p, q), largest)


@pytest.mark.parametrize("outlier", [0.0, 0.5])
def test_moments_of_one_groups_gradient(outlier):
    """Against a plain sum over every ordered pair of draws and every pattern of noise."""
    problem, noise = softmax_bandit(KEY, arms=3, features=2), 0.7
    shocks = noise * np.array(list(itertools.product((-1, 1), repeat=2)))
    if outlier:
        shocks = outlier * np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    rewards, scores, rows = np.asarray(problem.rewards), np.asarray(problem.scores), []
    for draw in itertools.product(range(3), repeat=2):
        for shock in shocks:
            noisy = rewards[list(draw)] + shock
            weights, clean = noisy - noisy.mean(), rewards[list(draw)] - rewards[list(draw)].mean()
            g, plain = weights @ scores[list(draw)] / 2, clean @ scores[list(draw)]
            some = np.linalg.norm(plain) > 1e-12
            aligned = g @ plain / (np.linalg.norm(g) * np.linalg.norm(plain)) if some and g.any() else 0.0
            rows.append((np.prod(problem.probs[np.array(draw)]) / len(shocks), g, some, aligned))
    probs, g, some, aligned = (np.array(x) for x in zip(*rows))
    mean = probs @ g
    variance = probs @ np.square(g - mean).sum(axis=1)
    found = gradient_moments(problem, 2, noise, outlier=outlier)["dr_grpo"]
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-12)
    np.testing.assert_allclose(found.relative, variance / (mean @ mean), rtol=1e-10)
    np.testing.assert_allclose(found.aligned, probs @ (some * aligned) / (probs @ some), atol=1e-12)


@pytest.mark.parametrize("expected", [0.0, 1e-9, 0.3, np.pi / 2, 2.5, np.pi])
def test_angles_of_known_vectors(expected):
    a, b = jnp.array([2.0, 0.0]), 3 * jnp.array([np.cos(expected), np.sin(expected)])
    np.testing.assert_allclose(angle(a, b), expected, rtol=1e-12, atol=1e-15)
