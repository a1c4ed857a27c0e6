"""Continuous control: environments that fork, a Gaussian policy, and one training loop for every method."""

from pairgrpo_jax.control.config import ControlConfig
from pairgrpo_jax.control.env import ENV_NAMES, Env, EnvState, fork, make_env
from pairgrpo_jax.control.presets import tuned
from pairgrpo_jax.control.trainer import Trainer, make_trainer

__all__ = ["ENV_NAMES", "ControlConfig", "Env", "EnvState", "Trainer", "fork", "make_env", "make_trainer", "tuned"]
