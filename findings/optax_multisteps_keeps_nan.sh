#!/usr/bin/env bash
# One NaN micro-batch inside optax.MultiSteps ends training for good, guards against NaN in the optimiser or not.
# Guess: MultiSteps(apply_if_finite(optimiser), 4) drops the one update whose mean holds the NaN, and the next four gradients give the next
#   update; without a guard parameters stay as they are until that update is due.
# Truth (optax 0.2.8, jax 0.10.2): the accumulator is emptied by multiplying it by 0, and 0 * NaN is NaN: it never holds a number again. The
#   guard then drops every later update: weights stand still, all of them finite, with nothing but total_notfinite growing (and once
#   max_consecutive_errors is passed, NaN goes through). With zero_nans() inside, the weight whose gradient was NaN once is
#   dead and its neighbours train on. Unguarded, what is not due yet is multiplied by 0 too, so NaN is in the weights at once.
# Who: gradient accumulation with the usual protection, in the order that reads best. apply_if_finite around MultiSteps, or
#   should_skip_update_fn=optax.skip_not_finite, lose one micro-batch and go on.
# Seen: guard inside: 0.9 from the fourth gradient to the last; guard outside: -0.5. (zero_nans was met before: google-deepmind/optax issue 828.)
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np, optax
print("optax", optax.__version__, "jax", jax.__version__)
STEPS, BAD, K = 64, 5, 4  # micro-batches; the one whose first gradient is NaN; micro-batches an update
grads = jnp.ones((STEPS, 2)).at[BAD, 0].set(jnp.nan)  # every other gradient is (1, 1)

def train(name, optimiser):
    @jax.jit
    def step(params, state, grad):
        updates, state = optimiser.update(grad, state, params)
        return optax.apply_updates(params, updates), state
    params = jnp.ones(2)
    state, path = optimiser.init(params), []
    for grad in grads:
        params, state = step(params, state, grad)
        path.append(np.asarray(params))
    path = np.stack(path)
    print(f"{name:34s} after micro-batch 4: {path[3]}, {BAD + 1}: {path[BAD]}, 8: {path[7]}, {STEPS}: {path[-1].round(3)}")
    return path

sgd = optax.sgd(0.1)
bare = train("MultiSteps(sgd)", optax.MultiSteps(sgd, K))
inside = train("MultiSteps(apply_if_finite(sgd))", optax.MultiSteps(optax.apply_if_finite(sgd, 100), K))
few = train("the same, at most 5 errors", optax.MultiSteps(optax.apply_if_finite(sgd, 5), K))
zeroed = train("MultiSteps(zero_nans, sgd)", optax.MultiSteps(optax.chain(optax.zero_nans(), sgd), K))
outside = train("apply_if_finite(MultiSteps(sgd))", optax.apply_if_finite(optax.MultiSteps(sgd, K).gradient_transformation(), 100))
skip = train("MultiSteps(sgd), skip_not_finite", optax.MultiSteps(sgd, K, should_skip_update_fn=optax.skip_not_finite))
updates = STEPS // K
assert np.isnan(bare[BAD, 0]) and np.isfinite(bare[BAD - 1]).all()  # two micro-batches before the update is due
assert (inside[3:] == inside[3]).all() and np.allclose(inside[3], 0.9)  # stands still for ever
assert np.isfinite(few[4 * K]).all() and np.isnan(few[-1, 0])
assert np.allclose(zeroed[-1], [0.9, 1 - 0.1 * updates])  # one weight dead, the other one trained on
assert np.allclose(outside[-1], 1 - 0.1 * (updates - 1)) and np.allclose(skip[-1], outside[-1])
EOP
