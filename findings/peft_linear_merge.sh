#!/usr/bin/env bash
# PEFT's "linear" combination of adapters is not the linear combination of what they do.
# Guess: add_weighted_adapter([x, y], [1, 1], combination_type="linear") adds delta_x and delta_y; x with x doubles it.
# Truth (peft 0.21.2): it adds the factors, so the result is (Bx+By)@(Ax+Ay) with cross terms: an adapter combined with itself counts
#   four times, and the 0.5, 0.5 mean of two unrelated ones is off by as much as the mean itself. combination_type="cat" adds what was meant, without rslora.
# Who: averaging LoRA policies or reward adapters over seeds (model soups, WARP-like averaging), adding a helpfulness and a
#   harmlessness adapter.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import peft, torch
from peft import LoraConfig, get_peft_model
torch.set_num_threads(1)
torch.manual_seed(0)
print("peft", peft.__version__)
config = lambda: LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)  # B random: adapters that do something
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), config(), adapter_name="x")
model.add_adapter("y", config())
layer = model.base_model.model[0]
delta = lambda name: layer.get_delta_weight(name).detach()
x, y = delta("x"), delta("y")

def combine(names, weights, how):
    name = f"{how}{len(model.peft_config)}"
    model.base_model.add_weighted_adapter(names, weights, name, combination_type=how)
    return delta(name)

twice = combine(["x", "x"], [1.0, 1.0], "linear")
factor = float((twice * x).sum() / (x * x).sum())
print(f"x and x, weights 1 and 1, linear: {factor:.2f} times delta_x (a sum: 2)")
error = {}
for how in ("linear", "cat"):
    want = 0.5 * x + 0.5 * y
    error[how] = float((combine(["x", "y"], [0.5, 0.5], how) - want).norm() / want.norm())
    print(f"mean of x and y, {how}: off by {error[how]:.2f} of the mean's norm")
assert abs(factor - 4) < 1e-3 and error["linear"] > 0.5 and error["cat"] < 1e-5
EOF
