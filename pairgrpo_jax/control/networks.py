"""Policy and value networks, and the Gaussian policy's distribution."""

from __future__ import annotations

from collections.abc import Sequence

import chex
import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Mlp(nn.Module):
    """Tanh layers with orthogonal initialisation (gain sqrt 2), then a linear one."""

    hidden: Sequence[int]
    outputs: int
    last_gain: float

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """`[..., D]` -> `[..., outputs]`."""
        for width in self.hidden:
            x = jnp.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.last_gain))(x)


class GaussianPolicy(nn.Module):
    """A diagonal Gaussian with a state-independent standard deviation."""

    hidden: Sequence[int]
    action_size: int
    init_log_std: float
    min_log_std: float

    @nn.compact
    def __call__(self, obs: chex.Array) -> tuple[chex.Array, chex.Array]:
        """`[..., D]` -> mean `[..., A]` and log std `[A]`."""
        mean = Mlp(self.hidden, self.action_size, last_gain=0.01)(obs)
        log_std = self.param("log_std", nn.initializers.constant(self.init_log_std), (self.action_size,))
        return mean, jnp.maximum(log_std, self.min_log_std)


def action_distribution(mean: chex.Array, log_std: chex.Array) -> distrax.Distribution:
    """The policy's distribution over pre-squash actions, with event shape `[A]`."""
    return distrax.Independent(distrax.Normal(mean, jnp.exp(log_std)), reinterpreted_batch_ndims=1)


def to_control(action: chex.Array, squash: bool) -> chex.Array:
    """The action in [-1, 1] that the simulator gets: tanh, or clipped.

    Log-probabilities and KL are those of the Gaussian before it: the squashing is the same under every policy,
    so it cancels in ratios, and the log-probability at |a| = 1 never arises.
    """
    return jnp.tanh(action) if squash else jnp.clip(action, -1, 1)


def init_networks(key: chex.PRNGKey, policy: nn.Module, critic: nn.Module | None, observation_size: int):
    """Parameters `{"policy": ..., "critic": ...}`; no critic, no entry."""
    policy_key, critic_key = jax.random.split(key)
    obs = jnp.zeros((1, observation_size))
    params = {"policy": policy.init(policy_key, obs)}
    return params if critic is None else params | {"critic": critic.init(critic_key, obs)}
