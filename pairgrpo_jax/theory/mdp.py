"""A tabular MDP in which the return J, the visitation and every group of actions are computed, not sampled."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class MDP(NamedTuple):
    """S states, A actions, a softmax policy with D shared features.

    Attributes:
      transition: `[S,A,S]`, P(s' given s, a).
      reward: `[S,A]`.
      start: `[S]`, the distribution of the first state.
      features: `[S,A,D]`; logits are `features @ theta`.
      discount: gamma.
    """

    transition: jax.Array
    reward: jax.Array
    start: jax.Array
    features: jax.Array
    discount: jax.typing.ArrayLike = 0.9


class Solution(NamedTuple):
    """Of a policy, exactly.

    Attributes:
      value: J, scalar.
      q: `[S,A]`.
      advantage: `[S,A]`.
      visitation: `[S]`, discounted, unnormalised: sums to 1 / (1 - gamma).
    """

    value: jax.Array
    q: jax.Array
    advantage: jax.Array
    visitation: jax.Array


def random_mdp(key: jax.Array, *, states: int = 5, actions: int = 3, features: int = 6) -> MDP:
    """A random MDP; with `features < states * (actions - 1)` the policy cannot choose in each state by itself."""
    keys = jax.random.split(key, 3)
    transition = jax.random.dirichlet(keys[0], jnp.full(states, 0.3), (states, actions))
    reward = jax.random.normal(keys[1], (states, actions))
    table = jax.random.normal(keys[2], (states, actions, features))
    return MDP(transition, reward, jnp.full(states, 1 / states), table)


def log_policy(mdp: MDP, theta: jax.Array) -> jax.Array:
    """`log pi(a given s)`, `[S,A]`."""
    return jax.nn.log_softmax(mdp.features @ theta)


def solve(mdp: MDP, policy: jax.Array) -> Solution:
    """J, Q, advantages and visitation of a policy `[S,A]`, by linear equations."""
    chain = jnp.einsum("sa,sat->st", policy, mdp.transition)
    system = jnp.eye(len(mdp.start)) - mdp.discount * chain
    values = jnp.linalg.solve(system, jnp.sum(policy * mdp.reward, axis=-1))
    q = mdp.reward + mdp.discount * mdp.transition @ values
    return Solution(mdp.start @ values, q, q - values[:, None], jnp.linalg.solve(system.T, mdp.start))


def surrogate_gain(solution: Solution, policy: jax.Array) -> jax.Array:
    """First-order gain of a new policy `[S,A]`: `sum_s d(s) sum_a pi'(a|s) A(s,a)` (arXiv 1502.05477, eq. 3)."""
    return jnp.sum(solution.visitation[:, None] * policy * solution.advantage)


def state_kl(logp: jax.Array, old_logp: jax.Array) -> jax.Array:
    """KL(pi || pi_old) in each state, `[S]`, from `[S,A]` log-probabilities."""
    return jnp.sum(jnp.exp(logp) * (logp - old_logp), axis=-1)


def largest_total_variation(policy: jax.Array, old_policy: jax.Array) -> jax.Array:
    """Max over states of TV(pi, pi_old), scalar."""
    return jnp.max(jnp.sum(jnp.abs(policy - old_policy), axis=-1)) / 2
