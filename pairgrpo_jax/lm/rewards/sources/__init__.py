"""Where preferences come from: one interface, prompts and completions in, rewards or pairs out."""

from pairgrpo_jax.lm.rewards.sources.functions import reward_function
from pairgrpo_jax.lm.rewards.sources.heads import head_source
from pairgrpo_jax.lm.rewards.sources.interface import (
    CallError,
    ErrorPolicy,
    Judgement,
    Source,
    SourceError,
    UnfitError,
    columns_of,
    compares,
    judged,
    readable,
)
from pairgrpo_jax.lm.rewards.sources.judges import dataset_labels, judge

__all__ = [
    "CallError",
    "ErrorPolicy",
    "Judgement",
    "Source",
    "SourceError",
    "UnfitError",
    "columns_of",
    "compares",
    "dataset_labels",
    "head_source",
    "judge",
    "judged",
    "readable",
    "reward_function",
]
