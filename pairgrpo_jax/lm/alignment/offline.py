"""Batches of a data set's preference pairs, scored as their method needs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pairgrpo_jax import core
from pairgrpo_jax.lm.alignment.batch import Batch, ended, mismatched, pair_batch
from pairgrpo_jax.lm.alignment.data import Data
from pairgrpo_jax.lm.alignment.draws import Draw, known
from pairgrpo_jax.lm.alignment.evaluation import in_batches
from pairgrpo_jax.lm.alignment.laps import Laps
from pairgrpo_jax.lm.alignment.passes import Passes
from pairgrpo_jax.lm.alignment.updates import adaptive_of
from pairgrpo_jax.lm.data import EncodedPair, batch_indices
from pairgrpo_jax.methods import Likelihoods
from pairgrpo_jax.training import TrainState


class Offline:
    """Where the batches of an offline method come from."""

    def __init__(self, passes: Passes, data: Data, seed: int):
        """Takes the run's passes, pairs, and the seed of their order."""
        self.passes, self.config, self.prompts = passes, passes.config, passes.prompts
        self.data, self.seed = data, seed

    def collect(
        self, state: TrainState, position: int, sample_key, pair_key, laps: Laps
    ) -> tuple[Batch, dict[str, Any], int]:
        """Batch number `position` of the pairs, with the learning signal; figures to be logged; and 1."""
        indices = batch_indices(len(self.data.pairs), self.prompts, position, self.seed)
        rows = [self.data.pairs[i] for i in indices]
        batch = self.padded(rows)
        whole = ended(self.passes.model, batch.completions, batch.lengths).astype(np.float32)
        batch = self.passes.put(batch)
        laps.end("host", batch)
        if self.config.scores_reference:
            batch = batch._replace(ref_logp=self.offline_reference(state, batch, indices))
            laps.end("reference", batch)
        if self.config.method.ratio:
            batch = batch._replace(old_logp=self.passes.old_scores(state.params, self.passes.frozen, batch)[0])
            laps.end("updates", batch)
        labels = self.passes.put(core.chosen_rejected_pairs(self.prompts))
        others = None
        if self.config.method.mismatched:
            others = self.likelihoods(state, mismatched(rows))
            laps.end("reference", others)
        batch = self.passes.signal(batch, None, labels, pair_key, adaptive_of(state), others)
        return batch, known(Draw(batch, None, None, None, whole), batch.pairs, self.prompts), 1

    def likelihoods(self, state: TrainState, pairs: Sequence[EncodedPair]) -> Likelihoods:
        """What the policy and the reference say of pairs before any update on them."""
        batch, reference = self.passes.put(self.padded(pairs)), self.passes.reference(state)
        ref_logp = self.passes.ref_logp(reference.params, reference.lora, batch)
        logp, *_ = self.passes.old_scores(state.params, self.passes.frozen, batch)
        return Likelihoods(logp, None, ref_logp, batch.mask)

    def padded(self, pairs: Sequence[EncodedPair]) -> Batch:
        """As arrays of the run's size."""
        return pair_batch(pairs, self.config.texts.prompt_tokens, self.config.texts.completion_tokens)

    def offline_reference(self, state: TrainState, batch: Batch, indices: np.ndarray) -> Any:
        """pi_ref's log-probabilities `[B,2,T]` of these pairs."""
        if self.config.reference_scores == "cached":
            return self.passes.put(self.cache[indices])
        return self.passes.ref_logp(*self.passes.reference(state)[1:], batch)

    @functools.cached_property
    def cache(self) -> np.ndarray:
        """`[N,2,T]` log-probabilities of all pairs, in data set order so that a resumed run finds the same."""
        pairs = self.data.pairs

        def run(index: np.ndarray):
            batch = self.passes.put(self.padded([pairs[i] for i in index.tolist()]))
            return [self.passes.ref_logp(self.passes.model.params, None, batch)]

        return in_batches(run, len(pairs), self.passes.places)[0]
