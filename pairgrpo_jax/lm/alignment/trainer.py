"""One iteration of every method: a batch of samples or of labelled pairs, then several updates on it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pairgrpo_jax import core
from pairgrpo_jax.core.surrogate import policy_kl
from pairgrpo_jax.lm.alignment import objectives
from pairgrpo_jax.lm.alignment.batch import (
    Batch,
    EncodedPrompt,
    PromptStream,
    chosen_batch,
    ended,
    filled,
    halved,
    mismatched,
    pair_batch,
    trimmed_width,
)
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.alignment.draws import Draw, best, joined, overlong_penalty, teaching, told
from pairgrpo_jax.lm.alignment.evaluation import in_batches
from pairgrpo_jax.lm.alignment.laps import Laps
from pairgrpo_jax.lm.alignment.parameters import Placement, critic, init_trainable, policy_of
from pairgrpo_jax.lm.alignment.signals import learning_signal, pair_metrics, verdict_metrics
from pairgrpo_jax.lm.data import EncodedPair, batch_indices, pad_texts
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.generation import check_slots, generate
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.quantized import quantized
from pairgrpo_jax.lm.models.scoring import Policy, completion_hidden, kept_tokens, piecewise_limit, score, score_hidden
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, check_head, reward, score_and_reward
from pairgrpo_jax.lm.rewards.shares import by_share
from pairgrpo_jax.lm.rewards.sources import Source, SourceError, columns_of, compares, judged
from pairgrpo_jax.methods import Adaptive, Likelihoods
from pairgrpo_jax.training import TrainState, annealed_to, make_update_step, processes
from pairgrpo_jax.training.placement import beside

_log = logging.getLogger("pairgrpo_jax.lm")
_NO_REWARDS = "overlong_buffer: a judge that compares gives no rewards that could fall; leave it at 0"


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


class Data(NamedTuple):
    """Encoded prompts to sample from, and preference pairs (offline, and for supervised fine-tuning)."""

    prompts: Sequence[EncodedPrompt] | PromptStream = ()
    pairs: Sequence[EncodedPair] = ()

    def batch(self, position: int, count: int, seed: int) -> list[EncodedPrompt]:
        """The prompts of batch number `position`: of the stream, or of the sequence, reshuffled every epoch."""
        if isinstance(self.prompts, PromptStream):
            return self.prompts.take(position, count)
        return [self.prompts[i] for i in batch_indices(len(self.prompts), count, position, seed)]

    def some(self, count: int) -> Sequence[EncodedPrompt]:
        """All prompts of a sequence, or the first `count` of a stream, to check before anything runs."""
        return self.prompts.take(0, count) if isinstance(self.prompts, PromptStream) else self.prompts


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

    return optax.chain(optax.clip_by_global_norm(how.max_grad_norm), optax.adam(rate))


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
            raise ValueError(_NO_REWARDS)
    longest = texts.prompt_tokens + texts.completion_tokens
    if longest > (limit := piecewise_limit(model.config)):
        raise ValueError(f"prompt_tokens + completion_tokens = {longest} exceed the model's context of {limit}")


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics of iterations, `[iterations, ...]`; NaN where one has no such figure, as supervised fine-tuning."""
    shapes = {name: max((np.shape(row[name]) for row in rows if name in row), key=len) for row in rows for name in row}
    return {
        name: np.stack([np.broadcast_to(row.get(name, np.nan), shape) for row in rows])
        for name, shape in shapes.items()
    }


def mean_of_finite(rewards: np.ndarray) -> float:
    """Mean of the groups `[B,K]` whose rewards are all finite; nan if there is none."""
    kept = rewards[np.isfinite(rewards).all(-1)]
    return float(kept.mean()) if kept.size else float("nan")


def on_host(tree: Any) -> Any:
    """Arrays of all devices as each process's own: small programs on all of them, run one by one, may wait for ever."""
    return jax.tree.map(jnp.asarray, processes.fetch(tree))


def groups(tree: Any, count: int) -> Any:
    """Arrays without the empty places after `count` groups."""
    return jax.tree.map(lambda x: x[:count], tree)


def known(draw: Draw, pairs: core.Pairs | None, prompts: int, alive: Any = None) -> core.Metrics:
    """`verdict_metrics` of what was drawn and `pair_metrics` of the `prompts` groups that are learned from: `pairs` of
    all groups, or of those whose `alive` is given."""
    every = (draw.batch.lengths, draw.batch.alive, draw.ended, draw.rewards)
    every, pairs, alive = on_host((every, pairs, alive))
    every, pairs = groups(every, len(draw.ended)), groups(pairs, prompts)
    return verdict_metrics(*every) | pair_metrics(every[1] if alive is None else alive, pairs)


def adaptive_of(state: TrainState) -> Adaptive:
    """What the method has in the train state."""
    return Adaptive(state.delta_step, state.multiplier)


class _Run:
    """The compiled pieces of a run and the order in which the host calls them. Holds no state of the run."""

    def __init__(self, config, model, data, source, iterations, seed, placement, decode):
        self.config, self.model, self.data, self.source = config, model, data, source
        self.seed, self.placement, self.prompts = seed, placement, config.texts.prompts
        self.places, self.update_places = placement.batch_places(config), placement.update_places(config)
        self.columns = columns_of(source).shared(prompt.columns for prompt in data.some(config.texts.prompts))
        self.decode = decode or (lambda rows: model.tokenizer.batch_decode(rows, skip_special_tokens=True))
        self.optimizer = make_optimizer(config, iterations)
        self.supervised = make_optimizer(config, iterations, supervised=True)
        update = make_update(config, model, self.optimizer, self.supervised, placement)
        self.update = jax.jit(update, donate_argnums=0)
        self.old_scores = jax.jit(self._old_scores)
        self.ref_logp = jax.jit(lambda params, lora, batch: self._score(Policy(model, params, lora), batch))
        self.realised_kl = jax.jit(self._realised_kl)
        self.judge_tokens = jax.jit(self._judge_tokens)
        self.signal = jax.jit(functools.partial(learning_signal, config))

    def put(self, tree: Any) -> Any:
        """Arrays of all groups on the devices, with empty places after them."""
        return self.placement.batch(tree.filled(self.places) if isinstance(tree, Batch) else filled(tree, self.places))

    def fetch(self, tree: Any) -> Any:
        """The arrays of all groups from the devices, without the empty places."""
        return groups(processes.fetch(tree), self.prompts)

    def trainer(self) -> Trainer:
        return Trainer(self.model, self.init, self.iterate, self.policy, self.reference)

    def init(self, key: jax.Array) -> TrainState:
        key, param_key = jax.random.split(key)
        trainable = init_trainable(self.config, self.model, param_key)
        extra: dict[str, Any] = {"position": jnp.zeros((), jnp.int32)}
        if self.config.sft_iterations:
            extra["reference"] = jax.tree.map(jnp.copy, trainable)
        state = TrainState.create(trainable, self.optimizer, key, extra=extra)
        return self.placement.state(beside(state, self.model.params))

    def policy(self, state: TrainState) -> Policy:
        return policy_of(self.config, self.model, self.model.params, state.params)

    def reference(self, state: TrainState) -> Policy:
        if "reference" in state.extra:
            return policy_of(self.config, self.model, self.model.params, state.extra["reference"])
        return Policy(self.model, self.model.params)

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
        if self.config.online:
            batch, metrics, taken = self.collect(state, position, sample_key, pair_key, laps)
        else:
            (batch, metrics), taken = self.pairs(state, position, pair_key, laps), 1
        metrics |= self.config.method.report(adaptive_of(state))
        batch = self.placement.batch(batch)
        alive = processes.fetch(batch.alive)[: self.prompts] > 0
        if np.any(alive):
            state, measured = self.fit(state, batch, alive, *update_keys)
            metrics = metrics | measured
            if self.config.method.dual:
                metrics["realised_kl"] = self.realised_kl(state.params, self.frozen, batch)
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
                state, metrics = self.update(state, self.frozen, self.placement.batch(piece))
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
        if places == self.places and self.config.optimizer.minibatches == 1:
            return batch
        spare = min(self.prompts, self.places - 1)  # empty; or the last group, which is not alive if any is dropped
        rows = np.append(part, np.full(places - len(part), spare))
        return jax.tree.map(lambda x: x[rows], batch)

    def with_keys(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch with keys for LoRA's dropout, if there is any."""
        return (
            batch._replace(keys=jax.random.split(key, len(batch.lengths)))
            if self.config.adapters.lora_dropout
            else batch
        )

    @property
    def frozen(self) -> Any:
        """What updates and old scores take beside the trained parameters."""
        return None if self.config.adapters.lora is None else self.model.params

    def _score(self, policy: Policy, batch: Batch) -> jax.Array:
        return score(policy, *batch.tokens, sampling=self.config.scored, kept=batch.kept).logp

    def _old_scores(self, trainable, frozen, batch: Batch) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """pi_old's log-probabilities and the critic's values `[B,K,T]`, from the training graph; and `batch.kept`."""
        policy = policy_of(self.config, self.model, frozen, trainable)
        hidden = completion_hidden(policy, *batch.tokens)
        kept, samples = batch.kept, self.config.samples
        if kept is None and samples is not None and samples.keep_sampling_mask:
            kept = kept_tokens(policy, hidden, batch.completions, samples.transform)
        how = {"sampling": self.config.scored, "kept": kept}
        scores = score_hidden(policy, hidden, batch.completions, batch.lengths, **how)
        return scores.logp, critic(trainable["value"], hidden) if self.config.critic is not None else None, kept

    def _realised_kl(self, trainable, frozen, batch: Batch) -> jax.Array:
        """KL between pi_old and the policy that the updates ended at, nats per token."""
        logp, *_ = self._old_scores(trainable, frozen, batch)
        return policy_kl((logp - batch.old_logp) * batch.mask, batch.mask)["approx_kl"].mean

    def _judge_tokens(self, params, head: RewardHead, batch: Batch):
        if not self.config.scores_reference:
            return None, reward(Policy(self.model, params), head, *batch.tokens)
        how = {"sampling": self.config.scored, "kept": batch.kept}
        scores, rewards = score_and_reward(Policy(self.model, params), head, *batch.tokens, **how)
        return scores.logp, rewards

    def collect(
        self, state: TrainState, position: int, sample_key, pair_key, laps: Laps
    ) -> tuple[Batch, dict[str, Any], int]:
        """Samples, has them judged, and adds the learning signal; also how many batches of prompts that took."""
        found, teaches = [self.draw(state, position, sample_key, laps)], np.array([])
        if self.config.samples.resample:
            found, teaches = self.drawn_again(found, state, position, sample_key, laps)
        draws, figures = zip(*found)
        every, kept, metrics, alive = draws[0], draws[0], figures[0], None
        if len(draws) > 1:
            every, metrics = joined(draws), told(figures, [draw.batch.alive.sum() for draw in draws])
            kept = best(every, teaches, self.prompts)
            alive = kept.batch.alive
            kept = self.put(kept._replace(batch=kept.batch.filled(self.places)))
        if self.config.samples.resample:
            metrics = metrics | {"resampled": np.float32(len(draws) - 1)}
        batch = self.signal(kept.batch, kept.scores, kept.pairs, pair_key, adaptive_of(state))
        return batch, known(every, batch.pairs, self.prompts, alive) | metrics, len(draws)

    def drawn_again(
        self, found: list, state: TrainState, position: int, key: jax.Array, laps: Laps
    ) -> tuple[list, np.ndarray]:
        """More draws, of the next prompts, until enough groups teach something or no more are allowed; several are on
        the host. Also which groups of them all do."""
        method = self.config.method
        teaches = groups(teaching(method, found[0][0]), self.prompts)
        for more in range(1, self.config.samples.resample + 1):
            if teaches.sum() >= self.prompts:
                break
            found = [*found, self.draw(state, position + more, jax.random.fold_in(key, more), laps)]
            teaches = np.append(teaches, groups(teaching(method, found[-1][0]), self.prompts))
        if len(found) > 1:
            found = [(groups(draw, self.prompts), figures) for draw, figures in processes.fetch(found)]
        return found, teaches

    def draw(self, state: TrainState, position: int, key: jax.Array, laps: Laps) -> tuple[Draw, dict[str, Any]]:
        """Replies to batch number `position` of the prompts, judged; and figures to be logged."""
        samples, longest = self.config.samples, self.config.texts.completion_tokens
        prompts = self.data.batch(position, self.prompts, self.seed)
        laps.end("host")
        batch = self.sample(self.policy(state), [prompt.ids for prompt in prompts], key)
        laps.end("sampling")
        whole = ended(self.model, batch.completions, batch.lengths).astype(np.float32)
        batch = self.put(batch._replace(counted=whole if samples.mask_truncated else None))
        sampled_logp, gap = batch.old_logp, {}
        if samples.rescores or self.config.critic is not None:
            logp, values, kept = self.old_scores(state.params, self.frozen, batch)
            batch = batch._replace(kept=kept)
            if samples.keep_sampling_mask or not samples.cuts:
                one, other, mask = on_host((logp, sampled_logp, batch.mask))
                gap = {"sampler_gap": core.mean_term(jnp.abs(one - other), mask).mean}
            batch = batch._replace(old_logp=logp if samples.rescores else batch.old_logp, old_values=values)
            laps.end("updates", batch)
        batch, rewards, pairs, figures = self.judge(state, prompts, batch, position, laps)
        scores = rewards
        if samples.overlong_buffer:
            if rewards is None:
                raise ValueError(_NO_REWARDS)
            lengths, given = self.fetch((batch.lengths, rewards))
            lost = samples.overlong_penalty * overlong_penalty(lengths, longest, samples.overlong_buffer)
            scores = self.put((given - lost).astype(np.float32))
            figures = figures | {"overlong_penalty": np.float32(lost.mean())}
        return Draw(batch, rewards, scores, pairs, whole), figures | gap

    def sample(self, policy: Policy, prompts: list[list[int]], key: jax.Array) -> Batch:
        """K completions of each prompt, with the log-probabilities they were drawn with."""
        samples, texts = self.config.samples, self.config.texts
        out = generate(
            self.model,
            policy.params,
            prompts,
            max_new_tokens=texts.completion_tokens,
            key=key,
            num_samples=samples.candidates,
            temperature=samples.temperature,
            top_k=samples.top_k,
            top_p=samples.top_p,
            lora=policy.lora,
            rows=self.placement.rows,
            slots=samples.slots,
        )
        tokens, lengths = pad_texts(prompts, texts.prompt_tokens)
        alive = np.ones(len(prompts), np.float32)
        batch = Batch(tokens, lengths, out.tokens, out.lengths, old_logp=out.logp, alive=alive)
        batch = batch._replace(stands_for=alive if self.config.counts_flat_groups else None)
        return batch.resized(trimmed_width(int(out.lengths.max()), texts.completion_tokens)) if samples.trim else batch

    def judge(self, state: TrainState, prompts: Sequence[EncodedPrompt], batch: Batch, position: int, laps: Laps):
        """The batch, with pi_ref's log-probabilities where they are needed; rewards `[B,K]`, pairs, and metrics."""
        rewards = None
        if isinstance(self.source, RewardHead):
            logp, rewards = self.judge_tokens(self.model.params, self.source, batch)
            batch = batch._replace(ref_logp=logp)
            laps.end("judging", (batch, rewards))
        if self.config.scores_reference and (rewards is None or "reference" in state.extra):
            batch = batch._replace(ref_logp=self.ref_logp(*self.reference(state)[1:], batch))
            laps.end("reference", batch)
        if rewards is not None:
            return batch, rewards, None, {}
        judgement, each = self.ask(prompts, batch, position)
        laps.end("judging")
        alive = self.put(1 - judgement.failed.astype(np.float32))
        rewards, pairs = self.put((judgement.rewards, judgement.pairs))
        means = {f"reward/{name}": np.float32(mean_of_finite(x)) for name, x in each.items()}
        return batch._replace(alive=alive), rewards, pairs, means | dict(judgement.metrics)

    def ask(self, prompts: Sequence[EncodedPrompt], batch: Batch, position: int) -> tuple[Any, dict[str, np.ndarray]]:
        """The source's verdict on the texts, checked, failed groups with rewards of 0; and each of its rewards."""
        b, k = self.prompts, batch.lengths.shape[1]
        completions, lengths = self.fetch((batch.completions, batch.lengths))

        def judge(mine: slice):
            rows = zip(completions[mine].reshape(-1, completions.shape[-1]), lengths[mine].reshape(-1))
            texts = self.decode([row[:n].tolist() for row, n in rows])
            columns = {name: [prompt.columns[name] for prompt in prompts[mine]] for name in self.columns}
            groups = [texts[i : i + k] for i in range(0, len(texts), k)]
            return judged(self.source, [prompt.messages for prompt in prompts[mine]], groups, **columns)

        try:
            judgement, each = by_share(b, judge)
        except SourceError as error:
            raise SourceError(f"batch {position}: {error}") from error
        if np.any(judgement.failed):
            _log.warning("batch %d: no verdict on groups %s", position, np.flatnonzero(judgement.failed).tolist())
        rewards, failed = judgement.rewards, np.asarray(judgement.failed, bool)
        if rewards is None:
            return judgement, each
        rewards = np.asarray(rewards, np.float32)
        if rewards.shape != (b, k) or not np.all(np.isfinite(rewards[~failed])):
            raise ValueError(f"reward: batch {position}: expected {b} x {k} finite numbers, got shape {rewards.shape}")
        return judgement._replace(rewards=np.where(failed[:, None], 0, rewards)), each

    def pairs(self, state: TrainState, position: int, key: jax.Array, laps: Laps) -> tuple[Batch, dict[str, Any]]:
        """A batch of the data set's pairs, scored as its method needs."""
        indices = batch_indices(len(self.data.pairs), self.prompts, position, self.seed)
        rows = [self.data.pairs[i] for i in indices]
        batch = self.padded(rows)
        whole = ended(self.model, batch.completions, batch.lengths).astype(np.float32)
        batch = self.put(batch)
        laps.end("host", batch)
        if self.config.scores_reference:
            batch = batch._replace(ref_logp=self.offline_reference(state, batch, indices))
            laps.end("reference", batch)
        if self.config.method.ratio:
            batch = batch._replace(old_logp=self.old_scores(state.params, self.frozen, batch)[0])
            laps.end("updates", batch)
        labels = self.put(core.chosen_rejected_pairs(self.prompts))
        others = None
        if self.config.method.mismatched:
            others = self.likelihoods(state, mismatched(rows))
            laps.end("reference", others)
        batch = self.signal(batch, None, labels, key, adaptive_of(state), others)
        return batch, known(Draw(batch, None, None, None, whole), batch.pairs, self.prompts)

    def likelihoods(self, state: TrainState, pairs: Sequence[EncodedPair]) -> Likelihoods:
        """What the policy and the reference say of pairs before any update on them."""
        batch, reference = self.put(self.padded(pairs)), self.reference(state)
        ref_logp = self.ref_logp(reference.params, reference.lora, batch)
        return Likelihoods(self.old_scores(state.params, self.frozen, batch)[0], None, ref_logp, batch.mask)

    def padded(self, pairs: Sequence[EncodedPair]) -> Batch:
        return pair_batch(pairs, self.config.texts.prompt_tokens, self.config.texts.completion_tokens)

    def offline_reference(self, state: TrainState, batch: Batch, indices: np.ndarray) -> Any:
        if self.config.reference_scores == "cached":
            return self.put(self.cache[indices])
        return self.ref_logp(*self.reference(state)[1:], batch)

    @functools.cached_property
    def cache(self) -> np.ndarray:
        """`[N,2,T]` log-probabilities of all pairs, in data set order so that a resumed run finds the same."""
        pairs = self.data.pairs

        def run(index: np.ndarray):
            batch = self.put(self.padded([pairs[i] for i in index.tolist()]))
            return [self.ref_logp(self.model.params, None, batch)]

        return in_batches(run, len(pairs), self.places)[0]

    def fine_tune(self, state: TrainState, position: int, laps: Laps) -> tuple[TrainState, dict[str, Any]]:
        """One supervised update; after the last one the reference is what has been reached, and Adam starts anew."""
        texts = self.config.texts
        indices = batch_indices(len(self.data.pairs), self.prompts, position, self.seed)
        batch = chosen_batch([self.data.pairs[i] for i in indices], texts.prompt_tokens, texts.completion_tokens)
        batch = batch.filled(self.placement.places(self.prompts, self.config.optimizer.accumulate))
        batch = self.with_keys(batch, jax.random.fold_in(state.key, position))
        laps.end("host")
        state, metrics = self.update(state, self.frozen, self.placement.batch(batch))
        laps.end("updates", (state.params, metrics))
        extra = state.extra | {"position": state.extra["position"] + 1}
        if position + 1 == self.config.sft_iterations:
            extra["reference"] = jax.tree.map(jnp.copy, state.params)
            state = state.replace(opt_state=self.optimizer.init(state.params))
        return self.placement.state(state.replace(extra=extra)), metrics | laps.metrics()
