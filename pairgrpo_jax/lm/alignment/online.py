"""Batches of samples: drawn from the policy, judged, and drawn anew where groups teach nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax import core
from pairgrpo_jax.lm.alignment.batch import Batch, EncodedPrompt, ended, groups, trimmed_width
from pairgrpo_jax.lm.alignment.data import Data
from pairgrpo_jax.lm.alignment.draws import Draw, best, joined, known, on_host, overlong_penalty, teaching, told
from pairgrpo_jax.lm.alignment.laps import Laps
from pairgrpo_jax.lm.alignment.passes import Passes
from pairgrpo_jax.lm.alignment.updates import adaptive_of
from pairgrpo_jax.lm.data import pad_texts
from pairgrpo_jax.lm.models.generation import generate
from pairgrpo_jax.lm.models.scoring import Policy
from pairgrpo_jax.lm.rewards.reward_model import RewardHead
from pairgrpo_jax.lm.rewards.shares import by_share
from pairgrpo_jax.lm.rewards.sources import Source, SourceError, columns_of, judged
from pairgrpo_jax.training import TrainState, processes

_log = logging.getLogger("pairgrpo_jax.lm")
NO_REWARDS = "overlong_buffer: a judge that compares gives no rewards that could fall; leave it at 0"


class Online:
    """Where the batches of an online method come from."""

    def __init__(
        self,
        passes: Passes,
        data: Data,
        source: Source | RewardHead,
        seed: int,
        decode: Callable[[list[list[int]]], list[str]] | None,
    ):
        """Takes the run's passes, prompts, judge, seed of the order of prompts, and what makes texts of tokens."""
        assert passes.config.samples is not None
        self.passes, self.config, self.prompts = passes, passes.config, passes.prompts
        self.samples = passes.config.samples
        self.data, self.source, self.seed = data, source, seed
        self.columns = columns_of(source).shared(prompt.columns for prompt in data.some(self.prompts))
        tokenizer = passes.model.tokenizer
        self.decode = decode or (lambda rows: tokenizer.batch_decode(rows, skip_special_tokens=True))

    def collect(
        self, state: TrainState, position: int, sample_key, pair_key, laps: Laps
    ) -> tuple[Batch, dict[str, Any], int]:
        """Samples, judged, with the learning signal; figures to be logged; and how many batches of prompts it took."""
        found, teaches = [self.draw(state, position, sample_key, laps)], np.array([])
        if self.samples.resample:
            found, teaches = self.drawn_again(found, state, position, sample_key, laps)
        draws, figures = zip(*found)
        every, kept, metrics, alive = draws[0], draws[0], figures[0], None
        if len(draws) > 1:
            every, metrics = joined(draws), told(figures, [draw.batch.alive.sum() for draw in draws])
            kept = best(every, teaches, self.prompts)
            alive = kept.batch.alive
            kept = self.passes.put(kept._replace(batch=kept.batch.filled(self.passes.places)))
        if self.samples.resample:
            metrics = metrics | {"resampled": np.float32(len(draws) - 1)}
        batch = self.passes.signal(kept.batch, kept.scores, kept.pairs, pair_key, adaptive_of(state))
        return batch, known(every, batch.pairs, self.prompts, alive) | metrics, len(draws)

    def drawn_again(
        self, found: list, state: TrainState, position: int, key: jax.Array, laps: Laps
    ) -> tuple[list, np.ndarray]:
        """More draws, of the next prompts, until enough groups teach something or no more are allowed; several are on
        the host. Also which groups of them all do."""
        method = self.config.method
        teaches = groups(teaching(method, found[0][0]), self.prompts)
        for more in range(1, self.samples.resample + 1):
            if teaches.sum() >= self.prompts:
                break
            found = [*found, self.draw(state, position + more, jax.random.fold_in(key, more), laps)]
            teaches = np.append(teaches, groups(teaching(method, found[-1][0]), self.prompts))
        if len(found) > 1:
            found = [(groups(draw, self.prompts), figures) for draw, figures in processes.fetch(found)]
        return found, teaches

    def draw(self, state: TrainState, position: int, key: jax.Array, laps: Laps) -> tuple[Draw, dict[str, Any]]:
        """Replies to batch number `position` of the prompts, judged; and figures to be logged."""
        samples, longest = self.samples, self.config.texts.completion_tokens
        prompts = self.data.batch(position, self.prompts, self.seed)
        laps.end("host")
        batch = self.sample(self.passes.policy(state), [prompt.ids for prompt in prompts], key)
        laps.end("sampling")
        whole = ended(self.passes.model, batch.completions, batch.lengths).astype(np.float32)
        batch = self.passes.put(batch._replace(counted=whole if samples.mask_truncated else None))
        sampled_logp, gap = batch.old_logp, {}
        if samples.rescores or self.config.critic is not None:
            logp, values, kept = self.passes.old_scores(state.params, self.passes.frozen, batch)
            batch = batch._replace(kept=kept)
            if samples.rescores and (samples.keep_sampling_mask or not samples.cuts):
                one, other, mask = on_host((logp, sampled_logp, batch.mask))
                gap = {"sampler_gap": core.mean_term(jnp.abs(one - other), mask).mean}
            batch = batch._replace(old_logp=logp if samples.rescores else batch.old_logp, old_values=values)
            laps.end("updates", batch)
        batch, rewards, pairs, figures = self.judge(state, prompts, batch, position, laps)
        scores = rewards
        if samples.overlong_buffer:
            if rewards is None:
                raise ValueError(NO_REWARDS)
            lengths, given = self.passes.fetch((batch.lengths, rewards))
            lost = samples.overlong_penalty * overlong_penalty(lengths, longest, samples.overlong_buffer)
            scores = self.passes.put((given - lost).astype(np.float32))
            figures = figures | {"overlong_penalty": np.float32(lost.mean())}
        return Draw(batch, rewards, scores, pairs, whole), figures | gap

    def sample(self, policy: Policy, prompts: list[list[int]], key: jax.Array) -> Batch:
        """K completions of each prompt, with the log-probabilities they were drawn with."""
        samples, texts = self.samples, self.config.texts
        out = generate(
            self.passes.model,
            policy.params,
            prompts,
            max_new_tokens=texts.completion_tokens,
            key=key,
            num_samples=samples.candidates,
            temperature=samples.temperature,
            top_k=samples.top_k,
            top_p=samples.top_p,
            lora=policy.lora,
            rows=self.passes.placement.rows,
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
            logp, rewards = self.passes.judge_tokens(self.passes.model.params, self.source, batch)
            batch = batch._replace(ref_logp=logp)
            laps.end("judging", (batch, rewards))
        if self.config.scores_reference and (rewards is None or "reference" in state.extra):
            batch = batch._replace(ref_logp=self.passes.ref_logp(*self.passes.reference(state)[1:], batch))
            laps.end("reference", batch)
        if rewards is not None:
            return batch, rewards, None, {}
        judgement, each = self.ask(prompts, batch, position)
        laps.end("judging")
        alive = self.passes.put(1 - judgement.failed.astype(np.float32))
        rewards, pairs = self.passes.put((judgement.rewards, judgement.pairs))
        means = {f"reward/{name}": np.float32(mean_of_finite(x)) for name, x in each.items()}
        return batch._replace(alive=alive), rewards, pairs, means | dict(judgement.metrics)

    def ask(self, prompts: Sequence[EncodedPrompt], batch: Batch, position: int) -> tuple[Any, dict[str, np.ndarray]]:
        """The source's verdict on the texts, checked, failed groups with rewards of 0; and each of its rewards."""
        b, k = self.prompts, batch.lengths.shape[1]
        completions, lengths = self.passes.fetch((batch.completions, batch.lengths))

        def judge(mine: slice):
            rows = zip(completions[mine].reshape(-1, completions.shape[-1]), lengths[mine].reshape(-1))
            texts = self.decode([row[:n].tolist() for row, n in rows])
            columns = {name: [prompt.columns[name] for prompt in prompts[mine]] for name in self.columns}
            groups = [texts[i : i + k] for i in range(0, len(texts), k)]
            return judged(self.source, [prompt.messages for prompt in prompts[mine]], groups, **columns)

        try:
            judgement, each = by_share(b, judge)
        except SourceError as error:
            raise type(error)(f"batch {position + 1}: {error}") from error
        if np.any(judgement.failed):
            _log.warning("batch %d: no verdict on groups %s", position + 1, np.flatnonzero(judgement.failed).tolist())
        rewards, failed = judgement.rewards, np.asarray(judgement.failed, bool)
        if rewards is None:
            return judgement, each
        rewards = np.asarray(rewards, np.float32)
        if rewards.shape != (b, k) or not np.all(np.isfinite(rewards[~failed])):
            raise ValueError(
                f"reward: batch {position + 1}: expected {b} x {k} finite numbers, got shape {rewards.shape}"
            )
        return judgement._replace(rewards=np.where(failed[:, None], 0, rewards)), each


def mean_of_finite(rewards: np.ndarray) -> float:
    """Mean of the groups `[B,K]` whose rewards are all finite; nan if there is none."""
    kept = rewards[np.isfinite(rewards).all(-1)]
    return float(kept.mean()) if kept.size else float("nan")
