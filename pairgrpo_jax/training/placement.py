"""Where arrays live on a mesh: states replicated unless they are sharded already, batches split over one axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pairgrpo_jax.training import processes


def mesh_of_all(axis: str) -> Mesh:
    """Every device of every process in one axis."""
    return jax.make_mesh((jax.device_count(),), (axis,), axis_types=(jax.sharding.AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every leaf that is not on `mesh` yet replicated over it; axis types do not make another mesh.

    Raises:
      ValueError: for a leaf that is sharded over the same devices in a mesh of other axes: it would be gathered.
    """

    def place(x):
        sharding, spec = getattr(x, "sharding", None), PartitionSpec()
        if isinstance(sharding, NamedSharding) and sharding.device_set == set(mesh.devices.flat):
            if sharding.mesh.axis_names == mesh.axis_names:
                spec = sharding.spec
            elif not sharding.is_fully_replicated:
                raise ValueError(
                    f"mesh: the state is sharded over axes {sharding.mesh.axis_names}, and this one has "
                    f"{mesh.axis_names}; use the state's mesh, and name its axis as axis_name"
                )
        return processes.put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def beside(tree: Any, others: Any) -> Any:
    """`tree` bound to the one device that holds `others`; as it is where they are on several.

    What is computed from both is bound there. A state that is not, before its first update, has every program compiled
    a second time after it.
    """
    devices = {device for x in jax.tree.leaves(others) if isinstance(x, jax.Array) for device in x.devices()}
    return jax.device_put(tree, devices.pop()) if len(devices) == 1 else tree


def filled_up(count: int, multiple: int) -> int:
    """`count`, rounded up to a multiple: of the devices, each then has as many."""
    return -(-count // multiple) * multiple


def put_rows(tree: Any, rows: NamedSharding | None) -> Any:
    """`tree` with every leaf split as `rows` say, or on the default device."""
    return jax.device_put(tree) if rows is None else jax.tree.map(lambda x: processes.put(x, rows), tree)


def split(tree: Any, mesh: Mesh, axis_name: str) -> Any:
    """`tree` with the leading axis of every leaf split over a mesh axis; scalars are replicated."""

    def place(x):
        spec = PartitionSpec(axis_name) if jnp.ndim(x) else PartitionSpec()
        return processes.put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)
