#!/usr/bin/env bash
# A model with "dynamic" RoPE scaling remembers the longest text it was given: the same text gets other log-probabilities afterwards.
# Guess: in eval() a causal model is a function of its input: the log-probabilities of a text do not depend on calls before, nor, with
#   attention_mask and padding on the right, on its neighbours in the batch.
# Truth (transformers 5.23.0): with rope_type "dynamic" the frequencies are stretched for the longest batch so far and kept, until a batch
#   comes that is shorter than the original length. So a text above that length, or just as long, depends on what was computed
#   before. And the length of a batch is its padded length: beside a longer text a short one is computed with that one's frequencies, with
#   "dynamic" and, without memory, with "longrope" (Phi-3, Phi-4-mini), also if the rest is padding alone.
# Who: policy and reference are the same weights in two modules that have seen different texts: a KL above 0 and a DPO loss off ln 2 at
#   step 0; old log-probabilities of rollouts that are recomputed in other batches (ratio not 1); scores that change with batch
#   size or with the order of an evaluation. Pad every batch to one length, or score texts of one side of the limit together.
# Known: huggingface/transformers#25306 (2023, closed) for short texts, which are right again now.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM
from torch.nn.functional import pad
torch.set_num_threads(1)
torch.manual_seed(0)
print("transformers", transformers.__version__, "torch", torch.__version__)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2)
rope = {"dynamic": {"rope_type": "dynamic", "factor": 4.0}, "default": {"rope_type": "default"},
        "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}}

def make(kind):
    """The limit (original length) is 32 tokens."""
    parameters = rope[kind] | {"rope_theta": 10000.0}
    if kind == "longrope":
        return Phi3ForCausalLM(Phi3Config(**sizes, max_position_embeddings=128, original_max_position_embeddings=32,
                                          rope_parameters=parameters)).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=32, rope_parameters=parameters)).eval()

def score(model, *texts, to=0):
    """The log-probability of the first text, with the others beside it in the batch and padding on the right."""
    longest = max(to, *(len(t) for t in texts))
    ids = torch.stack([pad(t, (0, longest - len(t))) for t in texts])
    mask = torch.stack([pad(torch.ones_like(t), (0, longest - len(t))) for t in texts])
    with torch.no_grad():
        logp = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    n = len(texts[0])
    return float(logp[0, :n - 1].gather(-1, texts[0][1:, None]).sum())

draw = lambda n: torch.randint(3, 64, (n,))
short, limit, middle, long = draw(20), draw(32), draw(40), draw(120)
changes = {}
for kind in rope:
    model = make(kind)
    # each starts after a short text alone, which is what resets "dynamic"
    before = {name: (score(model, short), score(model, t))[1] for name, t in (("short", short), ("limit", limit), ("middle", middle))}
    after = {name: (score(model, short), score(model, long), score(model, t))[2]
             for name, t in (("short", short), ("limit", limit), ("middle", middle))}
    beside = (score(model, short), score(model, short, long))[1]
    padded = (score(model, short), score(model, short, to=40))[1]
    found = {f"{name} after a long one": after[name] - before[name] for name in before}
    found |= {"short beside a long one": beside - before["short"], "short padded to 40": padded - before["short"]}
    changes[kind] = found
    print(f"{kind:9s}", ", ".join(f"{k} {v:+.3f}" for k, v in found.items()))
moved = {kind: [k for k, v in found.items() if abs(v) > 0.02] for kind, found in changes.items()}
still = max(abs(v) for kind, found in changes.items() for k, v in found.items() if k not in moved[kind])
print("moved:", moved, f"| all others by at most {still:.0e}")
batch = ["short beside a long one", "short padded to 40"]
assert moved == {"dynamic": ["limit after a long one", "middle after a long one", *batch], "default": [], "longrope": batch} and still < 1e-3
EOF
