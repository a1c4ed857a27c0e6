"""Where arrays live on a mesh: states replicated unless they are sharded already, batches split over one axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every leaf that is not on `mesh` yet replicated over it; axis types do not make another mesh."""

    def place(x):
        sharding = getattr(x, "sharding", None)
        named = isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == mesh.axis_names
        there = named and np.array_equal(sharding.mesh.devices, mesh.devices)
        return jax.device_put(x, NamedSharding(mesh, sharding.spec if there else PartitionSpec()))

    return jax.tree.map(place, tree)


def split(tree: Any, mesh: Mesh, axis_name: str) -> Any:
    """`tree` with the leading axis of every leaf split over a mesh axis; scalars are replicated."""

    def place(x):
        spec = PartitionSpec(axis_name) if jnp.ndim(x) else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)
