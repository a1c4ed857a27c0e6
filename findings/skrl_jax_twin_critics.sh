#!/usr/bin/env bash
# The two critics of skrl's SAC in JAX are one critic twice, and all its policy updates use one and the same draw of noise.
# Guess: init_state_dict for "critic_1" and "critic_2" gives two networks with different random weights, so that min(Q1, Q2) is pessimistic; and
#   every update of the policy samples new actions.
# Truth (skrl 2.1.1, jax 0.10.2, flax 0.12.8): without a key of its own init_state_dict takes config.jax.key, which never changes: equal networks get
#   equal weights, and init_parameters, which skrl's examples for JAX call next, uses that key again. Targets and batches are shared, so
#   the twins stay equal bit for bit and the minimum is Q1. (Networks for roles of one shape are equal in every agent of skrl's in JAX.) The key
#   of the policy's noise counts calls in Python: inside the compiled policy update it is counted while tracing, and the noise is a constant
#   of the program. Row i of the batch gets the same noise in every update (but for a first one, which is traced apart). No warning.
# Who: SAC (and, for the critics, TD3) with skrl's JAX backend, and comparisons of it with its PyTorch backend: no defence against
#   overestimation, "Q1" and "Q2" in the log are one curve, and the entropy that tunes the temperature is that of 64 fixed numbers. Pass
#   key= to init_state_dict, one for each role.
# Seen after 20 updates: largest difference of the critics' weights 0.000, though they had moved; different noises in updates 2 to 20: 1.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q skrl==2.1.1 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 gymnasium==1.3.0 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import logging
import flax.linen as nn, gymnasium, jax, jax.numpy as jnp, numpy as np
from skrl.agents.jax.sac import SAC, SAC_CFG
from skrl.memories.jax import RandomMemory
from skrl.models.jax import DeterministicMixin, GaussianMixin, Model
from skrl.utils import set_seed
logging.getLogger("skrl").setLevel(logging.ERROR)
print("skrl", version("skrl"), "jax", jax.__version__, "flax", version("flax"))
observations, actions = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Box(-1, 1, (1,))
STORED, UPDATES, seen = 5.0, 20, []

class Policy(GaussianMixin, Model):
    """Mean 0 and deviation 1 everywhere (and a learning rate of 0 below): its actions are the noise itself."""
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        mean = nn.Dense(1, kernel_init=nn.initializers.zeros)(inputs["observations"])
        return mean, {"log_std": self.param("log_std", lambda _: jnp.zeros(1))}

class Critic(DeterministicMixin, Model):
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        if role == "critic_1":
            jax.debug.callback(lambda x: seen.append(np.array(x).ravel()), inputs["taken_actions"])
        x = jnp.concatenate([inputs["observations"], inputs["taken_actions"]], -1)
        return nn.Dense(1)(nn.relu(nn.Dense(32)(x))), {}

set_seed(3)
spaces = dict(observation_space=observations, action_space=actions)
models = {"policy": Policy(**spaces)} | {role: Critic(**spaces) for role in ("critic_1", "critic_2", "target_critic_1", "target_critic_2")}

def gap(a="critic_1", b="critic_2"):
    pair = [jax.tree.leaves(models[x].state_dict.params if isinstance(x, str) else x) for x in (a, b)]
    return max(float(jnp.abs(x - y).max()) for x, y in zip(*pair, strict=True))

for i, (role, model) in enumerate(models.items()):
    model.init_state_dict(role=role, key=jax.random.key(i))
keyed = gap()
for role, model in models.items():
    model.init_state_dict(role=role)
plain = gap()
for role in ("critic_1", "critic_2"):
    models[role].init_parameters(method_name="normal", stddev=0.1)
again = gap()
print(f"critics differ by {keyed:.3f} with keys of their own, by {plain:.3f} without, by {again:.3f} after init_parameters")
assert keyed > 0.1 and plain == 0 and again == 0

cfg = SAC_CFG(batch_size=8, learning_starts=0, learning_rate=(0.0, 1e-3, 0.0))
cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
agent = SAC(models=models, memory=RandomMemory(memory_size=50, num_envs=1), cfg=cfg, **spaces)
agent.init()
agent.enable_training_mode(True)
rng, flag = np.random.default_rng(0), jnp.zeros((1, 1), jnp.int8)
for t in range(50):
    now, then, reward = (jnp.asarray(rng.normal(size=(1, n)), jnp.float32) for n in (3, 3, 1))
    agent.record_transition(observations=now, states=None, actions=jnp.full((1, 1), STORED), rewards=reward, next_observations=then, next_states=None,
        terminated=flag, truncated=flag, infos={}, timestep=t, timesteps=50)
start = models["critic_1"].state_dict.params
seen.clear()
for t in range(UPDATES):
    agent.update(timestep=t, timesteps=UPDATES)
jax.effects_barrier()
noise = [x for x in seen if not (x == STORED).all()]  # the critic's own update sees the stored actions, the policy's the sampled ones
different = len({tuple(x) for x in noise[1:]})
moved = gap(start, models["critic_1"].state_dict.params)
print(f"after {UPDATES} updates the critics differ by {gap():.3f} and have moved by {moved:.3f}; different noises in updates 2 to {len(noise)}: {different}")
print("update 2 ", noise[1][:5], "\nupdate", len(noise), noise[-1][:5])
assert gap() == 0 and moved > 0.001 and len(noise) == UPDATES and different == 1, (gap(), moved, len(noise), different)
EOP
