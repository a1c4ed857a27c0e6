#!/usr/bin/env bash
# PEFT's add_weighted_adapter makes rsLoRA adapters too strong: times the root of the rank, by every method.
# Guess: one adapter with weight 1 gives that adapter back, whichever scaling it was trained with; "cat" and "svd" at full rank of two with
#   0.5, 0.5 are their mean.
# Truth (peft 0.21.2): the sources' scaling goes into the new factors, and the new adapter has lora_alpha = r so that its own is 1. But it
#   takes use_rslora from the first source, and then lora_alpha / sqrt(r) is sqrt(r): 4 times the adapter for rank 16, and for "cat",
#   whose rank is the sum, 5.7 times the mean. No warning; saved and loaded again it is as strong. If only the second
#   source has use_rslora, all is well, so the order of the names decides. To repair: peft_config[name].use_rslora = False, and 1.0 for
#   every layer's scaling[name], before saving.
# Who: averaging LoRA policies over seeds or checkpoints, mixing adapters of several preferences, or re-weighting one: what is served or
#   used as a reference is far outside what was trained. High ranks, for which rslora is made, are hit hardest.
# Known: huggingface/peft#3761 (open); pull request 3449.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import peft, torch
from peft import LoraConfig, PeftModel, get_peft_model
torch.set_num_threads(1)
torch.manual_seed(0)
print("peft", peft.__version__)
base = lambda: torch.nn.Sequential(torch.nn.Linear(64, 64))

def run(rank, x_rs, y_rs):
    config = lambda rs: LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights=False, use_rslora=rs)  # B not 0
    model = get_peft_model(base(), config(x_rs), adapter_name="x")
    model.add_adapter("y", config(y_rs))
    delta = lambda name, of=model: of.base_model.model[0].get_delta_weight(name).detach()
    found = {}
    for how in ("linear", "cat", "svd"):
        for names, weights in ((["x"], [1.0]), (["x", "y"], [0.5, 0.5])):
            if (how, len(names)) in (("linear", 2), ("svd", 1)):
                continue  # "linear" is no mean with any scaling, as it adds the factors; and one adapter is always combined by it
            name = f"{how}{len(names)}"
            rest = {"svd_rank": 2 * rank} if how == "svd" else {}
            model.base_model.add_weighted_adapter(names, weights, name, combination_type=how, **rest)
            want = sum(w * delta(n) for n, w in zip(names, weights))
            found[name] = float((delta(name) * want).sum() / (want * want).sum())
            assert float((delta(name) - found[name] * want).norm() / want.norm()) < 1e-3 * found[name]  # a multiple, nothing else
    layer, merged = model.base_model.model[0], model.peft_config["cat2"]
    model.save_pretrained("saved", selected_adapters=["cat1"])
    again = PeftModel.from_pretrained(base(), "saved/cat1", adapter_name="cat1")
    same = torch.allclose(delta("cat1", again), delta("cat1"))
    print(f"rank {rank:2d}, use_rslora of x {x_rs!s:5s} and y {y_rs!s:5s}: times", {k: round(v, 2) for k, v in found.items()}, "| loaded again the same:", same)
    assert same
    merged.use_rslora, layer.scaling["cat2"] = False, 1.0
    assert torch.allclose(delta("cat2"), 0.5 * delta("x") + 0.5 * delta("y"), atol=1e-4)
    return found

near = lambda found, one, cat2: all(abs(found[k] / v - 1) < 1e-3 for k, v in
                                    {"linear1": one, "cat1": one, "cat2": cat2, "svd2": cat2}.items())
assert near(run(16, False, False), 1, 1)
assert near(run(16, True, True), 4, 32**0.5)
assert near(run(4, True, True), 2, 8**0.5)
assert near(run(16, False, True), 1, 1)
assert near(run(16, True, False), 4, 32**0.5)
EOF
