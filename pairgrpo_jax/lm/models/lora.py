"""Low-rank adapters on any linear layers (LoRA, https://arxiv.org/abs/2106.09685)."""

import dataclasses
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.params import abstract_params
from pairgrpo_jax.lm.models.quantized import require_numbers

TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "lm_head")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear layers get `x A B alpha / rank` added, and how.

    Attributes:
      rank: of the update.
      alpha: scales it, divided by the rank.
      dropout: of the adapter's input, in training.
      targets: linear layers, out of q, k, v, o, gate, up, down, lm_head.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "k", "v", "o")


def check(lora: LoraConfig, config: ModelConfig) -> None:
    """Raises ValueError for a rank or dropout out of range, or a target that the model does not have."""
    if lora.rank < 1 or not 0 <= lora.dropout < 1:
        raise ValueError(f"rank={lora.rank} must be positive, dropout={lora.dropout} in [0, 1)")
    known = sorted({path[-1] for path in kernels(config)})
    missing = sorted(set(lora.targets) - set(known))
    if missing or not lora.targets:
        raise ValueError(f"targets: {config.family} has no linear layers {missing}; choose from {', '.join(known)}")


def kernels(config: ModelConfig) -> dict[tuple, tuple[int, ...]]:
    """Shapes of the kernels of all linear layers, by path."""
    flat: dict[tuple, Any] = flax.traverse_util.flatten_dict(abstract_params(config))
    return {path[:-1]: leaf.shape for path, leaf in flat.items() if path[-1] == "kernel"}


def init(lora: LoraConfig, config: ModelConfig, key: jax.Array, dtype=jnp.float32) -> Any:
    """Returns new adapters, a pytree to train: A is random, B is zero, so nothing changes yet.

    Args:
      lora: what to add.
      config: the model's.
      key: for A.
      dtype: of the adapters.

    Returns:
      `{"layers": {"attn": {"q": {"a": [L, d, r], "b": [L, r, out]}, ...}}}`.

    Raises:
      ValueError: see `check`.
    """
    check(lora, config)
    adapters = {}
    for i, (path, shape) in enumerate(sorted(kernels(config).items())):
        if path[-1] not in lora.targets:
            continue
        *stack, d, out = shape
        a = jax.random.normal(jax.random.fold_in(key, i), (*stack, d, lora.rank))  # drawn in bfloat16 its mean is not 0
        adapters[(*path, "a")] = (a / jnp.sqrt(d)).astype(dtype)
        adapters[(*path, "b")] = jnp.zeros((*stack, lora.rank, out), dtype)
    return flax.traverse_util.unflatten_dict(adapters)


def variables(lora: LoraConfig, adapters: Any) -> Any:
    """Returns what `Model.apply(..., lora=...)` takes: B scaled, the dropout rate beside it."""
    flat: dict[tuple, Any] = flax.traverse_util.flatten_dict(adapters)
    out = {}
    for path, leaf in flat.items():
        out[path] = leaf * (lora.alpha / lora.rank) if path[-1] == "b" else leaf
        out[(*path[:-1], "rate")] = jnp.full(leaf.shape[:-2], lora.dropout, jnp.float32)
    return flax.traverse_util.unflatten_dict(out)


def merge(lora: LoraConfig, params: Any, adapters: Any) -> Any:
    """Returns parameters with the adapters added in, for `save_pretrained` or fast generation; ValueError for codes."""
    require_numbers(params)
    flat: dict[tuple, Any] = flax.traverse_util.flatten_dict(params)
    small: dict[tuple, Any] = flax.traverse_util.flatten_dict(adapters)
    for *path, name in small:
        if name == "a":
            a, b = (small[(*path, x)].astype(jnp.float32) for x in "ab")
            kernel = flat[(*path, "kernel")]
            update = (lora.alpha / lora.rank) * (a @ b)
            flat[(*path, "kernel")] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return flax.traverse_util.unflatten_dict(flat)
