"""Where arrays of texts lie on a mesh; left to itself the compiler lets them follow the parameters."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pairgrpo_jax.lm.models.places import KV


def activations(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Activations `[B, T, d]`, rows split over the first axis of a mesh.

    Parameters that "fsdp" splits are then gathered one layer at a time. One token of each row is less to move than a
    layer is: it is split along d, as the parameters are.
    """
    if mesh is None:
        return x
    axis = mesh.axis_names[0]
    return split(x, mesh, 2 if axis == "fsdp" and x.shape[1] == 1 else 0)


def split(x: jax.Array, mesh: Mesh | None, dim: int = 0) -> jax.Array:
    """An array with dimension `dim` split over the first axis of a mesh; as it is where that does not divide."""
    if mesh is None or x.shape[dim] % parts(mesh):
        return x
    spec = PartitionSpec(*[None] * dim, mesh.axis_names[0])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def parts(mesh: Mesh | None) -> int:
    """Into how many parts rows are split."""
    return 1 if mesh is None else mesh.shape[mesh.axis_names[0]]


def vocabulary(params: Any, mesh: Mesh | None) -> Any:
    """Parameters, whose projection to the vocabulary is gathered here and not for every chunk of positions."""
    if mesh is None or mesh.axis_names[0] != "fsdp":
        return params
    tied = "lm_head" not in params
    free = PartitionSpec.UNCONSTRAINED
    where = NamedSharding(mesh, PartitionSpec(free, None) if tied else PartitionSpec(None, free))

    def gather(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), tree)

    name = "embed" if tied else "lm_head"
    return params | {name: gather(params[name])}


def placed(kv: KV, mesh: Mesh | None) -> KV:
    """Keys and values of all layers, `[L, B, H, S, D]`, rows split."""
    return KV(split(kv.k, mesh, 1), split(kv.v, mesh, 1), split(kv.positions, mesh))
