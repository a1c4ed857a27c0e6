"""The Pair-GRPO family in JAX: pure losses, compiled updates, HalfCheetah and language models."""

from pairgrpo_jax.core import *  # noqa: F403
from pairgrpo_jax.core import __all__ as _core_names
from pairgrpo_jax.training import NonFiniteError, TrainState, check_finite, make_update_step

__version__ = "0.1.0"
__all__ = [*_core_names, "NonFiniteError", "TrainState", "__version__", "check_finite", "make_update_step"]
