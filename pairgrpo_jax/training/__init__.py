"""Training state, compiled updates, checkpoints and the loop around them, for any model."""

from pairgrpo_jax.training.checkpoint import CheckpointError, Checkpoints
from pairgrpo_jax.training.loop import Schedule, train
from pairgrpo_jax.training.optimizer import annealed_to
from pairgrpo_jax.training.run import (
    MetricLog,
    NoLog,
    RunFolderError,
    changed_settings,
    open_folder,
    read_metrics,
    require_alike,
    require_free,
    settings,
)
from pairgrpo_jax.training.state import TrainState
from pairgrpo_jax.training.trackers import Relay, Service, Tracker
from pairgrpo_jax.training.update import NonFiniteError, check_finite, make_update_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "MetricLog",
    "NoLog",
    "NonFiniteError",
    "Relay",
    "RunFolderError",
    "Schedule",
    "Service",
    "Tracker",
    "TrainState",
    "annealed_to",
    "changed_settings",
    "check_finite",
    "make_update_step",
    "open_folder",
    "read_metrics",
    "require_alike",
    "require_free",
    "settings",
    "train",
]
