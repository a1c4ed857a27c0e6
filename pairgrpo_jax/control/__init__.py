"""Continuous control: environments that fork, a Gaussian policy, and one training loop for every method."""

try:
    from pairgrpo_jax.control.config import Collection, ControlConfig, ControlOptimizer, Network
    from pairgrpo_jax.control.env import Env, EnvState, fork
    from pairgrpo_jax.control.presets import tuned
    from pairgrpo_jax.control.simulators import ENV_NAMES, make_env
    from pairgrpo_jax.control.trainer import Trainer, make_trainer
except ModuleNotFoundError as error:
    what = f"{error}: control needs the control extra, pip install 'pairgrpo-jax[control]'"
    raise ModuleNotFoundError(what, name=error.name) from error

__all__ = [
    "ENV_NAMES",
    "Collection",
    "ControlConfig",
    "ControlOptimizer",
    "Env",
    "EnvState",
    "Network",
    "Trainer",
    "fork",
    "make_env",
    "make_trainer",
    "tuned",
]
