#!/usr/bin/env bash
# rlax's MPO and V-MPO: a Lagrange multiplier that once touches zero has gradient 0 from then on, and its constraint is gone for good.
# Guess: projection_operator is the projection of dual ascent. A KL below its bound lowers the multiplier, down to the smallest allowed value
#   at most, and a KL above the bound raises it again: that is how kl_constraint_loss itself describes it.
# Truth (rlax 0.1.9, jax 0.10.2): the default, jnp.clip(min=1e-10), is applied inside the loss. The parameter itself may go below zero; there
#   the derivative of the clip is 0, and no KL, however large, moves it back. The loss then goes on with a multiplier of 1e-10. The KL is 0
#   when the target policy is new, so that the multiplier starts by falling, and Adam's steps do not become smaller near zero. The
#   temperature has the same operator: with Q-values that are all alike, as a critic starts, it falls too, and at 1e-10 the weights of
#   the E-step are a hard argmax. No NaN, no warning; the losses of both multipliers stay about 0. With
#   projection_operator=jax.nn.softplus both come back; so they do if the parameters are clipped after the optimiser's step.
# Who: MPO and V-MPO made of rlax's parts with the default: the trust region holds until the first quiet stretch (a critic of zeros, a small
#   learning rate, a reward that comes late), and not after it.
# Seen after 400 quiet steps, KL to the target policy 100 steps later, bound 0.01: default 1.447, the gradient of its multiplier 0;
#   softplus 0.052; clipped after the step 0.014.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q rlax==0.1.9 distrax==0.1.9 chex==0.1.92 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 tfp-nightly==0.26.0.dev20261027 setuptools==84.2.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np, optax, rlax
print("rlax", version("rlax"), "jax", jax.__version__)
ACTIONS, BOUND, PERIOD, QUIET = 8, 0.01, 100, 400
q_values = jnp.linspace(0.0, 1.0, ACTIONS)

def run(name, projection=None, clip_after=False):
    """MPO on one state with 8 actions: QUIET steps with equal Q-values, then 4 periods with real ones, each with a new target policy."""
    options = {} if projection is None else {"projection_operator": projection}
    params = {"policy": jnp.zeros(ACTIONS), "alpha": jnp.float32(1.0), "temperature": jnp.float32(1.0)}
    optimizer = optax.adam(1e-2)

    def loss(params, target, q):
        log_new, log_old = jax.nn.log_softmax(params["policy"]), jax.nn.log_softmax(target)
        kl = jnp.sum(jnp.exp(log_old) * (log_old - log_new))[None]
        total, _ = rlax.mpo_loss(log_new[:, None], q[:, None], rlax.LagrangePenalty(params["temperature"], jnp.float32(0.1)),
            [(kl, rlax.LagrangePenalty(params["alpha"], jnp.float32(BOUND)))], **options)
        return total.mean(), kl[0]

    @jax.jit
    def step(params, state, target, q):
        grads, kl = jax.grad(loss, has_aux=True)(params, target, q)
        update, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, update)
        if clip_after:
            params = params | {k: jnp.maximum(params[k], 1e-6) for k in ("alpha", "temperature")}
        return params, state, kl, grads["alpha"]

    state, kls, gradients = optimizer.init(params), [], []
    for i in range(QUIET + 4 * PERIOD):
        if i == QUIET:
            quiet = float(params["alpha"]), float(params["temperature"])
        if i % PERIOD == 0:
            target = params["policy"]
        params, state, kl, gradient = step(params, state, target, q_values if i >= QUIET else jnp.zeros(ACTIONS))
        if i >= QUIET and i % PERIOD == PERIOD - 1:
            kls.append(round(float(kl), 3)); gradients.append(round(float(gradient), 3))
    print(f"{name}: alpha and temperature after the quiet steps {quiet[0]:.3f} {quiet[1]:.3f}, at the end {params['alpha']:.3f} {params['temperature']:.3f};",
        "KL at the ends of the periods", kls, "gradient of alpha there", gradients)
    return quiet, np.array(kls), np.array(gradients)

quiet, kls, gradients = run("default")
assert max(quiet) < 0 and kls[0] > 50 * BOUND and (gradients == 0).all(), (quiet, kls, gradients)
for name, how in {"softplus": {"projection": jax.nn.softplus}, "clipped after the step": {"clip_after": True}}.items():
    _, kls, gradients = run(name, **how)
    assert kls.max() < 10 * BOUND and (gradients != 0).any(), (name, kls, gradients)
EOP
