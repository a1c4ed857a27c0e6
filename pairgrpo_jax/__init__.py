"""The Pair-GRPO family in JAX: pure losses, compiled updates, HalfCheetah and language models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pairgrpo_jax import core, methods, training
    from pairgrpo_jax.core import *  # noqa: F403
    from pairgrpo_jax.training import NonFiniteError, TrainState, check_finite, make_update_step

__version__ = "0.2.0"
_OF_TRAINING = ("NonFiniteError", "TrainState", "check_finite", "make_update_step")


def __getattr__(name: str) -> Any:
    """Names of `core` and `training`, imported when asked for: the command line must not wait for jax."""
    if name == "__all__":
        return [*_OF_TRAINING, "__version__", *importlib.import_module("pairgrpo_jax.core").__all__]
    if name in ("core", "methods", "training", "theory", "control", "lm"):
        return importlib.import_module(f"pairgrpo_jax.{name}")
    if name in _OF_TRAINING:
        return getattr(importlib.import_module("pairgrpo_jax.training"), name)
    core = importlib.import_module("pairgrpo_jax.core")
    if name in core.__all__:
        return getattr(core, name)
    raise AttributeError(f"module 'pairgrpo_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
