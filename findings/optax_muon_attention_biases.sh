#!/usr/bin/env bash
# optax's Muon on a flax transformer: the attention's kernels go to Adam, and its biases are orthogonalised.
# Guess: muon() takes the hidden matrices, those of attention and MLP, and gives biases and norms to Adam, whatever the framework calls them.
# Truth (optax 0.2.8, flax 0.12.8): what has two axes is a matrix. flax keeps query, key and value as (features, heads, head size), three axes,
#   and their biases as (heads, head size), two: the kernels get Adam, at Muon's learning rate, and the biases Newton-Schulz. With layers
#   stacked for a scan, (layers, in, out), no kernel is left to Muon at all, while stacked biases and norm scales, (layers, features), are
#   orthogonalised across layers: a layer's scale moves because another layer's gradient does. An update of Muon's has the same size
#   however small the gradient is, so a bias that nearly rests is moved as far as any. No warning; "Muon" then differs from
#   Adam by its biases and its rate. muon_weight_dimension_numbers says which axes are which, for each parameter by hand.
# Who: Muon against AdamW on models made with flax's attention, or with nn.scan, nnx.scan or jax.lax.scan over layers.
# Seen, share of the kernels' weights under Muon: one block 0.50 (its attention has the rest), three stacked blocks 0.00; parameters under Muon
#   that are no kernels: 3 and 7. Stacked norm scales, all gradients a millionth as large: updates of the same size (1.000); only the other
#   layers' gradients changed: the first layer's update changes by 0.66 of its largest entry.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile optax==0.2.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax
print("optax", version("optax"), "flax", version("flax"), "jax", jax.__version__)
LAYERS, FEATURES = 3, 16
RATE = 1e-2

class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + nn.Dense(FEATURES)(nn.relu(nn.Dense(2 * FEATURES)(nn.LayerNorm()(x)))), None

def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")

def under_muon(params):
    """The names of the parameters that have a momentum of Muon's in the optimiser's state."""
    state = optax.contrib.muon(RATE).init(params)
    held = jax.tree.leaves(jax.tree_util.tree_map_with_path(lambda path, _: name(path), state.inner_states["muon"].inner_state[0].mu))
    return set(held)

def look(title, params):
    flat = {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    muon = under_muon(params)
    assert muon <= set(flat) and muon
    kernels = {k: v for k, v in flat.items() if k.endswith("kernel")}
    share = sum(v.size for k, v in kernels.items() if k in muon) / sum(v.size for v in kernels.values())
    others = sorted(muon - set(kernels))
    print(f"{title}: share of the kernels under Muon {share:.2f}; under Muon and no kernel: {len(others)}")
    for k in others:
        print("   ", k, flat[k].shape)
    return share, others

x = jnp.ones((2, 5, FEATURES))
plain = Block().init(jax.random.key(0), x)["params"]
stacked = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)().init(jax.random.key(0), x, None)["params"]
share, others = look("plain block", plain)
assert share == 0.5 and len(others) == 3 and all("Attention" in k and k.endswith("bias") for k in others), (share, others)
share, others = look("stacked blocks", stacked)
assert share == 0 and len(others) == 7 and sum(k.endswith("scale") for k in others) == 2, (share, others)

def first_update(params, gradients):
    optimizer = optax.contrib.muon(RATE)
    return optimizer.update(gradients, optimizer.init(params), params)[0]

leaves, tree = jax.tree.flatten(stacked)
gradients = jax.tree.unflatten(tree, [jax.random.normal(k, v.shape) for k, v in zip(jax.random.split(jax.random.key(1), len(leaves)), leaves)])
scale = lambda updates: np.asarray(updates["LayerNorm_0"]["scale"])
base = scale(first_update(stacked, gradients))
small = jax.tree.map(lambda g: 1e-6 * g, gradients)
quiet = scale(first_update(stacked, small))
print(f"norm scales, size of the update with a gradient a millionth as large: {np.linalg.norm(quiet) / np.linalg.norm(base):.3f} of the other")
assert abs(np.linalg.norm(quiet) / np.linalg.norm(base) - 1) < 0.05
other = jax.tree.map(lambda g: g, gradients)
other["LayerNorm_0"]["scale"] = gradients["LayerNorm_0"]["scale"].at[1:].add(gradients["LayerNorm_0"]["scale"][0])
changed = np.abs(scale(first_update(stacked, other))[0] - base[0]).max() / np.abs(base[0]).max()
print(f"the first layer's scale, when only the other layers' gradients change: its update changes by {changed:.2f} of its largest")
assert changed > 0.1
EOP
