"""The programs of a run on arrays that do not exist: what they cost is known before any weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from pairgrpo_jax import core
from pairgrpo_jax.lm.alignment.batch import Batch
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.alignment.parameters import Placement, init_trainable, policy_of
from pairgrpo_jax.lm.alignment.signals import learning_signal
from pairgrpo_jax.lm.alignment.updates import make_optimizer, make_update
from pairgrpo_jax.lm.models import generation
from pairgrpo_jax.lm.models.generation import bucket
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.params import abstract_params
from pairgrpo_jax.lm.models.quantized import quantized
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.methods import Adaptive, Likelihoods
from pairgrpo_jax.training import TrainState


class Program(NamedTuple):
    """One compiled program of a run.

    Attributes:
      name: update, prefill or decode.
      traced: `jax.stages.Traced`.
      beside: what the run holds in memory meanwhile, beside the program's arguments.
      steps: how often its `while` runs, if it has one.
    """

    name: str
    traced: Any
    beside: Any
    steps: int = 1


def programs(config: AlignConfig, model: Model, placement: Placement, iterations: int) -> Iterator[Program]:
    """Traces the update of a minibatch and, for an online method, prefill and decode of all its completions.

    Args:
      config: of the run.
      model: without parameters.
      placement: on which devices, which need not be here.
      iterations: length of the run.
    """
    model = dataclasses.replace(model, mesh=placement.mesh)
    kind = config.adapters.quantize
    abstract = jax.eval_shape(lambda params: quantized(params, kind), abstract_params(model.config))
    params = placement.abstract(abstract)
    model = dataclasses.replace(model, params=params)
    optimizer = make_optimizer(config, iterations)
    state = _state(config, model, placement, optimizer)
    frozen = None if config.adapters.lora is None else params
    beside = params if frozen is None else None
    update = jax.jit(make_update(config, model.skeleton, optimizer, placement=placement), donate_argnums=0)
    yield Program("update", update.trace(state, frozen, minibatch(config, model.config.vocab_size, placement)), beside)
    if not config.online:
        return
    policy = jax.eval_shape(lambda params, trained: policy_of(config, model, params, trained)[1:], params, state.params)
    policy = (state.params.get("model", params), _everywhere(policy[1], placement))
    prefill = _prefill(config, model, placement, policy)
    yield Program("prefill", prefill, (state, beside) if frozen is None else state)
    yield Program("decode", _decode(config, model, placement, policy, prefill), state, config.texts.completion_tokens)


def _state(config: AlignConfig, model: Model, placement: Placement, optimizer: Any) -> TrainState:
    """The train state, its parameters and their moments where the base has them, all else everywhere."""

    def create(key, params):
        trained = init_trainable(config, dataclasses.replace(model, params=params), key)
        return TrainState.create(trained, optimizer, key, extra={"position": jnp.zeros((), jnp.int32)})

    state = jax.eval_shape(create, jax.random.key(0), model.params)
    params = _everywhere(state.params, placement)
    if "model" in params:
        params["model"] = model.params

    def like(x, param):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param.sharding)

    moments = optax.tree.map_params(optimizer, like, state.opt_state, params)
    moments = jax.tree.map(lambda x: x if x.sharding is not None else _everywhere(x, placement), moments)
    return _everywhere(state, placement).replace(params=params, opt_state=moments)


def minibatch(config: AlignConfig, vocab_size: int, placement: Placement) -> Batch:
    """What an update is given: the arrays that a run's own batch has, without their values."""
    texts = config.texts
    b, k, t = placement.update_places(config), config.group_size, texts.completion_tokens
    whole: Any = jax.ShapeDtypeStruct((b, k, t), jnp.float32)
    tokens = jax.ShapeDtypeStruct((b, k, t), jnp.int32)
    prompts, ints = jax.ShapeDtypeStruct((b, texts.prompt_tokens), jnp.int32), jax.ShapeDtypeStruct((b,), jnp.int32)
    lengths, alive = jax.ShapeDtypeStruct((b, k), jnp.int32), jax.ShapeDtypeStruct((b,), jnp.float32)
    batch = Batch(prompts, ints, tokens, lengths, alive=alive)
    if config.scores_reference:
        batch = batch._replace(ref_logp=whole)
    if config.method.ratio or config.online:
        batch = batch._replace(old_logp=whole)
    if config.samples is not None and config.samples.keep_sampling_mask:
        batch = batch._replace(kept=jax.ShapeDtypeStruct((b, k, t, -(-vocab_size // 8)), jnp.uint8))
    if config.samples is not None and config.samples.mask_truncated:
        batch = batch._replace(counted=jax.ShapeDtypeStruct((b, k), jnp.float32))
    if config.counts_flat_groups:
        batch = batch._replace(stands_for=alive)
    if config.critic is not None:
        batch = batch._replace(old_values=whole)
    if config.adapters.lora_dropout:
        batch = batch._replace(keys=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b)))

    def signal(batch: Batch, rewards, others: Likelihoods, key):
        adaptive = Adaptive(jnp.zeros((), jnp.int32), jnp.ones(()))
        if config.online:
            return learning_signal(config, batch, rewards, None, key, adaptive)
        return learning_signal(config, batch, None, core.chosen_rejected_pairs(b), key, adaptive, others)

    rewards, others = jax.ShapeDtypeStruct((b, k), jnp.float32), Likelihoods(whole, None, whole, whole)
    return _rows(jax.eval_shape(signal, batch, rewards, others, jax.random.key(0)), placement)


def _prefill(config: AlignConfig, model: Model, placement: Placement, policy: tuple) -> Any:
    """The prompts, at their longest."""
    texts, samples = config.texts, config.samples
    assert samples is not None
    devices = 1 if placement.rows is None else placement.rows.num_devices
    rows, width = generation.prompt_shape(texts.prompts, texts.prompt_tokens, devices)
    tokens = jax.ShapeDtypeStruct((rows, width), jnp.int32)
    lengths, real = jax.ShapeDtypeStruct((rows,), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.bool_)
    settings = _settings(config, model, placement, rows)
    slots = bucket(texts.completion_tokens, 32)
    given = _rows((tokens, lengths, real), placement)
    return generation.prefill.trace(model.decoder, slots, policy[0], *given, settings, policy[1])


def _decode(config: AlignConfig, model: Model, placement: Placement, policy: tuple, prefill: Any) -> Any:
    """The loop over new tokens; what prefill leaves is split by texts."""
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), prefill.out_info)
    rows = state.tokens.shape[0]

    def place(x):
        axes = [placement.mesh.axis_names[0] if placement.mesh and n in (rows, prompts) else None for n in x.shape]
        first = next((i for i, axis in enumerate(axes) if axis), len(axes))
        return PartitionSpec(*axes[: first + 1])

    prompts = state.cache.shared.positions.shape[0]
    if placement.mesh is not None:
        mesh = placement.mesh
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, place(x))), state
        )
    limit = _everywhere(jax.ShapeDtypeStruct((), jnp.int32), placement)
    settings = _settings(config, model, placement, prompts)
    return generation.decode.trace(model.decoder, policy[0], state, limit, settings, policy[1])


def _settings(config: AlignConfig, model: Model, placement: Placement, prompts: int) -> tuple:
    samples = config.samples
    assert samples is not None
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), prompts * samples.candidates))
    stops = jax.ShapeDtypeStruct((max(len(model.config.eos_ids), 1),), jnp.int32)
    chosen = Sampling(samples.temperature, samples.top_k, samples.top_p)
    return chosen, *_everywhere((stops, keys), placement)


def _everywhere(tree: Any, placement: Placement) -> Any:
    """Abstract arrays, whole on each device."""
    if placement.mesh is None:
        return tree
    where = NamedSharding(placement.mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def _rows(tree: Any, placement: Placement) -> Any:
    """Abstract arrays, leading axes split."""
    if placement.mesh is None:
        return tree
    spec = PartitionSpec(placement.mesh.axis_names[0])

    def place(x):
        where = NamedSharding(placement.mesh, spec if x.shape else PartitionSpec())  # pyright: ignore
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(place, tree)
