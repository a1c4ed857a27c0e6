#!/usr/bin/env bash
# skrl's entropy_loss_scale does nothing for discrete policies in JAX: PPO with 0 and with 100 ends at the same weights, bit for bit.
# Guess: PPO_CFG(entropy_loss_scale=...) adds the entropy bonus for a CategoricalMixin policy, as for a Gaussian one: with 100 the policy
#   stays near uniform, whatever the advantages are.
# Truth (skrl 2.1.1, jax 0.10.2): the loss asks the policy for the entropy of outputs["stddev"]. A discrete policy has no deviation, and its
#   act() puts an array of NaN there: a constant, whose entropy is NaN and has no gradient. The sum of the losses is NaN, which is not what
#   is logged as policy loss, and the gradient is exactly that of the policy loss alone. The only sign is "Loss / Entropy loss" = nan
#   in the log. By the source the same holds for multi-discrete policies, and for A2C, RPO, IPPO and MAPPO.
# Who: discrete tasks with skrl's JAX backend: sweeps over the entropy scale compare equal runs, and a policy that collapses does so with
#   any of them.
# Seen, entropy after 2 rollouts that reward one of 4 actions, log 4 = 1.386 at the start: 0.870 with scale 0 and with scale 100.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q skrl==2.1.1 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 gymnasium==1.3.0 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import logging
import flax.linen as nn, gymnasium, jax, jax.numpy as jnp, numpy as np
from skrl.agents.jax.ppo import PPO, PPO_CFG
from skrl.memories.jax import RandomMemory
from skrl.models.jax import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
from skrl.utils import set_seed
logging.getLogger("skrl").setLevel(logging.ERROR)
print("skrl", version("skrl"), "jax", jax.__version__)
observations, ROLLOUT, ENVIRONMENTS = gymnasium.spaces.Box(-1, 1, (3,)), 8, 16
discrete, box = gymnasium.spaces.Discrete(4), gymnasium.spaces.Box(-1, 1, (1,))

class Discrete(CategoricalMixin, Model):
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        return nn.Dense(4, kernel_init=nn.initializers.zeros)(inputs["observations"]), {}

class Gaussian(GaussianMixin, Model):
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        mean = nn.Dense(1, kernel_init=nn.initializers.zeros)(inputs["observations"])
        return mean, {"log_std": self.param("log_std", lambda _: jnp.zeros(1))}

class Value(DeterministicMixin, Model):
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        return nn.Dense(1)(inputs["observations"]), {}

def run(kind, scale, rollouts=2):
    """PPO on a task that pays the action 0 (or actions near 0): the policy's weights and its entropy at the end."""
    set_seed(3)
    np.random.seed(3)
    spaces = dict(observation_space=observations, action_space=discrete if kind is Discrete else box)
    models = {"policy": kind(**spaces), "value": Value(**spaces)}
    for role, model in models.items():
        model.init_state_dict(role=role)
    cfg = PPO_CFG(rollouts=ROLLOUT, entropy_loss_scale=scale, learning_rate=5e-2)
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    agent = PPO(models=models, memory=RandomMemory(memory_size=ROLLOUT, num_envs=ENVIRONMENTS), cfg=cfg, **spaces)
    agent.init()
    agent.enable_training_mode(True)
    rng, flag, steps, losses = np.random.default_rng(0), jnp.zeros((ENVIRONMENTS, 1), jnp.int8), rollouts * ROLLOUT, []
    agent.track_data = lambda tag, value: losses.append(value) if tag == "Loss / Entropy loss" else None
    for t in range(steps):
        now = jnp.asarray(rng.uniform(-1, 1, (ENVIRONMENTS, 3)), jnp.float32)
        taken, _ = agent.act(now, None, timestep=t, timesteps=steps)
        reward = (jnp.abs(taken) < 0.5).astype(jnp.float32)
        agent.record_transition(observations=now, states=None, actions=taken, rewards=reward, next_observations=now, next_states=None,
            terminated=flag + 1, truncated=flag, infos={}, timestep=t, timesteps=steps)
        agent.post_interaction(timestep=t, timesteps=steps)
    params = models["policy"].state_dict.params["params"]
    if kind is Discrete:
        p = jax.nn.log_softmax(jnp.zeros((1, 3)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
        entropy = float(-(jnp.exp(p) * p).sum())
    else:
        entropy = float(params["log_std"][0]) + 0.5 * float(np.log(2 * np.pi * np.e))
    print(f"{kind.__name__:8s} entropy_loss_scale {scale:5.1f}: entropy at the end {entropy:.3f}, last logged entropy loss", losses[-1:] or "none")
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]), entropy, losses

none, entropy, _ = run(Discrete, 0.0)
assert entropy < np.log(4) - 0.2
for scale in (100.0,):
    weights, _, losses = run(Discrete, scale)
    assert (weights == none).all() and np.isnan(losses).all() and losses, scale
(_, small, _), (_, large, losses) = run(Gaussian, 0.0), run(Gaussian, 100.0)  # where it works
assert large > small + 0.2 and np.isfinite(losses).all(), (small, large)
EOP
