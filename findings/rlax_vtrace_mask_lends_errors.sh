#!/usr/bin/env bash
# rlax's V-trace: a step that sample_mask leaves out is given the error of the step after it, and its own policy-gradient advantage.
# Guess: sample_mask ("which time steps are learnable") makes the errors and the advantages of the steps outside it 0, as a mask for padding
#   or for the step from an old episode's end into a new one must: mean(errors**2) and the policy loss then do not see them.
# Truth (rlax 0.1.9, jax 0.10.2): the mask only says which steps the backward recursion takes up. A step outside hands the sum on as it is, and
#   what is handed on is also returned as that step's error: its value is trained, by the temporal differences of the steps after it, with the
#   full gradient. pg_advantage is computed without the mask: a reward of 1000 in a step outside it is an advantage of 1000 there. At the end of
#   a sequence the errors are 0, as there is nothing to hand on, so a test with padding at the end finds the values right; the advantages
#   of the padding are not 0 there either. leaky_vtrace is the same.
# Who: IMPALA-like agents on variable-length or auto-reset data that pass a mask and then take the plain mean: values of states that should
#   not be learnt get errors of other states, and the policy is pushed towards whatever action fills the padding. The mask must be
#   applied again to errors, to pg_advantage and to the count of the mean.
# Seen, 5 steps, the second one left out, with reward 1000: its error 1.094 is the third step's, its advantage 1002.785.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q rlax==0.1.9 distrax==0.1.9 chex==0.1.92 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 tfp-nightly==0.26.0.dev20261027 setuptools==84.2.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np, rlax
print("rlax", version("rlax"), "jax", jax.__version__)
values = jnp.array([1.0, 0.0, 2.0, 1.0, 3.0, 2.0])
reward = jnp.array([1.0, 1000.0, 2.0, -1.0, 1.0])
discount, ratio = jnp.full(5, 0.9), jnp.array([1.0, 1.0, 0.8, 1.5, 1.0])

def look(mask, leaky=False):
    mask = jnp.array(mask, bool)
    function = rlax.leaky_vtrace_td_error_and_advantage if leaky else rlax.vtrace_td_error_and_advantage
    out = function(values[:-1], values[1:], reward, discount, ratio, sample_mask=mask)
    gradient = jax.grad(lambda v: 0.5 * jnp.sum(function(v, values[1:], reward, discount, ratio, sample_mask=mask).errors ** 2))(values[:-1])
    errors, advantages = np.asarray(out.errors, float), np.asarray(out.pg_advantage, float)
    print(np.asarray(mask).astype(int), "errors", errors.round(3), "advantages", advantages.round(3), "gradient of the values", np.asarray(gradient).round(3))
    return errors, advantages, np.asarray(gradient, float)

def by_hand(mask):
    """The errors of V-trace in float64 over the steps in the mask, and 0 elsewhere: what the guess expects."""
    v, r, d, rho = (np.asarray(x, float) for x in (values, reward, discount, ratio))
    rho, carried, errors = np.minimum(rho, 1), 0.0, np.zeros(5)
    for t in reversed(range(5)):
        if mask[t]:
            carried = rho[t] * (r[t] + d[t] * v[t + 1] - v[t]) + d[t] * rho[t] * carried
            errors[t] = carried
    return errors

for leaky in (False, True):
    for mask in ([1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 0, 0]):
        errors, advantages, gradient = look(mask, leaky)
        expected, mask = by_hand(mask), np.array(mask, bool)
        assert np.allclose(errors[mask], expected[mask], rtol=1e-5), (errors, expected)
        following = [next((errors[u] for u in range(t + 1, 5) if mask[u]), 0.0) for t in range(5)]
        outside = ~mask
        assert np.allclose(errors[outside], np.array(following)[outside], atol=1e-5), (errors, following)
        assert np.allclose(gradient, -errors, rtol=1e-5)
        assert not outside.any() or abs(advantages[outside]).min() > 0.1
        if mask[1] == 0:
            assert abs(errors[1]) > 0.1 and advantages[1] > 1000
        if not mask[-1]:
            assert (errors[-2:] == 0).all()
EOP
