"""What an update is: the optimizer, the loss of a batch, and the step on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from pairgrpo_jax import core
from pairgrpo_jax.lm.alignment import objectives
from pairgrpo_jax.lm.alignment.batch import Batch
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.alignment.parameters import Placement, critic, policy_of
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.scoring import completion_hidden, score_hidden
from pairgrpo_jax.methods import Adaptive
from pairgrpo_jax.training import TrainState, make_update_step
from pairgrpo_jax.training.optimizer import clipped_adam


def make_optimizer(config: AlignConfig, iterations: int, *, supervised: bool = False) -> optax.GradientTransformation:
    """Adam with a clipped global norm; the rate rises at first, and decays linearly over the run by option.

    Args:
      config: what to do.
      iterations: length of the run, supervised fine-tuning included.
      supervised: of the fine-tuning, whose Adam, rise and decay are its own, and end with it; else of the method.
    """
    how = config.optimizer
    updates = config.sft_iterations if supervised else (iterations - config.sft_iterations) * how.updates_per_batch

    def rate(count):
        left = 1 - count / updates if how.anneal else 1.0
        return how.learning_rate * jnp.minimum((count + 1) / max(how.warmup, 1), 1.0) * jnp.maximum(left, 0.0)

    return clipped_adam(how.max_grad_norm, rate)


def make_loss(
    config: AlignConfig, model: Model, frozen: Any, adaptive: Adaptive
) -> Callable[[Any, Batch], core.Objective]:
    """`(trainable, batch) -> Objective`; `frozen` are the base parameters that LoRA adapters go on."""

    def loss(trainable, batch: Batch) -> core.Objective:
        policy = policy_of(config, model, frozen, trainable)
        dropout_key = None if batch.keys is None else batch.keys[0]
        hidden = completion_hidden(policy, *batch.tokens, dropout_key=dropout_key)
        supervised = batch.signal is None
        how = {"sampling": None if supervised else config.scored, "frozen": config.adapters.freezes_vocabulary}
        scores = score_hidden(policy, hidden, batch.completions, batch.lengths, kept=batch.kept, **how)
        if supervised:
            return objectives.sft_objective(batch, scores)
        values = None if config.critic is None else critic(trainable["value"], hidden)
        return objectives.objective(config, batch, scores, values, adaptive)

    return loss


def make_update(
    config: AlignConfig,
    model: Model,
    optimizer: optax.GradientTransformation,
    supervised: Any = None,
    placement: Placement | None = None,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, core.Metrics]]:
    """`(state, frozen, batch) -> (state, metrics)`; a batch without a signal takes the `supervised` optimizer.

    Where parameters are whole on every device of a mesh, each computes the gradient of its own groups, and they are
    added up once; the compiler would do so after every layer. Dropout has one key for all groups, and is left to it.
    """
    placement = placement or Placement()
    apart = placement.replicates and not config.adapters.lora_dropout
    shared = {"accumulate": config.optimizer.accumulate, "parallel": "axis" if apart else None}
    model = dataclasses.replace(model, mesh=None) if apart else model

    def update(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, core.Metrics]:
        loss = make_loss(config, model, frozen, adaptive_of(state))
        chosen = supervised if batch.signal is None else optimizer
        return make_update_step(loss, chosen, **shared)(state, batch)

    return placement.each(update) if apart else update


def adaptive_of(state: TrainState) -> Adaptive:
    """What the method has in the train state."""
    return Adaptive(state.delta_step, state.multiplier)
