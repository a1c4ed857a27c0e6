"""What is trained and what stays: adapters on a shared frozen base, or all parameters; a critic where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.models import layout, lora, sharding
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.quantized import dequantized
from pairgrpo_jax.lm.models.scoring import Policy
from pairgrpo_jax.training.placement import filled_up, mesh_of_all, replicate, split
from pairgrpo_jax.training.processes import put


def init_trainable(config: AlignConfig, model: Model, key: jax.Array) -> dict[str, Any]:
    """New parameters to train: `lora` adapters or a copy of the `model`; a critic's `value` head, which says 0."""
    trainable: dict[str, Any] = {}
    if config.adapters.lora is not None:
        trainable["lora"] = lora.init(config.adapters.lora, model.config, key)
    else:
        trainable["model"] = jax.tree.map(jnp.copy, model.params)  # donated later, while the reference stays
    if config.critic is not None:
        trainable["value"] = {"weight": jnp.zeros(model.config.hidden_size), "bias": jnp.zeros(())}
    return trainable


def policy_of(config: AlignConfig, model: Model, frozen: Any, trainable: dict[str, Any]) -> Policy:
    """The policy that `trainable` makes of the frozen base parameters (which full fine-tuning does not use)."""
    if config.adapters.lora is None:
        return Policy(model, trainable["model"])
    return Policy(model, frozen, lora.variables(config.adapters.lora, trainable["lora"]))


def merged(config: AlignConfig, model: Model, trainable: dict[str, Any]) -> Any:
    """One parameter tree, adapters added in, for `save_pretrained`; a quantised base is the numbers of its codes."""
    if config.adapters.lora is None:
        return trainable["model"]
    return lora.merge(config.adapters.lora, dequantized(model.params), trainable["lora"])


def critic(value: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """V(s) of hidden states `[..., d]`, `[...]`: linear in them at unit norm, so one learning rate serves all."""
    x = hidden.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)
    return x @ value["weight"] + value["bias"]


class Placement:
    """Where arrays live: on one device, or a mesh whose first axis splits batches and, by `rules`, parameters."""

    def __init__(self, mesh: Mesh | None = None, rules=sharding.RULES):
        """Takes a mesh and which of its axes split which parameter axes; no rules: replicated, data-parallel."""
        self.mesh, self.rules = mesh, rules

    @classmethod
    def over(cls, mesh: str) -> Placement:
        """All devices, with parameters replicated ("data") or split ("fsdp"); the default one ("none")."""
        if mesh == "none":
            return cls()
        return cls(mesh_of_all(mesh))

    @property
    def rows(self) -> NamedSharding | None:
        """How a leading axis is split."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))

    @property
    def splits(self) -> int:
        """Into how many parts a leading axis is split."""
        return layout.parts(self.mesh)

    @property
    def replicates(self) -> bool:
        """Whether parameters are whole on every device of a mesh of several."""
        return self.splits > 1 and self.mesh is not None and self.mesh.axis_names == ("data",)

    def each(self, update: Callable) -> Callable:
        """`(state, frozen, batch) -> (state, metrics)` of what does its own part of a batch, over the axis "data"."""

        def run(state: Any, frozen: Any, batch: Any) -> Any:
            parts = jax.tree.map(lambda x: PartitionSpec("data") if jnp.ndim(x) else PartitionSpec(), batch)
            whole = PartitionSpec()
            specs = {"in_specs": (whole, whole, parts), "out_specs": whole, "check_vma": False}
            return jax.shard_map(update, mesh=self.mesh, **specs)(state, frozen, batch)

        return run

    def places(self, groups: int, accumulate: int = 1) -> int:
        """Rows of a batch of `groups`, filled up until each of `accumulate` micro-batches is split evenly."""
        return filled_up(groups, self.splits * accumulate)

    def update_places(self, config: AlignConfig) -> int:
        """Rows of what one update is given."""
        how = config.optimizer
        return self.places(config.texts.prompts // how.minibatches, how.accumulate)

    def batch_places(self, config: AlignConfig) -> int:
        """Rows of a whole batch: one of them empty where updates need empty ones."""
        prompts = config.texts.prompts
        return self.places(prompts + (self.update_places(config) > prompts // config.optimizer.minibatches))

    def told(self, config: AlignConfig) -> str:
        """What is filled up, in a line; empty where nothing is."""
        prompts, how = config.texts.prompts, config.optimizer
        parts = how.minibatches * how.accumulate
        empty = self.places(prompts // parts) - prompts // parts
        if not empty:
            return ""
        each = f"micro-batch of {prompts // parts}" if parts > 1 else "batch"
        return f"prompts={prompts} on {self.splits} devices: {empty} empty place{'s' * (empty > 1)} in each {each}"

    def model(self, model: Model) -> Model:
        """The model with its parameters in place."""
        if self.mesh is None:
            return model
        places = self.shardings(jax.eval_shape(lambda: model.params))
        return dataclasses.replace(model, params=jax.tree.map(put, model.params, places), mesh=self.mesh)

    def shardings(self, params: Any) -> Any:
        """Where parameters belong, for `load_model`; None on one device."""
        return None if self.mesh is None else sharding.shardings(params, self.mesh, self.rules)

    def abstract(self, params: Any) -> Any:
        """Abstract parameters, each with where it belongs."""
        places = self.shardings(params)
        if places is None:
            return params
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, places)

    def batch(self, batch: Any) -> Any:
        """A batch on the devices; leading axes split, scalars and keys everywhere."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        return split(batch, self.mesh, self.mesh.axis_names[0])

    def state(self, state: Any) -> Any:
        """A state with all that is not placed yet replicated."""
        if self.mesh is None:
            return state
        return replicate(state, self.mesh)
