#!/usr/bin/env bash
# NAVIX's PPO discounts by gamma to the power of the clock: a goal 100 steps into an episode is worth nothing at its start.
# Guess: the advantages are GAE with discount gamma = 0.99 at every step, 0 at an episode's end: a reward of 1 at the hundredth step is
#   0.99**99 = 0.37 at the first (with lambda = 1), and what a state is worth depends on the way that is left, not on the clock.
# Truth (navix 0.7.4): the discount of a step is env.gamma ** t, with t the step's number in its episode: 1 for the first, 0.99 for the second,
#   0.37 for the hundredth. Multiplied along the way to the hundredth that is 0.99 ** 4851. Early steps are not discounted at all, late
#   ones look two or three steps ahead, and one state has another target at each hour, which a network that does not see the clock must
#   average. Only episodes of a few steps are as expected, such as those of a trained agent in a small room. The first step after
#   an episode's end only resets, whatever the action is (its reward is 0), and is trained on like any other. No warning.
# Who: papers that take NAVIX's PPO as their baseline, or its scores: where an agent wanders first, only the last steps before the goal
#   learn from it, "sparse reward" is blamed, and tuning gamma or lambda tunes this. An agent of one's own on NAVIX is not concerned.
# Seen, target of the value at the start of an episode with a reward of 1 at its last step, values 0, lambda 1: of 10 steps 0.70 (GAE 0.91), of
#   50 steps 7.4e-06 (0.61), of 100 steps 6.7e-22 (0.37). (100 is the limit of its environments.) Ten steps before a goal at
#   step 100: 0.0002, where the last ten steps of a ten-step episode have 0.70 (GAE 0.91 for both).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 numpy==2.4.6 rlax==0.1.9 distrax==0.1.9 chex==0.1.92 \
    tfp-nightly==0.26.0.dev20261027 setuptools==84.2.1 pillow==13.0.0
"$tmp/v/bin/pip" install -q --no-compile --no-deps navix==0.7.4
mkdir "$tmp/wandb"; touch "$tmp/wandb/__init__.py" "$tmp/wandb/util.py"  # navix imports wandb, and needs it for its logs only
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np
import navix
from navix.agents import PPO, ActorCritic, PPOHparams
print("navix", version("navix"), "jax", jax.__version__)
env = navix.make("Navix-Empty-16x16-v0", gamma=0.99)
print("gamma", env.gamma, "max_steps", env.max_steps)

def targets(length, lambda_, start=0):
    """PPO's own evaluation of one episode with a reward of 1 at its end and values of 0: the target of the value at each step."""
    agent = PPO(PPOHparams(gae_lambda=lambda_), ActorCritic(env.action_space.maximum.item() + 1), env)
    clock = jnp.arange(start, start + length)[:, None]
    last = (clock == clock[-1]).astype(jnp.float32)
    episode = SimpleNamespace(obs=jnp.zeros((length, 1, 1)), done=last, reward=last, t=clock)
    state = SimpleNamespace(params=None, value_fn=lambda params, observations: jnp.zeros(observations.shape[0]))
    return np.asarray(agent.evaluate_experience(state, episode, jnp.zeros(1))[2])[:, 0]

for length in (10, 50, 100):
    for lambda_ in (1.0, 0.95):
        found, gae = targets(length, lambda_)[0], (0.99 * lambda_) ** (length - 1)
        print(f"{length:4d} steps, lambda {lambda_}: target at the start {found:.2g}, GAE {gae:.2g}")
        clock = np.prod([lambda_ * 0.99 ** t for t in range(length - 1)])
        assert np.isclose(found, clock, rtol=1e-3, atol=1e-30), (found, clock)
assert targets(100, 1.0)[0] < 1e-20 and targets(10, 1.0)[0] > 0.6
early, late = targets(10, 1.0)[0], targets(10, 1.0, start=90)[0]
print(f"ten steps before the goal: {early:.2g} at the start of an episode, {late:.2g} after 90 steps")
assert early > 0.6 and late < 1e-3

# the buffer holds t as the environment counts it, and the step that only resets
step = jax.jit(env.step)
timestep = env.reset(jax.random.key(0)).replace(t=jnp.asarray(env.max_steps - 1))
timestep = step(timestep, 2)
assert int(timestep.step_type) == 1 and int(timestep.t) == env.max_steps
before, timestep = timestep, step(timestep, 2)
print(f"clock at the last step {int(before.t)}, after the next action {int(timestep.t)}, its reward {float(timestep.reward)}")
assert int(timestep.t) == 0 and float(timestep.reward) == 0
EOP
