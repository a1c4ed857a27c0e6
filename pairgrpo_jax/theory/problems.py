"""Exact problems: policies whose outcomes can all be listed, so that an expected gradient is a sum, not a sample."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pairgrpo_jax.core import Objective, Term, evaluate

GroupObjective = Callable[[jax.Array, jax.Array, jax.Array], Objective]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A policy over N outcomes with flat parameters of size D.

    Attributes:
      name: what it is.
      log_prob: maps parameters `[D]` to the log-probability (or log-density) of each outcome, `[N]`.
      params: `[D]`, theta_old.
      rewards: `[N]`, one per outcome.
      probs: `[N]`, the probability with which pi_old draws each outcome; sums to 1.
    """

    name: str
    log_prob: Callable[[jax.Array], jax.Array]
    params: jax.Array
    rewards: jax.Array
    probs: jax.Array

    @property
    def scores(self) -> jax.Array:
        """Score functions at theta_old, `[N,D]`: the gradient of each outcome's log-probability."""
        return jax.jacobian(self.log_prob)(self.params)


def softmax_bandit(key: jax.Array, *, arms: int = 5, features: int | None = 4) -> Problem:
    """A bandit with logits `features @ theta`; `features=None` is tabular, one logit per arm. Rewards are normal."""
    feature_key, param_key, reward_key = jax.random.split(key, 3)
    table = jnp.eye(arms) if features is None else jax.random.normal(feature_key, (arms, features))
    params = 0.5 * jax.random.normal(param_key, (table.shape[1],))
    return bandit(table, params, jax.random.normal(reward_key, (arms,)))


def bandit(features: Any, params: Any, rewards: Any, name: str = "softmax bandit") -> Problem:
    """A bandit with given features `[N,D]`, parameters `[D]` and rewards `[N]`."""
    features, params, rewards = jnp.asarray(features), jnp.asarray(params), jnp.asarray(rewards)

    def log_prob(theta):
        return jax.nn.log_softmax(features @ theta)

    return Problem(name, log_prob, params, rewards, jnp.exp(log_prob(params)))


def string_transformer(key: jax.Array, *, vocabulary: int = 3, length: int = 3, width: int = 8) -> Problem:
    """A one-layer causal transformer over all `vocabulary ** length` strings; rewards are normal, one per string."""
    names = ("query", "key", "value", "out")
    shapes = {name: (width, width) for name in names} | {
        "embed": (vocabulary + 1, width),
        "position": (length, width),
        "up": (width, 2 * width),
        "down": (2 * width, width),
        "head": (width, vocabulary),
    }
    *tree_keys, reward_key = jax.random.split(key, len(shapes) + 1)
    keys = dict(zip(sorted(shapes), tree_keys))
    tree = {name: jax.random.normal(keys[name], shape) / math.sqrt(shape[0]) for name, shape in shapes.items()}
    params, unravel = ravel_pytree(tree)
    strings = jnp.asarray(list(itertools.product(range(vocabulary), repeat=length)))
    inputs = jnp.concatenate([jnp.full_like(strings[:, :1], vocabulary), strings[:, :-1]], axis=1)
    causal = jnp.tril(jnp.ones((length, length), bool))

    def log_prob(theta):
        p = unravel(theta)
        x = p["embed"][inputs] + p["position"]
        scores = jnp.einsum("nqd,nkd->nqk", x @ p["query"], x @ p["key"]) / math.sqrt(width)
        x = x + jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)) @ (x @ p["value"]) @ p["out"]
        logits = (x + jnp.tanh(x @ p["up"]) @ p["down"]) @ p["head"]
        steps = jnp.take_along_axis(jax.nn.log_softmax(logits), strings[..., None], axis=-1)
        return jnp.sum(steps, axis=(1, 2))

    rewards = jax.random.normal(reward_key, (len(strings),))
    return Problem("string transformer", log_prob, params, rewards, jnp.exp(log_prob(params)))


def gaussian_quadratic(*, nodes: int = 7, optimum: float = 1.5, mean: float = 0.2, log_std: float = -0.3) -> Problem:
    """A Gaussian policy `(mean, log_std)` with reward `-(a - optimum)^2`, on Gauss-Hermite nodes of pi_old.

    Expectations of polynomials up to degree `2 nodes - 1` are exact, so J = -(mean - optimum)^2 - std^2 is. Statements
    about one group hold for actions anywhere, nodes included.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    actions = jnp.asarray(mean + math.exp(log_std) * points)

    def log_prob(theta):
        return -jnp.square((actions - theta[0]) * jnp.exp(-theta[1])) / 2 - theta[1] - math.log(2 * math.pi) / 2

    rewards = -jnp.square(actions - optimum)
    return Problem(
        "Gaussian quadratic", log_prob, jnp.asarray([mean, log_std]), rewards, jnp.asarray(weights / weights.sum())
    )


def enumerate_groups(outcomes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All groups of `size` draws from `outcomes`, order ignored.

    Returns:
      Outcome indices, int `[G,K]`, and the number of orders each stands for, `[G]`; they sum to `outcomes ** size`.
    """
    index = np.array(list(itertools.combinations_with_replacement(range(outcomes), size)))
    counts = (index[:, :, None] == np.arange(outcomes)).sum(axis=1)
    factorials = np.array([math.factorial(n) for n in range(size + 1)])
    return index, factorials[size] / factorials[counts].prod(axis=1)


def group_probs(problem: Problem, size: int) -> tuple[jax.Array, jax.Array]:
    """All groups of K independent draws from pi_old: indices `[G,K]` and probabilities `[G]`, which sum to 1."""
    index, orders = enumerate_groups(len(problem.rewards), size)
    return jnp.asarray(index), jnp.asarray(orders) * jnp.prod(problem.probs[index], axis=-1)


def mixture(objective: Callable[..., Objective], weights: jax.Array, *arrays: jax.Array) -> Objective:
    """The objective of an infinite batch, in which group g comes with frequency `weights[g]`.

    Args:
      objective: maps one batch of one group (`arrays` with a leading axis 1) to its terms.
      weights: `[G]`.
      *arrays: `[G,...]` each.

    Returns:
      The terms with totals and counts summed over groups, so a mean over "groups that have a pair" is exactly that.
    """
    terms = jax.vmap(lambda *row: objective(*(x[None] for x in row)))(*arrays)

    def total(term: Term) -> Term:
        threshold = None if term.threshold is None else jnp.max(jnp.asarray(term.threshold))
        count = jnp.sum(weights * term.count)
        return Term(jnp.sum(weights * term.total), count, jnp.max(jnp.asarray(term.weight)), threshold)

    return {name: total(term) for name, term in terms.items()}


def expected_loss(
    objective: GroupObjective, probs: jax.Array, logp: jax.Array, old_logp: jax.Array, rewards: jax.Array
) -> jax.Array:
    """The exact loss of an infinite batch of groups.

    Args:
      objective: maps `logp, old_logp, rewards`, `[1,K]` each, to terms, with the losses' `.objective`.
      probs: `[G]`, how often each group comes.
      logp: `[G,K]` under the policy.
      old_logp: `[G,K]` under pi_old.
      rewards: `[G,K]`.
    """
    return evaluate(mixture(objective, probs, logp, old_logp, rewards))[0]


def gradient_function(
    problem: Problem, objectives: Sequence[GroupObjective], size: int
) -> Callable[[jax.Array], jax.Array]:
    """Compiles `params [D] -> [N,D]`, the gradients of N losses over all K-groups drawn by pi_old."""
    index, probs = group_probs(problem, size)

    @jax.jit
    def gradient(theta, index, probs, old_logp, rewards):
        def losses(logp):
            return jnp.stack([expected_loss(f, probs, logp, old_logp[index], rewards[index]) for f in objectives])

        logp, pull = jax.vjp(lambda theta: problem.log_prob(theta)[index], theta)
        return jnp.stack([pull(row)[0] for row in jax.jacrev(losses)(logp)])

    old_logp = problem.log_prob(problem.params)
    return lambda theta: gradient(theta, index, probs, old_logp, problem.rewards)


def expected_gradients(
    problem: Problem, objectives: Sequence[GroupObjective], size: int, params: jax.Array | None = None
) -> jax.Array:
    """Gradients `[N,D]` of N losses over all K-groups drawn by pi_old, at `params` (theta_old by default)."""
    return gradient_function(problem, objectives, size)(problem.params if params is None else params)
