"""The parameter tree of a config: its shapes, and random values."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.decoder import Decoder


@functools.cache
def abstract_params(config: ModelConfig, dtype=jnp.float32) -> Any:
    """Returns the parameter tree as `jax.ShapeDtypeStruct`s; nothing is allocated."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    init = functools.partial(Decoder(config).init, past=[])
    tree = jax.eval_shape(init, jax.random.key(0), tokens, tokens)["params"]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def init_params(config: ModelConfig, key: jax.Array, dtype=jnp.float32) -> Any:
    """Returns random parameters (normal, 0.02), for tests and for training from scratch."""
    return jax.tree.map(lambda x: x.astype(dtype), _init(Decoder(config), key))


@functools.partial(jax.jit, static_argnums=0)
def _init(decoder: Decoder, key: jax.Array) -> Any:
    tokens = jnp.zeros((1, 2), jnp.int32)
    return decoder.init(key, tokens, tokens, past=[])["params"]
