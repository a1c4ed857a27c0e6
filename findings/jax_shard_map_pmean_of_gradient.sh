#!/usr/bin/env bash
# In jax.shard_map the mean of the devices' gradients is already summed: pmean gives N times the gradient, psum N * N times.
# Guess: with replicated weights and a batch split over N devices, lax.pmean(jax.grad(loss)(w, x), "data") is the gradient of the whole
#   batch, as under pmap, and as under vmap with an axis name; jax.grad of what one device computes is that device's gradient.
# Truth (jax 0.10.2, check_vma=True, the default): weights that do not vary over the mesh get a gradient that does not either, so grad adds
#   the devices' gradients up itself. A pmean of equal numbers changes nothing: N times too large. A psum of them counts each again: N * N
#   times the mean. No error, no warning. Right are grad(pmean(loss)), or weights marked by lax.pcast(..., to="varying"), or
#   check_vma=False; and that turns grad(pmean(loss)), right before, into each device's own gradient.
# Who: data-parallel training carried over from pmap, whose last line this is: Adam hides the factor, while clipping by norm, SGD's rate, weight
#   decay against it, KL targets and logged gradient norms move with the number of devices. One device tests nothing.
# Seen, over the true gradient, on 4 devices: pmean 4, psum 16; with varying weights, check_vma=False or pmap: 1.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P
N = jax.device_count()
print("jax", jax.__version__, "devices", N)
mesh = jax.make_mesh((N,), ("data",), axis_types=(AxisType.Auto,))
x, w = jax.random.normal(jax.random.key(0), (16, 3)), jnp.ones(3)
loss = lambda w, x: jnp.mean((x @ w) ** 2)
true = jax.grad(loss)(w, x)
mean_of_grad = lambda w, x: lax.pmean(jax.grad(loss)(w, x), "data")
sum_of_grad = lambda w, x: lax.psum(jax.grad(loss)(w, x), "data")
grad_of_mean = lambda w, x: jax.grad(lambda w: lax.pmean(loss(w, x), "data"))(w)
marked = lambda w, x: mean_of_grad(lax.pcast(w, "data", to="varying"), x)

def times(name, f, check=True, out=P()):
    """The gradient on each device over the true one."""
    g = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P(), P("data")), out_specs=out, check_vma=check))(w, x)
    ratio = np.asarray(g).reshape(-1, 3) / np.asarray(true)
    print(f"{name:44s}", ratio[0].round(3), "" if len(ratio) == 1 else ratio[1].round(3))
    return ratio

near = lambda ratio, n: np.allclose(ratio, n, rtol=1e-4)
assert near(times("pmean(grad(loss))", mean_of_grad), N)
assert near(times("psum(grad(loss))", sum_of_grad), N * N)
assert near(times("grad(pmean(loss))", grad_of_mean), 1)
assert near(times("pmean(grad(loss)), weights marked varying", marked), 1)
assert near(times("pmean(grad(loss)), check_vma=False", mean_of_grad, check=False), 1)
own = times("grad(pmean(loss)), check_vma=False, by device", grad_of_mean, check=False, out=P("data"))
assert not near(own, 1) and near(own.mean(0), 1)
pmapped = jax.pmap(mean_of_grad, "data", in_axes=(None, 0))(w, x.reshape(N, -1, 3))[0]
mapped = jax.vmap(mean_of_grad, axis_name="data", in_axes=(None, 0))(w, x.reshape(N, -1, 3))[0]
print("pmean(grad(loss)) under pmap, vmap:", pmapped / true, mapped / true)
assert near(pmapped / true, 1) and near(mapped / true, 1)
EOP
