"""Policy and value networks, and the Gaussian policy's distribution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.control.config import Network


class Mlp(nn.Module):
    """Tanh layers with orthogonal initialisation (gain sqrt 2), then a linear one."""

    hidden: Sequence[int]
    outputs: int
    last_gain: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` -> `[..., outputs]`."""
        for width in self.hidden:
            x = jnp.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.last_gain))(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_least(x: jax.Array, floor: float) -> jax.Array:
    """`max(x, floor)`, any shape; below the floor a gradient still passes where a step down it would raise x.

    Without it, what one step takes below the floor has no gradient and stays there.
    """
    return jnp.maximum(x, floor)


at_least.defvjp(
    lambda x, floor: (jnp.maximum(x, floor), x < floor),
    lambda floor, below, slope: (jnp.where(below, jnp.minimum(slope, 0), slope),),
)


class GaussianPolicy(nn.Module):
    """A diagonal Gaussian with a state-independent standard deviation."""

    hidden: Sequence[int]
    action_size: int
    init_log_std: float
    min_log_std: float

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[..., D]` -> mean `[..., A]` and log std `[A]`."""
        mean = Mlp(self.hidden, self.action_size, last_gain=0.01)(obs)
        log_std = self.param("log_std", nn.initializers.constant(self.init_log_std), (self.action_size,))
        return mean, at_least(log_std, self.min_log_std)


def action_distribution(mean: jax.Array, log_std: jax.Array) -> distrax.Distribution:
    """The policy's distribution over pre-squash actions, with event shape `[A]`."""
    return distrax.Independent(distrax.Normal(mean, jnp.exp(log_std)), reinterpreted_batch_ndims=1)


def to_control(action: jax.Array, squash: bool) -> jax.Array:
    """The action in [-1, 1] that the simulator gets: tanh, or clipped.

    Log-probabilities and KL are those of the Gaussian before it: the squashing is the same under every policy,
    so it cancels in ratios, and the log-probability at |a| = 1 never arises.
    """
    return jnp.tanh(action) if squash else jnp.clip(action, -1, 1)


class Networks(NamedTuple):
    """Policy and critic as pure functions of one parameter tree, `{"policy": ..., "critic": ...}`.

    Attributes:
      policy: the Gaussian policy.
      critic: the value network, or None.
    """

    policy: GaussianPolicy
    critic: Mlp | None

    def init(self, key: jax.Array, observation_size: int) -> dict[str, Any]:
        """Fresh parameters; no critic, no entry for it."""
        policy_key, critic_key = jax.random.split(key)
        obs = jnp.zeros((1, observation_size))
        params = {"policy": self.policy.init(policy_key, obs)}
        return params if self.critic is None else params | {"critic": self.critic.init(critic_key, obs)}

    def act(self, params: dict[str, Any], obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normalised observations `[..., D]` -> mean `[..., A]` and log std `[A]`."""
        mean, log_std = self.policy.apply(params["policy"], obs)  # type: ignore[misc]
        return mean, log_std  # type: ignore[return-value]

    def values(self, params: dict[str, Any], obs: jax.Array) -> jax.Array | None:
        """Normalised observations `[..., D]` -> V `[...]`; None without a critic."""
        if self.critic is None:
            return None
        return jnp.squeeze(self.critic.apply(params["critic"], obs), axis=-1)  # type: ignore[arg-type]


def make_networks(config: Network, action_size: int, *, critic: bool) -> Networks:
    """The networks that `config` asks for."""
    policy = GaussianPolicy(config.hidden, action_size, config.init_log_std, config.min_log_std)
    return Networks(policy, Mlp(config.hidden, 1, last_gain=1.0) if critic else None)
