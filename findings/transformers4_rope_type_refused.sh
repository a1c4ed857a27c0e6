#!/usr/bin/env bash
# OLMo and Phi-3 configs of transformers 4 refuse a rope_scaling with rope_type, the name that the others use.
# Guess: {"rope_type": "linear", "factor": 2.0} suits every config with RoPE, and `type` is its old name; both together do no harm.
# Truth (transformers 4.57.6): OlmoConfig, Olmo2Config and Phi3Config take only `type` and raise "got None" for `rope_type`; with both names
#   they raise for a field too many. LlamaConfig takes either, and both.
# Who: one rope_scaling in a sweep over models, or a config.json written for several versions (transformers 5 writes rope_type):
#   it loads for Llama and fails for OLMo 2 and Phi-3 before anything is read of the weights.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==4.57.6
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import transformers
from transformers import LlamaConfig, Olmo2Config, OlmoConfig, Phi3Config
print("transformers", transformers.__version__)
linear, longrope = {"factor": 2.0}, {"short_factor": [1.0] * 2, "long_factor": [2.0] * 2}

def made(config, kind, rest, names):
    size = dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=4)
    try:
        config(rope_scaling={**{n: kind for n in names}, **rest}, **size)
        out = "accepted"
    except ValueError as e:
        out = "ValueError: " + str(e)
    print(f"{config.__name__:12s} {'+'.join(names):15s} {out[:125]}")
    return out

for config, kind, rest in ((OlmoConfig, "linear", linear), (Olmo2Config, "linear", linear), (Phi3Config, "longrope", longrope)):
    assert made(config, kind, rest, ["type"]) == "accepted"
    assert made(config, kind, rest, ["rope_type"]).endswith("got None")
    assert "must be a dictionary with" in made(config, kind, rest, ["type", "rope_type"])
for names in (["type"], ["rope_type"], ["type", "rope_type"]):
    assert made(LlamaConfig, "linear", linear, names) == "accepted"
EOF
