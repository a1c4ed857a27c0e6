"""Alignment of language models with every method of the family: one state, one loop, batches as pytrees."""

from pairgrpo_jax.lm.alignment.batch import (
    Batch,
    EncodedPrompt,
    PromptStream,
    encode_pairs,
    encode_prompts,
    pair_batch,
)
from pairgrpo_jax.lm.alignment.config import Adapters, AlignConfig, AlignOptimizer, Critic, Reference, Samples, Texts
from pairgrpo_jax.lm.alignment.data import Data
from pairgrpo_jax.lm.alignment.objectives import objective
from pairgrpo_jax.lm.alignment.parameters import Placement, merged, policy_of
from pairgrpo_jax.lm.alignment.presets import tuned, tuned_for_sums
from pairgrpo_jax.lm.alignment.trainer import Trainer, make_trainer
from pairgrpo_jax.lm.alignment.updates import make_loss, make_optimizer
from pairgrpo_jax.lm.data import EncodedPair

__all__ = [
    "Adapters",
    "AlignConfig",
    "AlignOptimizer",
    "Batch",
    "Critic",
    "Data",
    "EncodedPair",
    "EncodedPrompt",
    "Placement",
    "PromptStream",
    "Reference",
    "Samples",
    "Texts",
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
    "tuned_for_sums",
]
