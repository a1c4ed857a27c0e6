#!/usr/bin/env bash
# MJX puts models and data on the first of all devices, whatever jax.default_device says.
# Guess: mjx.put_model and mjx.make_data place arrays as jnp.zeros does: on jax.default_device where one is set, uncommitted, so
#   that a jitted step runs where its other arguments are.
# Truth (mujoco-mjx 3.17.0, jax 0.10.2): without `device` they take jax.devices()[0] and commit to it. A step under
#   default_device(second) runs on the first; with data moved to the second it raises, for the model stayed behind. In a job of
#   several processes jax.devices()[0] belongs to process 0, so in all others the model cannot be read at all.
#   put_model(m, device=...) and make_data(m, device=...) do as told; make_data(model on the second) goes back to the first.
# Who: whoever gives each device its own simulator (one seed a device, one process a device), and users of Brax' and
#   Playground's environments, which call put_model for them without a device.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 mujoco==3.17.0 mujoco-mjx==3.17.0
cd "$tmp"; JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, mujoco
from mujoco import mjx
print("jax", jax.__version__, "mujoco-mjx", version("mujoco-mjx"))
ball = mujoco.MjModel.from_xml_string("<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>")
first, second = jax.devices()

def where(tree):
    (device,) = {d for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) for d in x.devices()}
    return ("first", "second")[device.id]

with jax.default_device(second):
    zeros, model, data = jax.numpy.zeros(3), mjx.put_model(ball), mjx.make_data(ball)
    print(f"under default_device(second): zeros on the {where(zeros)}, put_model {where(model)}, make_data {where(data)}")
    assert (where(zeros), where(model), where(data)) == ("second", "first", "first")
    after = jax.jit(mjx.step)(model, data)
    print(f"a step runs on the {where(after)}")
    assert where(after) == "first"
assert not zeros.committed and data.qpos.committed and model.body_mass.committed
try:
    jax.jit(mjx.step)(model, jax.device_put(data, second))
    raise SystemExit("a step with its model elsewhere ran")
except ValueError as error:
    print("data moved alone:", str(error).split(".")[0][:80])
model = mjx.put_model(ball, device=second)
print(f"put_model(device=second) {where(model)}; make_data of that model {where(mjx.make_data(model))}")
assert where(model) == "second" and where(mjx.make_data(model)) == "first"
EOF
