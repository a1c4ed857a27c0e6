"""Alignment of language models with every method of the family: one state, one loop, batches as pytrees."""

from pairgrpo_jax.lm.alignment.batch import (
    Batch,
    EncodedPrompt,
    encode_pairs,
    encode_prompts,
    pair_batch,
)
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.alignment.objectives import objective
from pairgrpo_jax.lm.alignment.parameters import Placement, merged, policy_of
from pairgrpo_jax.lm.alignment.presets import tuned
from pairgrpo_jax.lm.alignment.trainer import Data, Trainer, make_loss, make_optimizer, make_trainer
from pairgrpo_jax.lm.data import EncodedPair

__all__ = [
    "AlignConfig",
    "Batch",
    "Data",
    "EncodedPair",
    "EncodedPrompt",
    "Placement",
    "Trainer",
    "encode_pairs",
    "encode_prompts",
    "make_loss",
    "make_optimizer",
    "make_trainer",
    "merged",
    "objective",
    "pair_batch",
    "policy_of",
    "tuned",
]
