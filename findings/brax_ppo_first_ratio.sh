#!/usr/bin/env bash
# brax's PPO with normalised observations: the ratio is not 1 where it must be, before the policy has been updated at all.
# Guess: in the first minibatch after a rollout the policy is still the one that acted, so new and old log-probability are equal: ratio 1,
#   nothing clipped, KL 0. With learning_rate=0 that holds in every minibatch of the whole run.
# Truth (brax 0.14.2, jax 0.9.2, as its PPO calls jax.device_put_replicated, which jax 0.10 no longer has): with normalize_observations=True
#   the old log-probabilities are those of the statistics before the rollout, and the new ones of the statistics with that rollout in them.
#   The first rollout is met with mean 0 and deviation 1, its update with the data's own: another policy, and most of the batch is outside
#   the clip range. Later rollouts move the statistics less. learning_rate_schedule="ADAPTIVE_KL" alone has them wait until after
#   the update; the source keeps the old order for the rest, for compatibility. No warning: training/kl_mean shows it to who expects 0.
# Who: comparisons with brax's PPO on HalfCheetah (velocities are far from deviation 1), above all where the statistics start anew under a
#   policy that is kept: its first updates are clipped away or follow a wrong ratio. A logged KL, a KL target or an early
#   stop measures the normaliser. In code of one's own: the statistics last, after the update.
# Known: the same was changed in rsl_rl (pull request 225) and rl_games (371).
# Seen: outside 0.7..1.3 in iteration 1: 90% (with brax's training/kl_mean at 1.45, the mean of 8 iterations); with ADAPTIVE_KL 0%.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q brax==0.14.2 jax==0.9.2 jaxlib==0.9.2 flax==0.12.6 mujoco==4.0.0 mujoco-mjx==3.17.0 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np
from brax.envs.base import Env, State
from brax.training.agents.ppo import losses, train as ppo
print("brax", version("brax"), "jax", jax.__version__)

class Noise(Env):
    """17 observations of mean 1 and deviations from 0.1 to 10, as positions and velocities have; the reward does not matter."""
    observation_size, action_size, backend = 17, 6, "none"
    def _seen(self, rng):
        return 1 + jnp.logspace(-1, 1, 17) * jax.random.normal(rng, (17,))

    def reset(self, rng):
        zero = jnp.zeros(())
        return State(None, self._seen(rng), zero, zero, {}, {"key": rng})

    def step(self, state, action):
        key = jax.random.fold_in(state.info["key"], 1)
        info = state.info | {"key": key}
        return state.replace(obs=self._seen(key), reward=-jnp.sum(action**2), info=info)

plain_loss, ratios = losses.compute_ppo_loss, []
def watched(params, normalizer_params, data, rng, ppo_network, **rest):
    """brax's own loss, which also writes down the share of the batch that its clip range leaves out."""
    logits = ppo_network.policy_network.apply(normalizer_params, params.policy, data.observation)
    extras = data.extras["policy_extras"]
    new = ppo_network.parametric_action_distribution.log_prob(logits, extras["raw_action"])
    outside = jnp.mean(jnp.abs(jnp.exp(new - extras["log_prob"]) - 1) > rest["clipping_epsilon"])
    jax.debug.callback(lambda x: ratios.append(float(x)), outside, ordered=False)
    return plain_loss(params, normalizer_params, data, rng, ppo_network, **rest)
losses.compute_ppo_loss = watched

def run(iterations, **how):
    """Trains with learning rate 0; the share outside the clip range by iteration, and the KL that brax reports."""
    ratios.clear()
    _, _, said = ppo.train(Noise(), num_timesteps=iterations * 320, num_envs=32, episode_length=50, unroll_length=10, batch_size=32,
        num_minibatches=1, num_updates_per_batch=1, num_evals=1, run_evals=False, learning_rate=0.0, seed=0, **how)
    jax.effects_barrier()
    kl = float(said["training/kl_mean"]) if "training/kl_mean" in said else float("nan")
    shares = np.array(ratios[-iterations:])
    print(how or "no normalisation", "outside the clip range:", shares.round(2), "training/kl_mean", round(kl, 4))
    return shares, kl

shares, kl = run(8, normalize_observations=True)
assert len(shares) == 8 and shares[0] > 0.5 and shares[1:].max() < shares[0] / 2 and kl > 0.1, (shares, kl)
shares, kl = run(8, normalize_observations=True, learning_rate_schedule="ADAPTIVE_KL")
assert len(shares) == 8 and shares.max() == 0 and kl < 0.01, (shares, kl)
EOP
