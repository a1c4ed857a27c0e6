#!/usr/bin/env bash
# The KL penalty of Tunix's GRPO pulls towards no reference: at its defaults the expected gradient of beta * KL is 0 for a token.
# Guess: beta = 0.04, "prevents policy updates from deviating too far from the reference model", has the gradient of KL(pi || pi_ref), or at
#   least the forward one of k3 that GRPO's paper writes down and TRL and verl take.
# Truth (google-tunix 0.1.7): GRPOConfig has kl_loss_mode="kl", log pi - log pi_ref, which is differentiated as a loss, and num_iterations=1, so
#   that replies are the policy's own. Its expected gradient is that of log pi, in which the reference has no part and which is 0 for a
#   token: with groups that carry no reward the loss reports the right KL (0.99 nats here, replies of one token) and moves nothing but noise. "mse_kl" has the KL's exact gradient, "low_var_kl" (the default of
#   compute_kl_divergence itself, but not of the config) that of the forward KL. The PPO loss has "kl" written into it.
# Who: whoever trains with Tunix and reads `kl` in the log as held by beta, compares libraries at "the same beta", or tunes beta: it adds variance.
# Known: no issue found; that k1 must not be a loss is in verl's docstring of kl_penalty and arXiv 2506.09477.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q google-tunix==0.1.7 jax==0.10.2 flax==0.12.8 numpy==2.4.6 qwix==0.1.8 orbax-checkpoint==0.12.8
cd "$tmp"; JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from tunix.rl import algo_core, common
from tunix.rl.grpo.grpo_learner import GRPOConfig
print("google-tunix", version("google-tunix"), "jax", jax.__version__)
POLICY, REFERENCE = np.array([0.5, 0.25, 0.125, 0.125]), np.array([0.05, 0.15, 0.4, 0.4])
TOKENS = np.array([0, 0, 0, 0, 1, 1, 2, 3])  # eight replies of one token that are the policy itself: their mean is the expectation

class Table(nnx.Module):
    """A policy without a context."""

    def __init__(self):
        self.logits = nnx.Param(jnp.log(POLICY))

    def __call__(self, tokens, positions, cache, attention_mask):
        return jnp.broadcast_to(self.logits[...], (*tokens.shape, 4)), cache

def exact(logits):
    logp = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logp) * (logp - jnp.log(REFERENCE)))

batch = common.TrainExample(
    prompt_ids=jnp.zeros((8, 1), int), prompt_mask=jnp.ones((8, 1)), completion_ids=jnp.asarray(TOKENS)[:, None],
    completion_mask=jnp.ones((8, 1)), advantages=jnp.zeros(8), old_per_token_logps=None,
    ref_per_token_logps=jnp.log(REFERENCE)[TOKENS][:, None])

def pull(**changes):
    """The KL that the loss reports, and the gradient of the loss by the logits over beta."""
    config = GRPOConfig(num_generations=8, **changes)
    config.temperature = 1.0  # the learner takes it from the rollout's config
    run = nnx.value_and_grad(lambda model: algo_core.grpo_loss_fn(model, batch, config, pad_id=-1, eos_id=-1), has_aux=True)
    (_, told), slope = run(Table())
    return float(told["kl"]), np.asarray(slope.logits[...]) / config.beta

default = GRPOConfig()
print("defaults: beta", default.beta, "kl_loss_mode", default.kl_loss_mode, "num_iterations", default.num_iterations)
assert (default.beta, default.kl_loss_mode, default.num_iterations) == (0.04, "kl", 1)
wanted = np.asarray(jax.grad(exact)(jnp.log(POLICY)))
print(f"{'gradient of KL(pi || pi_ref)':34s}", wanted.round(3), f"KL {float(exact(jnp.log(POLICY))):.3f}")
for mode in ("kl", "mse_kl", "low_var_kl"):
    kl, slope = pull(kl_loss_mode=mode)
    print(f"{'Tunix, kl_loss_mode=' + mode:34s}", slope.round(3) + 0, f"KL {kl:.3f}")
kl, slope = pull()
assert abs(kl - float(exact(jnp.log(POLICY)))) < 1e-5 and np.abs(slope).max() < 1e-5 < np.abs(wanted).max()
np.testing.assert_allclose(pull(kl_loss_mode="mse_kl")[1], wanted, atol=1e-5)
np.testing.assert_allclose(pull(kl_loss_mode="low_var_kl")[1], POLICY - REFERENCE, atol=1e-5)
EOP
