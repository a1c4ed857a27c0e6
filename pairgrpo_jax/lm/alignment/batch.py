"""What an update is given: padded tokens and what is known about them. Updates never see a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.lm.data import (
    EncodedPair,
    Message,
    Preference,
    PromptRow,
    encode_each,
    encode_preferences,
    encode_prompt,
    pad_texts,
    prompt_ids,
)
from pairgrpo_jax.lm.data.columns import NOTHING
from pairgrpo_jax.lm.models.model import Model


class Batch(NamedTuple):
    """B groups of K completions; only the fields that the method reads need be there.

    Attributes:
      prompts: int32 `[B,P]`, right-padded.
      prompt_lengths: int32 `[B]`.
      completions: int32 `[B,K,T]`, right-padded; offline, chosen then rejected.
      lengths: int32 `[B,K]`.
      old_logp: `[B,K,T]` under pi_old, which sampled them.
      ref_logp: `[B,K,T]` under pi_ref.
      signal: what the method learns from, leaves `[B,...]`; None for supervised fine-tuning.
      old_values: `[B,K,T]`, the critic's when the batch was collected.
      returns: `[B,K,T]`, its targets.
      alive: `[B]`, 0 for a group without a usable verdict, and for an empty place.
      keys: `[B]`, for LoRA's dropout; one a group, so that micro-batches drop different inputs. None: no dropout.
      kept: uint8 `[B,K,T,ceil(V/8)]`, the tokens that could be drawn, where probabilities are among these; see
        `scoring.kept_tokens`.
      counted: `[B,K]`, 0 for a completion whose tokens no term counts. None: all do.
      stands_for: `[B]`, one number: of how many groups of the whole batch each that has a place here stands in means
        that are learned from, as those without a place would add nothing. None: for itself.
    """

    prompts: Any
    prompt_lengths: Any
    completions: Any
    lengths: Any
    old_logp: Any = None
    ref_logp: Any = None
    signal: Any = None
    old_values: Any = None
    returns: Any = None
    alive: Any = None
    keys: Any = None
    kept: Any = None
    counted: Any = None
    stands_for: Any = None

    @property
    def tokens(self) -> tuple:
        """The four arrays that a model is run on."""
        return self.prompts, self.prompt_lengths, self.completions, self.lengths

    @property
    def pairs(self) -> Any:
        """`Pairs` `[B,Q]` of the signal, if it holds any."""
        return getattr(self.signal, "pairs", None)

    @property
    def mask(self) -> jax.Array:
        """`[B,K,T]`, 1.0 at real tokens that count; from lengths, never from a pad id."""
        steps = jnp.arange(self.completions.shape[-1])
        mask = (steps < self.lengths[..., None]).astype(jnp.float32)
        return mask if self.counted is None else mask * self.counted[..., None]

    @property
    def alive_mask(self) -> jax.Array:
        """`mask`, 0 in groups that are not alive."""
        return self.mask * self.alive[:, None, None]

    def filled(self, rows: int) -> Batch:
        """With empty places after its groups, up to B = `rows`: no reply, not alive, and a prompt of one token."""
        batch = filled(self, rows)
        return batch._replace(prompt_lengths=np.maximum(batch.prompt_lengths, 1))

    def resized(self, width: int) -> Batch:
        """With T = `width`: steps cut off, or zeros put after them. Arrays must be the host's own."""

        def resize(x):
            after = [(0, 0), (0, 0), (0, max(width - x.shape[2], 0)), *[(0, 0)] * (x.ndim - 3)]
            return np.pad(x[:, :, :width], after)

        steps = {name: getattr(self, name) for name in _STEPS}
        return self._replace(**{name: resize(x) for name, x in steps.items() if x is not None})


_STEPS = ("completions", "old_logp", "ref_logp", "old_values", "returns", "kept")


def filled(tree: Any, rows: int) -> Any:
    """Arrays `[B,...]` with zeros after them, up to `rows`; the host's own, but for those that are full already."""

    def fill(x):
        return x if len(x) == rows else np.pad(x, [(0, rows - len(x)), *[(0, 0)] * (np.ndim(x) - 1)])

    return jax.tree.map(fill, tree)


def groups(tree: Any, count: int) -> Any:
    """Arrays without the empty places after `count` groups."""
    return jax.tree.map(lambda x: x[:count], tree)


def halved(limit: int, count: int) -> int:
    """The least of `limit`, `limit / 2`, `limit / 4`, ..., rounded up, that holds `count`: few sizes to compile."""
    while limit > (half := -(-limit // 2)) >= count:
        limit = half
    return limit


def trimmed_width(longest: int, limit: int) -> int:
    """The least half of `limit` that holds `longest` steps, and at least 4."""
    return halved(limit, max(longest, 4))


class EncodedPrompt(NamedTuple):
    """A prompt as messages, for whoever judges, and as the tokens the model is given; and its row's other columns."""

    messages: tuple[Message, ...]
    ids: list[int]
    columns: Mapping[str, Any] = NOTHING


def encode_prompts(model: Model, prompts: Sequence, limit: int) -> list[EncodedPrompt]:
    """Prompts of at most `limit` tokens; those that cannot be made to fit are left out.

    Args:
      model: whose tokenizer and template are used.
      prompts: `PromptRow`s, or tuples of messages.
      limit: P.

    Raises:
      ValueError: if none fits.
    """
    _require_some("prompts", prompts)
    rows = [row if isinstance(row, PromptRow) else PromptRow(tuple(row)) for row in prompts]
    encoded = encode_each(lambda row, limit: prompt_ids(model, row.prompt, limit), rows, limit, "prompts")
    return [EncodedPrompt(row.prompt, ids, row.columns) for row, ids in zip(rows, encoded) if ids]


class PromptStream:
    """Endless prompts, made and encoded when they are asked for; a place of the stream always holds the same one."""

    def __init__(self, model: Model, at: Callable[[int], Iterable[PromptRow]], limit: int):
        """Takes what makes the rows that may stand at a place; the first of at most `limit` tokens is taken."""
        self._model, self._at, self._limit = model, at, limit

    def take(self, position: int, count: int) -> list[EncodedPrompt]:
        """Batch number `position`, of `count` prompts.

        Raises:
          ValueError: where none of a place's prompts fits.
        """
        return [self._one(place) for place in range(position * count, (position + 1) * count)]

    def _one(self, place: int) -> EncodedPrompt:
        for row in self._at(place):
            if ids := encode_prompt(self._model, row.prompt, self._limit):
                return EncodedPrompt(row.prompt, ids, row.columns)
        raise ValueError(f"prompt_tokens={self._limit}: none of the prompts at place {place} fits; raise it")


def encode_pairs(model: Model, rows: Sequence[Preference], limit: int, reply_limit: int) -> list[EncodedPair]:
    """Pairs whose prompt fits; replies are cut at `reply_limit` tokens, and pairs that are then alike left out.

    Raises:
      ValueError: if none is left.
    """
    _require_some("pairs", rows)
    encoded = encode_preferences(model, rows, limit, reply_limit)
    kept = [pair for pair in encoded if pair and all(pair) and pair.chosen != pair.rejected]
    if not kept:
        raise ValueError(
            f"prompt_tokens={limit}, completion_tokens={reply_limit}: none of {len(rows)} pairs fits; raise them"
        )
    return kept


def _require_some(what: str, rows: Sequence) -> None:
    if not rows:
        raise ValueError(f"data: no {what} on one side of the split by first turn; it takes rows of more first turns")


def ended(model: Model, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which completions `[...,T]` of `lengths` `[...]` stopped by themselves: their last token ends a reply."""
    last = np.take_along_axis(np.asarray(tokens), np.maximum(np.asarray(lengths), 1)[..., None] - 1, axis=-1)[..., 0]
    return np.isin(last, model.config.eos_ids)


def pair_batch(pairs: Sequence[EncodedPair], prompt_tokens: int, completion_tokens: int) -> Batch:
    """Dataset pairs as a batch of K = 2, the chosen reply first."""
    prompts, prompt_lengths = pad_texts([pair.prompt for pair in pairs], prompt_tokens)
    replies, lengths = pad_texts([reply for pair in pairs for reply in pair.replies], completion_tokens)
    return Batch(
        prompts, prompt_lengths, replies.reshape(len(pairs), 2, -1), lengths.reshape(len(pairs), 2), alive=_ones(pairs)
    )


def mismatched(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    """Each pair's prompt with the replies of the next one, the last with those of the first."""
    return [pair._replace(prompt=before.prompt) for before, pair in zip(pairs, [*pairs[1:], *pairs[:1]])]


def chosen_batch(pairs: Sequence[EncodedPair], prompt_tokens: int, completion_tokens: int) -> Batch:
    """The chosen replies alone, K = 1, for supervised fine-tuning."""
    batch = pair_batch(pairs, prompt_tokens, completion_tokens)
    return batch._replace(completions=batch.completions[:, :1], lengths=batch.lengths[:, :1])


def _ones(rows: Sequence) -> np.ndarray:
    return np.ones(len(rows), np.float32)
