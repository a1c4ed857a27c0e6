#!/usr/bin/env bash
# A config.json with rope_parameters and the old rope_scaling: the old one replaces the new one whole.
# Guess: rope_parameters, the current name, is read and rope_scaling only fills in what is missing; or two that differ are an error.
# Truth (transformers 5.23.0, Phi-3 and Llama): rope_scaling wins without a word about it. factor, attention_factor and rope_theta that
#   only rope_parameters has are lost (rope_theta falls back to 10000 here). Given as an argument of from_pretrained,
#   rope_parameters does win over the file's rope_scaling.
# Who: a config.json written to suit transformers 4 and 5 both: long-context attention runs with another scale and base than written,
#   and a reader that takes rope_parameters disagrees with transformers on the same file.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import json, os
import transformers
from transformers import AutoConfig
print("transformers", transformers.__version__)
base = dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1, intermediate_size=16, vocab_size=10,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=32768, original_max_position_embeddings=4096)
factors = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 4.0]}
lost = ("factor", "attention_factor", "rope_theta")
for kind in ("phi3", "llama"):
    old = {"type": "longrope", **factors}
    new = {"rope_type": "longrope", "factor": 8.0, "attention_factor": 1.5, "rope_theta": 1e6, **factors}

    def read(ropes, **given):
        os.makedirs(kind, exist_ok=True)
        json.dump({"model_type": kind, **base, **ropes}, open(f"{kind}/config.json", "w"))
        rope = AutoConfig.from_pretrained(kind, **given).rope_parameters
        values = [rope.get(key) for key in lost]
        print(f"{kind:5s} file has {' and '.join(ropes):31s} {'argument rope_parameters' if given else '':24s} ->", dict(zip(lost, values)))
        return values

    assert read({"rope_parameters": new}) == [8.0, 1.5, 1e6]
    alone = read({"rope_scaling": old})
    assert alone[1:] == [None, 1e4]
    assert read({"rope_parameters": new, "rope_scaling": old}) == alone
    assert read({"rope_scaling": old}, rope_parameters=dict(new)) == [8.0, 1.5, 1e6]
EOF
grep -q "rope_scaling" stderr && { echo "a warning names rope_scaling:"; cat stderr; exit 1; } || echo "no warning names rope_scaling"
