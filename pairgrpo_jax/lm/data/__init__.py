"""Rows of prompts and preferences: read, cleaned, split and encoded."""

from pairgrpo_jax.core.preference import ranked_right
from pairgrpo_jax.lm.data.columns import Columns, asked_by
from pairgrpo_jax.lm.data.encode import (
    EncodedPair,
    encode_each,
    encode_pair,
    encode_preferences,
    encode_prompt,
    encode_reply,
    end_of_turn,
    joined,
    pad_texts,
    prompt_ids,
)
from pairgrpo_jax.lm.data.messages import Message, Prompt, parse_transcript
from pairgrpo_jax.lm.data.readers import SHIPPED
from pairgrpo_jax.lm.data.rows import (
    Loaded,
    Preference,
    PromptRow,
    describe,
    has_preferences,
    load_preferences,
    load_prompts,
)
from pairgrpo_jax.lm.data.split import (
    Half,
    batch_indices,
    first_turn,
    fold_of,
    preference_accuracy,
    split_by_first_turn,
    spread,
    unseen,
)

__all__ = [
    "SHIPPED",
    "Columns",
    "EncodedPair",
    "Half",
    "Loaded",
    "Message",
    "Preference",
    "Prompt",
    "PromptRow",
    "asked_by",
    "batch_indices",
    "describe",
    "encode_each",
    "encode_pair",
    "encode_preferences",
    "encode_prompt",
    "encode_reply",
    "end_of_turn",
    "first_turn",
    "fold_of",
    "has_preferences",
    "joined",
    "load_preferences",
    "load_prompts",
    "pad_texts",
    "parse_transcript",
    "preference_accuracy",
    "prompt_ids",
    "ranked_right",
    "split_by_first_turn",
    "spread",
    "unseen",
]
