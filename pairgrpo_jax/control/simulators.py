"""HalfCheetah simulators by name; each is imported when it is asked for."""

from __future__ import annotations

from pairgrpo_jax.control.env import Env

BRAX_BACKENDS = ("spring", "positional", "generalized", "mjx")
ENV_NAMES = ("mujoco", *(f"brax:{backend}" for backend in BRAX_BACKENDS))


def make_env(name: str, **options) -> Env:
    """Builds a HalfCheetah simulator by name.

    Args:
      name: "mujoco" (the exact HalfCheetah-v4/v5, on the CPU) or "brax:spring", "brax:positional", "brax:generalized",
        "brax:mjx" (inside XLA, for GPU and TPU; similar to HalfCheetah-v4 but not the same task).
      **options: for "mujoco", `threads`.

    Raises:
      ValueError: for an unknown name.
    """
    if name == "mujoco":
        from pairgrpo_jax.control.mujoco_env import MujocoHalfCheetah

        return MujocoHalfCheetah(**options)
    if name in ENV_NAMES:
        from pairgrpo_jax.control.brax_env import BraxHalfCheetah

        return BraxHalfCheetah(name.split(":")[1], **options)
    raise ValueError(f"env={name!r} is unknown; choose one of {', '.join(ENV_NAMES)}")
