"""Flax ports of causal language models and how they run: decode, sample, generate, score, adapt, shard."""
