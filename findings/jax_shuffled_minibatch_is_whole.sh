#!/usr/bin/env bash
# Shuffled minibatches of a batch that is split over devices: every device computes every minibatch, whole.
# Guess: under jit, with a batch split over 8 devices and parameters on each, x[index] of a random minibatch stays split by rows, so that
#   each device computes an eighth of it and gradients are added up, as for a batch that is not shuffled.
# Truth (jax 0.10.2, automatic sharding): the compiler makes x[index], and jnp.take of a permutation, whole on every device; loss and
#   gradient follow it, and each of 8 devices does the work of one. A scan over minibatches in order still costs half of that. Nothing
#   says so: results are right. A sharding constraint on each minibatch gives the eighth.
# Who: PPO and GRPO in JAX, whose inner loops shuffle and cut like this: more devices step more environments but learn no faster.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
cd "$tmp"
cat > m.py <<'EOF'
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import re
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
N, D, M = 4096, 256, 4  # transitions, features, minibatches

def loss(w, x):
    return (jnp.tanh(x @ w["a"]) @ w["b"]).mean()

def step(w, x):
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, jax.grad(loss)(w, x)), None

def indexed(w, x, key):  # an index for each minibatch
    order = jax.random.permutation(key, N).reshape(M, -1)
    return jax.lax.scan(lambda w, i: step(w, x[i]), w, order)[0]

def taken(w, x, key):  # all rows shuffled, then cut into minibatches
    return jax.lax.scan(step, w, jnp.take(x, jax.random.permutation(key, N), axis=0).reshape(M, -1, D))[0]

def in_order(w, x, key):  # no shuffle
    return jax.lax.scan(step, w, x.reshape(M, -1, D))[0]

def asked(w, x, key):
    order = jax.random.permutation(key, N).reshape(M, -1)
    return jax.lax.scan(lambda w, i: step(w, jax.lax.with_sharding_constraint(x[i], rows)), w, order)[0]

w = {"a": jnp.ones((D, D)), "b": jnp.ones((D, 1))}
x, key = jnp.ones((N, D)), jax.random.key(0)
print("jax", jax.__version__)
alone = jax.jit(indexed).lower(w, x, key).compile().cost_analysis()["flops"]
for f in (indexed, taken, in_order, asked):
    program = jax.jit(f, in_shardings=(whole, rows, whole), out_shardings=whole).lower(w, x, key).compile()
    share = program.cost_analysis()["flops"] / alone
    found = sorted(set(re.findall(r"(all-reduce|all-gather|all-to-all|collective-permute)\(", program.as_text())))
    print(f"{f.__name__}: {share:.2f} of one device's work on each of 8; {' '.join(found)}", flush=True)
EOF
"$tmp/v/bin/python" m.py | tee seen
diff seen - <<'EOF'
jax 0.10.2
indexed: 1.00 of one device's work on each of 8; all-reduce
taken: 1.01 of one device's work on each of 8; all-reduce
in_order: 0.50 of one device's work on each of 8; all-gather all-reduce
asked: 0.13 of one device's work on each of 8; all-gather all-reduce
EOF
