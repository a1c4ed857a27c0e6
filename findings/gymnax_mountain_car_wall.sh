#!/usr/bin/env bash
# gymnax's MountainCarContinuous is another task than gymnasium's: the left wall does not stop the car, and rolling back from the goal wins.
# Guess: "MountainCarContinuous-v0" is gymnasium's, to float32's precision, as gymnax's CartPole, Pendulum, Acrobot and MountainCar are.
# Truth (gymnax 1.0.1, gymnasium 1.3.0): gymnasium sets a negative velocity to 0 at the left wall. gymnax does that at the goal instead. At the
#   left wall the position is cut off and the velocity stays: with full throttle to the right the car stands at -1.2 for a dozen steps, until
#   it has "braked", and a policy that pushes the way the velocity points, which is nearly the best there is, holds itself against the wall.
#   To the right of the goal a car that rolls backwards has its velocity set to 0, which is not below the goal velocity of 0, and gets the 100
#   and the end that gymnasium refuses. The observation shows the false velocity, and nothing else tells; each step elsewhere is the same.
# Who: scores on it beside published ones for gymnasium (or for code on gymnasium), and a policy taken from one to the other;
#   it is the one classic task of gymnax's with continuous actions and a sparse reward, so it is the one that exploration is measured on.
# Seen, steps to the goal from starts at -0.60, -0.55, ... -0.40 for the policy that pushes the way it moves: gymnax 193, 179, 169, 161, 153;
#   gymnasium 111, 107, 106, 105, 105. Full throttle after the wall was hit at -0.05: 13 steps at the wall against 1. At 0.5, rolling back
#   with -0.01: reward 100 and the end against 0 and no end. 300 random steps away from wall and goal: equal to 6e-08.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6 gymnasium==1.3.0 six==1.17.0
"$tmp/v/bin/pip" install -q --no-compile --no-deps gymnax==1.0.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import sys
from unittest.mock import MagicMock
sys.modules |= {name: MagicMock() for name in ("matplotlib", "matplotlib.pyplot", "seaborn")}  # gymnax draws with them, and only draws
import gymnasium, gymnax, jax, jax.numpy as jnp, numpy as np
from gymnax.environments.classic_control import continuous_mountain_car as module
print("gymnax", version("gymnax"), "gymnasium", version("gymnasium"), "jax", jax.__version__)
NAME, LIMIT = "MountainCarContinuous-v0", 999
env, params = gymnax.make(NAME)
other = gymnasium.make(NAME).unwrapped
other.reset(seed=0)
jitted = jax.jit(env.step_env)

class Gymnax:
    def start(self, position, velocity=0.0):
        self.state = module.EnvState(time=0, position=jnp.float32(position), velocity=jnp.float32(velocity))
        return np.array([position, velocity], np.float32)

    def step(self, action):
        observation, self.state, reward, done, _ = jitted(jax.random.key(0), self.state, jnp.array([action], jnp.float32), params)
        return np.asarray(observation), float(reward), bool(done)

class Gymnasium:
    def start(self, position, velocity=0.0):
        other.state = np.array([position, velocity], np.float32)
        return other.state

    def step(self, action):
        observation, reward, done, _, _ = other.step(np.array([action], np.float32))
        return observation, float(reward), bool(done)

def to_the_goal(task, start):
    """Steps to the goal for the policy that pushes the way the car moves."""
    observation = task.start(start)
    for i in range(LIMIT):
        observation, _, done = task.step(1.0 if observation[1] >= 0 else -1.0)
        if done:
            return i + 1
    return LIMIT

tasks = {"gymnax": Gymnax(), "gymnasium": Gymnasium()}
random = np.random.default_rng(0)
gap = 0.0
for _ in range(300):  # away from the wall and the goal they agree
    at, action = (random.uniform(-1.1, 0.35), random.uniform(-0.07, 0.07)), random.uniform(-1.5, 1.5)
    a, b = ([task.start(*at), task.step(action)][1] for task in tasks.values())
    gap = max(gap, np.abs(a[0] - b[0]).max(), abs(a[1] - b[1]))
    assert a[2] == b[2]
print(f"300 steps away from wall and goal: largest difference {gap:.1e}")
assert gap < 1e-5
wall, back, steps = {}, {}, {}
for name, task in tasks.items():
    task.start(-1.19, -0.05)
    path = [task.step(1.0)[0] for _ in range(30)]
    wall[name] = sum(bool(x[0] <= -1.1999) for x in path)
    print(f"{name:9s} full throttle after the wall is hit at -0.05: velocity next {path[0][1]:.3f}, steps at the wall {wall[name]}")
    task.start(0.5, -0.01)
    back[name] = task.step(0.0)
    print(f"{name:9s} rolling back at 0.5 with -0.01: reward {back[name][1]:.0f}, end {back[name][2]}")
    steps[name] = [to_the_goal(task, start) for start in np.linspace(-0.6, -0.4, 5)]
    print(f"{name:9s} steps to the goal, pushing the way it moves, from five starts", *steps[name])
assert wall["gymnax"] > 8 and wall["gymnasium"] == 1, wall
assert back["gymnax"][1:] == (100.0, True) and back["gymnasium"][1:] == (0.0, False), back
assert all(a > 1.3 * b for a, b in zip(steps["gymnax"], steps["gymnasium"], strict=True)), steps
EOP
