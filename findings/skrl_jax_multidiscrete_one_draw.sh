#!/usr/bin/env bash
# skrl's multi-discrete policy in JAX draws all its sub-actions with one random key: a uniform policy over 3 x 3 x 3 takes 3 of the 27 actions.
# Guess: MultiCategoricalMixin samples the sub-actions independently, and log_prob is the sum of theirs: log(1/27) for a uniform policy, each
#   joint action in one step of 27.
# Truth (skrl 2.1.1, jax 0.10.2): act() passes the same key to jax.random.categorical for each sub-action. Sub-actions with equally many choices
#   get the same Gumbel noise, so equal logits give equal choices, and different logits choices that are strongly tied; with
#   different numbers of choices they share noise in another order. log_prob is that of independent ones: the policy that acts is not the
#   one whose probability enters PPO's ratio and policy gradient. Each sub-action by itself is distributed as it should be, so a look at
#   the marginals finds nothing. No warning. By the source its PyTorch policy draws each sub-action apart.
# Who: MultiDiscrete spaces (move, turn, shoot; several joysticks; several units) with skrl's JAX backend: a policy starts near uniform and
#   explores the diagonal only, and a reward for two different sub-actions at once is never seen.
# Seen, 9000 actions of a uniform policy: joint actions (0,0,0), (1,1,1), (2,2,2) a third each, log_prob -3.296 = log(1/27). With
#   logits (0, 0.5, 1), (1, 0.5, 0) and (0, 0, 0): 10 of the 27, in total variation 0.567 from what log_prob says.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q skrl==2.1.1 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 gymnasium==1.3.0 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import logging
import flax.linen as nn, gymnasium, jax, jax.numpy as jnp, numpy as np
from skrl.models.jax import Model, MultiCategoricalMixin
from skrl.utils import set_seed
logging.getLogger("skrl").setLevel(logging.ERROR)
print("skrl", version("skrl"), "jax", jax.__version__)
observations, actions, COUNT = gymnasium.spaces.Box(-1, 1, (9,)), gymnasium.spaces.MultiDiscrete([3, 3, 3]), 9000

class Policy(MultiCategoricalMixin, Model):
    """The observation is the logits."""
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        MultiCategoricalMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        return inputs["observations"] * self.param("one", lambda _: jnp.ones(())), {}

def look(name, logits):
    """How often each joint action is taken, and how often it should be if the sub-actions are independent."""
    set_seed(3)
    policy = Policy(observation_space=observations, action_space=actions)
    policy.init_state_dict(role="policy")
    taken, outputs = policy.act({"observations": jnp.tile(jnp.array(logits), (COUNT, 1))}, role="policy")
    taken, said = np.asarray(taken, int), np.exp(np.asarray(outputs["log_prob"], float).ravel())
    sub = [np.exp(x) / np.exp(x).sum() for x in np.array(logits, float).reshape(3, 3)]
    wanted, found = np.einsum("i,j,k->ijk", *sub), np.zeros((3, 3, 3))
    np.add.at(found, tuple(taken.T), 1 / COUNT)
    assert np.allclose(said, wanted[tuple(taken.T)], rtol=1e-4)  # log_prob is the product of the sub-actions' probabilities
    off = max(np.abs(found.sum(other) - p).max() for other, p in zip(((1, 2), (0, 2), (0, 1)), sub))
    distance = 0.5 * np.abs(found - wanted).sum()
    print(f"{name}: joint actions taken {(found > 0).sum()} of 27; a sub-action's own shares are off by {off:.3f}, the joint ones by {distance:.3f} (total variation);",
        "log_prob of the first", round(float(np.log(said[0])), 3), "its share", found[tuple(taken[0])].round(3))
    return (found > 0).sum(), off, distance, found

kinds, off, distance, found = look("uniform", (0.0,) * 9)
assert kinds == 3 and off < 0.03 and distance > 0.85 and all(found[i, i, i] > 0.3 for i in range(3)), (kinds, off, distance)
kinds, off, distance, found = look("different", (0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0))
assert kinds < 27 and off < 0.03 and distance > 0.3, (kinds, off, distance)
EOP
