"""Causal language models in Flax: load, score, generate and save real weights."""

try:
    from pairgrpo_jax.lm.files.checkpoint import load_model, save_pretrained
    from pairgrpo_jax.lm.models import lora
    from pairgrpo_jax.lm.models.generation import Generation, generate
    from pairgrpo_jax.lm.models.model import Model
    from pairgrpo_jax.lm.models.sampling import Sampling
    from pairgrpo_jax.lm.models.scoring import Policy, Scores, score
except ModuleNotFoundError as error:
    what = f"{error}: language models need the lm extra, pip install -c constraints.txt '.[lm]'"
    raise ModuleNotFoundError(what, name=error.name) from error

__all__ = [
    "Generation",
    "Model",
    "Policy",
    "Sampling",
    "Scores",
    "generate",
    "load_model",
    "lora",
    "save_pretrained",
    "score",
]
