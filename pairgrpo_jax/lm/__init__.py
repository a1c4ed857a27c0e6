"""Causal language models in Flax: load, score, generate and save real weights."""

from pairgrpo_jax.lm.generation import Generation, generate
from pairgrpo_jax.lm.model import Model, load_model, save_pretrained

__all__ = ["Generation", "Model", "generate", "load_model", "save_pretrained"]
