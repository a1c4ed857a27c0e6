"""HalfCheetah-v4/v5, exactly: Gymnasium's model stepped by MuJoCo's C engine, in batches, behind a pure function.

The whole integrator state, warm start included, is part of the environment state, so that a state can be forked,
checkpointed and replayed bit for bit. It is float64, which 32-bit JAX would round: it travels as uint32 pairs.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pairgrpo_jax.control.env import Env, EnvState

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS.value | mujoco.mjtState.mjSTATE_WARMSTART.value
_WITH_CONTROL = _STATE | mujoco.mjtState.mjSTATE_CTRL.value  # the control comes last in MuJoCo's layout
_NOISE = 0.1


class MujocoHalfCheetah(Env):
    """HalfCheetah of Gymnasium, stepped by a pool of threads (MuJoCo releases the GIL)."""

    name = "mujoco"
    observation_size = 17
    action_size = 6
    dt = 0.05
    frame_skip = 5
    episode_length = 1000

    def __init__(self, threads: int | None = None):
        self.model = load_model()
        self.threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.threads)
        self._lock = threading.Lock()  # programs in flight at once share the scratch data
        self._data = [mujoco.MjData(self.model) for _ in range(self.threads)]
        self._size = mujoco.mj_stateSize(self.model, _STATE)
        self._nq = self.model.nq

    def reset(self, key, n):
        """`n` fresh states: qpos uniform in +-0.1 around the rest pose, qvel 0.1 * normal."""
        qpos_key, qvel_key = jax.random.split(key)
        qpos = jax.random.uniform(qpos_key, (n, self.model.nq), minval=-_NOISE, maxval=_NOISE)
        qvel = _NOISE * jax.random.normal(qvel_key, (n, self.model.nv))
        shapes = self._shapes((n,))
        physics, obs = jax.pure_callback(self._start, shapes[:2], qpos, qvel, vmap_method="broadcast_all")
        zeros = jnp.zeros(n, jnp.float32)
        return EnvState(physics, obs, zeros, zeros, jnp.zeros(n, jnp.int32))

    def step(self, state, action):
        """Five physics steps of 0.01 s; reward is forward velocity minus 0.1 |action|^2, as in Gymnasium."""
        shapes = self._shapes(state.reward.shape)
        physics, obs, reward = jax.pure_callback(
            self._advance, shapes, state.physics, action, vmap_method="broadcast_all"
        )
        age = state.age + 1
        return EnvState(physics, obs, reward, (age >= self.episode_length).astype(jnp.float32), age)

    def from_qpos_qvel(self, qpos, qvel) -> EnvState:
        """A batch of states with given float64 `qpos [n,9]` and `qvel [n,9]`, age 0, as after a reset to them."""
        physics, obs = self._start(np.asarray(qpos, np.float64), np.asarray(qvel, np.float64), around_rest=False)
        zeros = jnp.zeros(len(obs), jnp.float32)
        return EnvState(jnp.asarray(physics), jnp.asarray(obs), zeros, zeros, jnp.zeros(len(obs), jnp.int32))

    def qpos_qvel(self, state: EnvState) -> tuple[np.ndarray, np.ndarray]:
        """Float64 positions `[n,9]` and velocities `[n,9]`."""
        physics = np.asarray(state.physics).view(np.float64)
        return physics[..., 1 : 1 + self._nq], physics[..., 1 + self._nq : 1 + self._nq + self.model.nv]

    def qpos(self, state):
        """Positions rounded to float32; `qpos_qvel` has them exactly, outside of compiled code."""
        bits = state.physics[..., 2 : 2 + 2 * self._nq].reshape(*state.physics.shape[:-1], self._nq, 2)
        shape = jax.ShapeDtypeStruct(bits.shape[:-1], jnp.float32)
        return jax.pure_callback(_to_float32, shape, bits, vmap_method="broadcast_all")

    def _shapes(self, batch):
        return (
            jax.ShapeDtypeStruct((*batch, 2 * self._size), jnp.uint32),
            jax.ShapeDtypeStruct((*batch, self.observation_size), jnp.float32),
            jax.ShapeDtypeStruct(batch, jnp.float32),
        )

    def _start(self, qpos, qvel, around_rest=True):
        qpos, qvel = np.asarray(qpos, np.float64), np.asarray(qvel, np.float64)
        batch = qpos.shape[:-1]
        start = np.zeros((*batch, self._size))
        start[..., 1 : 1 + self._nq] = qpos + (self.model.qpos0 if around_rest else 0)
        start[..., 1 + self._nq : 1 + self._nq + self.model.nv] = qvel

        def settle(data, source, target):  # what Gymnasium's reset does after setting the state
            mujoco.mj_setState(self.model, data, source, _STATE)
            mujoco.mj_forward(self.model, data)
            mujoco.mj_getState(self.model, data, target, _STATE)

        after = self._over_threads(settle, start)
        return after.view(np.uint32), self._observe(after)

    def _advance(self, physics, action):
        before = np.asarray(physics).view(np.float64)
        action = np.asarray(action, np.float64)

        def advance(data, source, target):
            mujoco.mj_setState(self.model, data, source, _WITH_CONTROL)
            mujoco.mj_step(self.model, data, self.frame_skip)
            mujoco.mj_getState(self.model, data, target, _STATE)

        after = self._over_threads(advance, np.concatenate([before, action], axis=-1))
        velocity = (after[..., 1] - before[..., 1]) / self.dt
        reward = velocity - 0.1 * np.sum(np.square(action), axis=-1)
        return after.view(np.uint32), self._observe(after), reward.astype(np.float32)

    def _observe(self, physics):
        return physics[..., 2 : 1 + self._nq + self.model.nv].astype(np.float32)

    def _over_threads(self, function, sources):
        """Applies `function(data, source, target)` to every row, a contiguous share per thread."""
        flat = sources.reshape(-1, sources.shape[-1])
        targets = np.empty((len(flat), self._size))

        def work(share):
            data, rows = share
            for row in rows:
                function(data, flat[row], targets[row])

        with self._lock:
            list(self._pool.map(work, zip(self._data, np.array_split(np.arange(len(flat)), self.threads))))
        return targets.reshape(*sources.shape[:-1], self._size)


def _to_float32(bits):
    return np.ascontiguousarray(bits).view(np.float64)[..., 0].astype(np.float32)


def load_model() -> mujoco.MjModel:
    """Gymnasium's own `half_cheetah.xml`, compiled.

    MuJoCo 4 deprecates the file's `settotalmass` with a warning on every load; the call it advises gives the same
    model.
    """
    xml = resources.files("gymnasium").joinpath("envs/mujoco/assets/half_cheetah.xml").read_text()
    model = mujoco.MjModel.from_xml_string(xml.replace('settotalmass="14"', ""))
    mujoco.mj_setTotalmass(model, 14)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model
