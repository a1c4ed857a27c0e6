"""Where parameters live on a mesh of devices, and how much memory that takes on each."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.params import abstract_params

# Names of the axes of each kind of parameter, last axes last; the layer axis is never split.
_AXES = {
    "embed": ("vocab", "embed"),
    "positions": (None, "embed"),
    "lm_head/kernel": ("embed", "vocab"),
    **{f"{x}/kernel": ("embed", "heads") for x in "qkv"},
    **{f"{x}/bias": ("heads",) for x in "qkv"},
    "attn/o/kernel": ("heads", "embed"),
    **{f"{x}/kernel": ("embed", "mlp") for x in ("gate", "up")},
    **{f"{x}/bias": ("mlp",) for x in ("gate", "up")},
    "down/kernel": ("mlp", "embed"),
}
# Fully sharded over "fsdp", Megatron-style columns and rows over "tensor".
RULES: Mapping[str, str] = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def specs(abstract: Any, axis_sizes: Mapping[str, int], rules: Mapping[str, str] = RULES) -> Any:
    """Returns the `PartitionSpec` of every parameter.

    An axis that the mesh does not have, or that does not divide, stays whole.

    Args:
      abstract: the parameter tree (`params.abstract_params`).
      axis_sizes: size of each mesh axis, by name.
      rules: which mesh axis splits which parameter axis.
    """

    def spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        names = next((v for k, v in _AXES.items() if path == k or path.endswith("/" + k)), ())
        names = (None,) * (len(shape) - len(names)) + names
        axes = [rules.get(name) if name else None for name in names]
        sizes = [axis_sizes.get(axis, 1) if axis else 1 for axis in axes]
        return PartitionSpec(*(a if s > 1 and n % s == 0 else None for a, s, n in zip(axes, sizes, shape)))

    flat: dict[str, Any] = flax.traverse_util.flatten_dict(abstract, sep="/")
    tree = {path: jax.tree.map(lambda x, path=path: spec(path, x.shape), leaf) for path, leaf in flat.items()}
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def shardings(abstract: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, str] = RULES) -> Any:
    """Returns the `NamedSharding` of every parameter, for `load_model(shardings=...)`."""
    tree = specs(abstract, dict(mesh.shape), rules)
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree, is_leaf=is_spec)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device of one training step with Adam and remat."""

    devices: int
    params: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    cache: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(dataclasses.astuple(self)[1:])


def memory_plan(
    config: ModelConfig,
    axis_sizes: Mapping[str, int],
    *,
    rows: int,
    steps: int,
    dtype: Any = jnp.float32,
    compute_dtype: Any = jnp.bfloat16,
    chunk: int = 256,
) -> MemoryPlan:
    """Returns what each device must hold; nothing is allocated.

    Args:
      config: the model's.
      axis_sizes: mesh axes, `fsdp` and `tensor`; rows are split over `fsdp`.
      rows: texts in a batch, all devices together.
      steps: tokens of a text.
      dtype: of parameters, gradients and both Adam moments.
      compute_dtype: of activations and cache.
      chunk: positions projected to the vocabulary at a time.
    """
    mesh = AbstractMesh(tuple(axis_sizes.values()), tuple(axis_sizes))
    abstract = abstract_params(config, dtype)
    places = shardings(abstract, mesh)
    parts = jax.tree.map(lambda x, s: s.shard_shape(x.shape), abstract, places)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    count = sum(math.prod(s) for s in jax.tree.leaves(parts, is_leaf=is_shape))
    size, small = jnp.dtype(dtype).itemsize, jnp.dtype(compute_dtype).itemsize
    tensor = axis_sizes.get("tensor", 1)
    tokens = -(-rows // axis_sizes.get("fsdp", 1)) * steps
    # Remat keeps each layer's input; the layer being recomputed holds its widest activations.
    widest = 3 * config.intermediate_size // tensor + 4 * config.hidden_size
    scores = -(-config.num_heads // tensor) * steps * 4
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return MemoryPlan(
        devices=math.prod(axis_sizes.values()),
        params=count * size,
        gradients=count * size,
        optimizer=2 * count * size,
        activations=tokens * (small * (config.num_layers * config.hidden_size + widest) + scores),
        logits=2 * chunk * -(-config.vocab_size // tensor) * 4,
        cache=tokens * -(-kv // tensor) * small,
    )
