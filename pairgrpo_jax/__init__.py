"""The Pair-GRPO family in JAX: pure losses, compiled updates, HalfCheetah and language models."""
