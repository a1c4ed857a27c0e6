"""One iteration of every method: a batch of samples or of labelled pairs, then several updates on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.lm.alignment.batch import Batch, chosen_batch, halved
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.alignment.data import Data
from pairgrpo_jax.lm.alignment.laps import Laps
from pairgrpo_jax.lm.alignment.offline import Offline
from pairgrpo_jax.lm.alignment.online import NO_REWARDS, Online
from pairgrpo_jax.lm.alignment.parameters import Placement, init_trainable
from pairgrpo_jax.lm.alignment.passes import Passes
from pairgrpo_jax.lm.alignment.updates import adaptive_of, make_optimizer, make_update
from pairgrpo_jax.lm.data import batch_indices
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.config import check_limits
from pairgrpo_jax.lm.models.generation import check_slots
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.quantized import quantized
from pairgrpo_jax.lm.models.scoring import Policy
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, check_head
from pairgrpo_jax.lm.rewards.sources import Source, compares
from pairgrpo_jax.training import TrainState, annealed_to, processes
from pairgrpo_jax.training.placement import beside


class Trainer(NamedTuple):
    """Functions of one run.

    Attributes:
      model: the base, its parameters in place.
      init: `key -> TrainState`.
      iterate: `(TrainState, iterations) -> (TrainState, metrics)`; a metric is `[iterations]`, or
        `[iterations, updates]` where each update has its own. It takes the old state's memory.
      policy: `TrainState -> Policy`, what is being trained.
      reference: `TrainState -> Policy`, pi_ref.
    """

    model: Model
    init: Callable[[jax.Array], TrainState]
    iterate: Callable[[TrainState, int], tuple[TrainState, dict[str, np.ndarray]]]
    policy: Callable[[TrainState], Policy]
    reference: Callable[[TrainState], Policy]


def make_trainer(
    config: AlignConfig,
    model: Model,
    data: Data,
    source: Source | RewardHead | None = None,
    *,
    iterations: int,
    seed: int = 0,
    placement: Placement | None = None,
    decode: Callable[[list[list[int]]], list[str]] | None = None,
) -> Trainer:
    """Builds the functions of a run.

    Args:
      config: what to do.
      model: where to start; also the reference. `config.adapters.quantize` makes codes of it, unless it was loaded so.
      data: prompts for an online method, pairs for an offline one and for supervised fine-tuning.
      source: who judges samples. A reward head is applied in the pass that gives the reference's log-probabilities.
      iterations: length of the run, over which learning rates anneal.
      seed: of the order of the data.
      placement: on which devices.
      decode: tokens of N completions to texts; by default the model's tokenizer, special tokens left out.

    Raises:
      ValueError: for settings that do not fit together, or data that is missing, a column that the source asks for too.
    """
    placement = placement or Placement()
    _check(config, model, data, source, iterations, placement)
    if config.online and decode is None and model.tokenizer is None and not isinstance(source, RewardHead):
        raise ValueError("decode: the model has no tokenizer, and a reward function or judge needs texts")
    model = dataclasses.replace(model, params=quantized(model.params, config.adapters.quantize))
    return _Run(config, placement.model(model), data, source, iterations, seed, placement, decode).trainer()


def _check(config: AlignConfig, model: Model, data: Data, source, iterations: int, placement: Placement) -> None:
    name, texts, adapters = config.method.name, config.texts, config.adapters.lora
    if config.online and not data.prompts:
        raise ValueError(f"prompts: {name} samples completions and needs prompts")
    if config.online and source is None:
        raise ValueError(f"reward: {name} needs a reward model, a reward function or a judge")
    if (config.sft_iterations or not config.online) and not data.pairs:
        what = "sft_iterations" if config.sft_iterations else f"{name} offline"
        raise ValueError(f"data: {what} needs preference pairs")
    widest = (
        max((len(p.ids) for p in data.some(texts.prompts)), default=0),
        max((len(p.prompt) for p in data.pairs), default=0),
    )
    if max(widest) > texts.prompt_tokens:
        raise ValueError(f"prompt_tokens={texts.prompt_tokens}: a prompt has {max(widest)}; encode with that limit")
    if config.sft_iterations >= iterations:
        raise ValueError(f"sft_iterations={config.sft_iterations} leave none of iterations={iterations} to the method")
    if adapters is not None:
        lora.check(adapters, model.config)
    if isinstance(source, RewardHead):
        check_head(source, model.config)
    if config.samples is not None:
        check_slots(config.samples.slots, placement.rows)
        if config.samples.overlong_buffer and compares(source):
            raise ValueError(NO_REWARDS)
    check_limits(model.config, texts.prompt_tokens, texts.completion_tokens)


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics of iterations, `[iterations, ...]`; NaN where one has no such figure, as supervised fine-tuning."""
    shapes = {name: max((np.shape(row[name]) for row in rows if name in row), key=len) for row in rows for name in row}
    return {
        name: np.stack([np.broadcast_to(row.get(name, np.nan), shape) for row in rows])
        for name, shape in shapes.items()
    }


class _Run:
    """The order in which the host calls the compiled pieces of a run. Holds no state of the run."""

    def __init__(self, config, model, data, source, iterations, seed, placement, decode):
        self.config, self.data, self.seed, self.placement = config, data, seed, placement
        self.passes = Passes(config, model, placement)
        self.batches: Online | Offline = Offline(self.passes, data, seed)
        if config.online:
            self.batches = Online(self.passes, data, source, seed, decode)
        self.prompts, self.update_places = config.texts.prompts, placement.update_places(config)
        self.optimizer = make_optimizer(config, iterations)
        supervised = make_optimizer(config, iterations, supervised=True)
        update = make_update(config, model, self.optimizer, supervised, placement)
        self.update = jax.jit(update, donate_argnums=0)

    def trainer(self) -> Trainer:
        return Trainer(self.passes.model, self.init, self.iterate, self.passes.policy, self.passes.reference)

    def init(self, key: jax.Array) -> TrainState:
        key, param_key = jax.random.split(key)
        trainable = init_trainable(self.config, self.passes.model, param_key)
        extra: dict[str, Any] = {"position": jnp.zeros((), jnp.int32)}
        if self.config.sft_iterations:
            extra["reference"] = jax.tree.map(jnp.copy, trainable)
        state = TrainState.create(trainable, self.optimizer, key, extra=extra)
        return self.placement.state(beside(state, self.passes.model.params))

    def iterate(self, state: TrainState, count: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        rows = []
        for _ in range(count):
            state, metrics = self.iteration(state)
            rows.append(processes.fetch(metrics))
        return state, _stacked(rows)

    def iteration(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        position, laps = int(state.extra["position"]), Laps()
        if position < self.config.sft_iterations:
            return self.fine_tune(state, position, laps)
        key, sample_key, pair_key, *update_keys = jax.random.split(state.key, 5)
        batch, metrics, taken = self.batches.collect(state, position, sample_key, pair_key, laps)
        metrics |= self.config.method.report(adaptive_of(state))
        batch = self.placement.batch(batch)
        alive = processes.fetch(batch.alive)[: self.prompts] > 0
        if np.any(alive):
            state, measured = self.fit(state, batch, alive, *update_keys)
            metrics = metrics | measured
            if self.config.method.dual:
                metrics["realised_kl"] = self.passes.realised_kl(state.params, self.passes.frozen, batch)
            laps.end("updates", (state.params, metrics))
        return self.renewed(state, key, metrics.get("realised_kl"), taken), metrics | laps.metrics()

    def renewed(self, state: TrainState, key: jax.Array, kl, taken: int) -> TrainState:
        """The state for the next batch: its own key, data position and delta, and the multiplier's dual step."""
        after = self.config.method.renewed(adaptive_of(state), kl)
        extra = state.extra | {"position": state.extra["position"] + taken}
        opt_state = annealed_to(after.batches * self.config.optimizer.updates_per_batch, state.opt_state)
        state = state.replace(delta_step=after.batches, multiplier=after.multiplier, opt_state=opt_state)
        return self.placement.state(state.replace(key=key, extra=extra))

    def fit(
        self, state: TrainState, batch: Batch, alive: np.ndarray, shuffle_key, dropout_key
    ) -> tuple[TrainState, dict[str, Any]]:
        """All updates of a batch, of which `alive` groups count; metrics `[updates]`, and how far sampler and trainer
        are apart."""
        how, rows = self.config.optimizer, []
        for epoch in range(how.epochs):
            order = np.arange(self.prompts)
            if how.minibatches > 1:
                order = np.asarray(jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), self.prompts))
            for i, part in enumerate(np.split(order, how.minibatches)):
                piece = self.piece(batch, part, alive)
                piece = self.with_keys(piece, jax.random.fold_in(dropout_key, epoch * how.minibatches + i))
                state, metrics = self.update(state, self.passes.frozen, self.placement.batch(piece))
                rows.append(metrics)
        measured = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
        change = measured.pop("logp_change", None)
        samples = self.config.samples
        if change is not None and samples and not samples.rescores:
            measured["sampler_gap"] = change[0]
        return state, measured

    def piece(self, batch: Batch, part: np.ndarray, alive: np.ndarray) -> Batch:
        """The groups of one update, and places that count nothing after them. Where groups that teach nothing were
        drawn anew, those that are left are dropped, and places are halved while they hold the others."""
        places = self.update_places
        if self.config.online and self.config.samples.resample:
            part = part[alive[part]]
            places = self.placement.places(halved(places, len(part)), self.config.optimizer.accumulate)
        if places == self.passes.places and self.config.optimizer.minibatches == 1:
            return batch
        # Empty; or the last group, which has no token that counts if any is dropped (`draws.best`).
        spare = min(self.prompts, self.passes.places - 1)
        rows = np.append(part, np.full(places - len(part), spare))
        return jax.tree.map(lambda x: x[rows], batch)

    def with_keys(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch with keys for LoRA's dropout, if there is any."""
        return (
            batch._replace(keys=jax.random.split(key, len(batch.lengths)))
            if self.config.adapters.lora_dropout
            else batch
        )

    def fine_tune(self, state: TrainState, position: int, laps: Laps) -> tuple[TrainState, dict[str, Any]]:
        """One supervised update; after the last one the reference is what has been reached, and Adam starts anew."""
        texts = self.config.texts
        indices = batch_indices(len(self.data.pairs), self.prompts, position, self.seed)
        batch = chosen_batch([self.data.pairs[i] for i in indices], texts.prompt_tokens, texts.completion_tokens)
        batch = batch.filled(self.placement.places(self.prompts, self.config.optimizer.accumulate))
        key = jax.random.fold_in(state.key, 5)  # after those that `iteration` splits off: the same as folding in 0 to 4
        batch = self.with_keys(batch, jax.random.fold_in(key, position))
        laps.end("host")
        state, metrics = self.update(state, self.passes.frozen, self.placement.batch(batch))
        laps.end("updates", (state.params, metrics))
        extra = state.extra | {"position": state.extra["position"] + 1}
        if position + 1 == self.config.sft_iterations:
            extra["reference"] = jax.tree.map(jnp.copy, state.params)
            state = state.replace(opt_state=self.optimizer.init(state.params))
        return self.placement.state(state.replace(extra=extra)), metrics | laps.metrics()
