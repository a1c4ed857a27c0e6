#!/usr/bin/env bash
# skrl's learning-rate schedulers in JAX compound: optax.constant_schedule(1e-4) over a learning rate of 1e-4 is 1e-36 after one rollout.
# Guess: cfg.learning_rate_scheduler takes optax schedules. A schedule is the learning rate itself, as in optax, or at least a factor on the
#   configured one: linear_schedule(1, 0.5, T) ends at half of it.
# Truth (skrl 2.1.1, jax 0.10.2): after every epoch of an update the rate is multiplied by the schedule's value, and keeps the product. With 8
#   epochs a constant of 1e-4 takes 32 powers of ten in the first rollout, and float32 weights never move again. A factor compounds too:
#   from 1 to 0.5 over a run of 100 rollouts of 8 epochs multiplies the rate by 1e-108. Only the constant 1 leaves the rate alone. So does
#   KLAdaptiveLR, which returns the rate itself. The first epoch is trained with the configured rate, so that the first losses look
#   right. By the source RPO has the same line, and A2C, CEM, DQN, DDQN, DDPG, TD3 and SAC multiply once an update or gradient step. No warning.
# Who: PPO and others in skrl's JAX backend with any schedule of optax's: the policy stays where its first rollouts left it, "the
#   decay hurts", and a comparison with PyTorch, where schedulers are torch's own, is one of two different rates.
# Seen with PPO, 8 epochs a rollout, 6 rollouts: constant_schedule(1e-4) leaves 1e-36, 1e-68, ... 1e-196, and the weights move in the first
#   rollout alone; linear_schedule(1, 0.5) over these 6 leaves 3e-12; without a schedule the rate is 1e-4.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile skrl==2.1.1 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 gymnasium==1.3.0 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import logging
import flax.linen as nn, gymnasium, jax, jax.numpy as jnp, numpy as np, optax
from skrl.agents.jax.ppo import PPO, PPO_CFG
from skrl.memories.jax import RandomMemory
from skrl.models.jax import DeterministicMixin, GaussianMixin, Model
logging.getLogger("skrl").setLevel(logging.ERROR)
print("skrl", version("skrl"), "jax", jax.__version__)
ROLLOUT, EPOCHS, RATE, ROLLOUTS = 16, 8, 1e-4, 6
spaces = dict(observation_space=gymnasium.spaces.Box(-1, 1, (3,)), action_space=gymnasium.spaces.Box(-1, 1, (1,)))

class Policy(GaussianMixin, Model):
    def __init__(self, **kwargs):
        Model.__init__(self, **kwargs)
        GaussianMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        return nn.Dense(1)(inputs["observations"]), {"log_std": self.param("log_std", lambda _: jnp.zeros(1))}

class Value(DeterministicMixin, Model):
    def __init__(self, **kwargs):
        Model.__init__(self, **kwargs)
        DeterministicMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        return nn.Dense(1)(inputs["observations"]), {}

def train(name, schedule=None, **kwargs):
    """The rate after each rollout, and by how much the policy's weights move in it."""
    models = {"policy": Policy(**spaces), "value": Value(**spaces)}
    for i, (role, model) in enumerate(models.items()):
        model.init_state_dict(role=role, key=jax.random.key(i))
    cfg = PPO_CFG(rollouts=ROLLOUT, learning_epochs=EPOCHS, mini_batches=1, learning_rate=RATE)
    if schedule is not None:
        cfg = PPO_CFG(rollouts=ROLLOUT, learning_epochs=EPOCHS, mini_batches=1, learning_rate=RATE, learning_rate_scheduler=schedule,
            learning_rate_scheduler_kwargs=kwargs)
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    agent = PPO(models=models, memory=RandomMemory(memory_size=ROLLOUT, num_envs=1), cfg=cfg, **spaces)
    agent.init()
    agent.enable_training_mode(True)
    rng, rates, moved = np.random.default_rng(0), [], []
    leaves = lambda: [np.array(x) for x in jax.tree.leaves(models["policy"].state_dict.params)]
    for rollout in range(ROLLOUTS):
        before = leaves()
        for t in range(rollout * ROLLOUT, (rollout + 1) * ROLLOUT):
            now, then = (jnp.asarray(rng.normal(size=(1, 3)), jnp.float32) for _ in range(2))
            actions, _ = agent.act(now, None, timestep=t, timesteps=ROLLOUT * ROLLOUTS)
            agent.record_transition(observations=now, states=None, actions=actions, rewards=jnp.asarray(rng.normal(size=(1, 1)), jnp.float32),
                next_observations=then, next_states=None, terminated=jnp.zeros((1, 1), jnp.int8), truncated=jnp.zeros((1, 1), jnp.int8),
                infos={}, timestep=t, timesteps=ROLLOUT * ROLLOUTS)
            agent.post_interaction(timestep=t, timesteps=ROLLOUT * ROLLOUTS)
        rates.append(float(agent.policy_learning_rate))
        moved.append(max(float(np.abs(a - b).max()) for a, b in zip(before, leaves(), strict=True)))
    print(f"{name:28s} rate after each rollout", *(f"{x:.1e}" for x in rates), "  weights moved by", *(f"{x:.0e}" for x in moved))
    return np.array(rates), np.array(moved)

steps = ROLLOUT * ROLLOUTS
rates, moved = train("no schedule")
assert (rates == RATE).all() and (moved > 1e-4).all()
rates, moved = train("constant_schedule(1e-4)", optax.constant_schedule, value=RATE)
assert rates[0] < 1e-35 and 1e-5 < moved[0] < 2e-4 and (moved[1:] == 0).all(), (rates, moved)
rates, moved = train("linear_schedule(1, 0.5)", optax.linear_schedule, init_value=1.0, end_value=0.5, transition_steps=steps)
assert rates[-1] < RATE * 1e-4, rates
rates, moved = train("constant_schedule(1)", optax.constant_schedule, value=1.0)
assert (rates == RATE).all()
EOP
