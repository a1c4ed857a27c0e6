"""Training state, compiled updates and checkpoints, for any model."""

from pairgrpo_jax.training.state import TrainState
from pairgrpo_jax.training.update import NonFiniteError, check_finite, make_update_step

__all__ = ["NonFiniteError", "TrainState", "check_finite", "make_update_step"]
