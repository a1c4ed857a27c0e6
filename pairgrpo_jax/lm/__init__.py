"""Causal language models in Flax: load, score, generate and save real weights."""

from pairgrpo_jax.lm.model import Model, load_model, save_pretrained

__all__ = ["Model", "load_model", "save_pretrained"]
