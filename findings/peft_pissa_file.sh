#!/usr/bin/env bash
# A PEFT adapter file started by PiSSA or OLoRA does not belong to the base model it names.
# Guess: W + lora_alpha/r * B@A is right for every plain LoRA file; an untrained adapter adds nothing.
# Truth (peft 0.21.2): "pissa" and "olora" start A and B at a factorisation of W and take it out of W. The saved A and B still
#   hold it; PEFT repeats the decomposition on the base at load time. A reader that follows the formula adds it twice:
#   an untrained adapter already changes the weight by most of its norm. The only sign is init_lora_weights in
#   adapter_config.json; keys and shapes are those of any LoRA.
# Who: everyone who loads LoRA outside PEFT (JAX, GGUF converters, servers, mergers). Refuse such files, or ask for
#   save_pretrained(..., path_initial_model_for_weight_conversion=...).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import json
import peft, torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
torch.set_num_threads(1)
print("peft", peft.__version__, "torch", torch.__version__.split("+")[0])
size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)

def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **size))

weight = base().model.layers[0].self_attn.q_proj.weight.detach()
ids, want = torch.arange(8)[None], base()(torch.arange(8)[None]).logits
shift = {}
for init in (True, "pissa", "olora"):
    folder = f"adapter_{init}"
    get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=init)).save_pretrained(folder)
    config, file = json.load(open(f"{folder}/adapter_config.json")), load_file(f"{folder}/adapter_model.safetensors")
    a, b = (next(v for k, v in file.items() if f"lora_{x}" in k) for x in "AB")
    shift[init] = float((config["lora_alpha"] / config["r"] * b @ a).norm() / weight.norm())
    in_peft = float((PeftModel.from_pretrained(base(), folder)(ids).logits - want).abs().max())
    print(f"{init!s:6s} untrained: |scale*B@A| / |W| = {shift[init]:.2f}; loaded by PEFT the logits move {in_peft:.0e}; "
          f"config says init_lora_weights={config['init_lora_weights']!r}; keys {sorted(k.rsplit('.', 2)[1] for k in file)}")
    assert in_peft < 1e-5 and config["init_lora_weights"] == init
assert shift[True] == 0 and shift["pissa"] > 0.5 and shift["olora"] > 0.5
EOF
