"""What a run learns from: prompts and preference pairs, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pairgrpo_jax.lm.alignment.batch import EncodedPrompt, PromptStream
from pairgrpo_jax.lm.data import EncodedPair, batch_indices


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
