#!/usr/bin/env bash
# Two OFT adapters that are active together, merged, are another model: merging applies them in the other order, and rotations do not commute.
# Guess: merge_adapter and merge_and_unload write into the weights what the active adapters do, whichever and however many they are: the outputs stay, to
#   float precision, as they do for two adapters of LoRA, LoHa, LoKr, HRA, BOFT, IA3 or VeRA.
# Truth (peft 0.21.2): for one OFT adapter they stay. With two, the forward pass turns the input by the first adapter and then by the second, W R2 R1 x; merging
#   multiplies the weight by the first and then by the second, which is W R1 R2. The outputs move by nine tenths of what the
#   adapters themselves had moved them. unmerge_adapter brings the right outputs back. Nothing warns.
# Who: OFT adapters of two stages (say, instructions and then preferences) which are active together in training and are merged for
#   serving or before export: what is served is not what was trained. Merge the second one first: merge_adapter(["second"]), then
#   merge_adapter(["first"]), which gives the outputs of the unmerged model (column "second, then first"; for HRA it is the wrong order).
# Seen: the table below.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 psutil==7.2.2
"$tmp/v/bin/pip" install -q --no-compile --no-deps peft==0.21.2
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import torch
from peft import HRAConfig, LoHaConfig, LoraConfig, OFTConfig, get_peft_model
from torch import nn

print("peft", version("peft"), "torch", torch.__version__)
CONFIGS = {"LoRA": lambda: LoraConfig(r=4, target_modules=["0"]), "LoHa": lambda: LoHaConfig(r=4, target_modules=["0"]),
           "HRA": lambda: HRAConfig(r=4, target_modules=["0"]),
           "OFT": lambda: OFTConfig(oft_block_size=16, target_modules=["0"], use_cayley_neumann=False)}
x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


def made(config):
    """A linear layer with the adapters "first" and "second", with random values, both active."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config(), adapter_name="first")
    model.add_adapter("second", config())
    for name, weight in model.named_parameters():
        if "first" in name or "second" in name:
            weight.data += 0.2 * torch.randn_like(weight)
    model.base_model.set_adapter(["first", "second"])
    return model.eval()


@torch.no_grad()
def change(model, then):
    """By how much, of the adapters' own effect, the outputs move."""
    before = model(x)
    with model.disable_adapter():
        effect = (before - model(x)).norm()
    then(model)
    return ((model(x) - before).norm() / effect).item()


print(f"{'method':6s}", *(f"{title:20s}" for title in ("merge_adapter()", "unmerged again", "second, then first", "one adapter")))
for method, config in CONFIGS.items():
    both = change(made(config), lambda m: m.merge_adapter())
    back = change(made(config), lambda m: (m.merge_adapter(), m.unmerge_adapter()))
    other = change(made(config), lambda m: (m.merge_adapter(["second"]), m.merge_adapter(["first"])))
    single = made(config)
    single.base_model.set_adapter(["first"])
    one = change(single, lambda m: m.merge_adapter())
    print(f"{method:6s}", *(f"{value:<20.1e}" for value in (both, back, other, one)))
    assert back < 1e-4 and one < 1e-4
    assert both > 0.1 if method == "OFT" else both < 1e-4
    if method == "OFT":
        assert other < 1e-4
    else:
        assert other > 0.1 if method == "HRA" else other < 1e-4
EOP
