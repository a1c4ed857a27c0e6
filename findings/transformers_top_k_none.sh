#!/usr/bin/env bash
# GenerationConfig(top_k=None) means the model's own top_k, or 50; generate(top_k=None) means none at all.
# Guess: None switches a filter off, wherever it is written; a GenerationConfig that is passed to generate is used as it stands, so
#   do_sample=True, temperature=1.0 and nothing else samples from the softmax of the logits.
# Truth (transformers 5.23.0): in a GenerationConfig None is "not given", and all such fields are filled in from model.generation_config
#   and then from built-in defaults, top_k = 50 among them. GenerationConfig().top_k prints None all the same, and so does
#   model.generation_config.top_k = None, which changes nothing. As a keyword, generate(top_k=None), it does switch it off. A model
#   whose generation_config.json has top_k, top_p or repetition_penalty (most chat models) puts them into the caller's config too. What
#   switches off everywhere: top_k=0, top_p=1.0, repetition_penalty=1.0.
# Who: rollouts for GRPO, PPO or best-of-n by generate: tokens come from 50 candidates, while log-probabilities, ratios, entropies and the
#   KL are those of the whole softmax: a token that got probability from the others' loss is never tried, and its old log-probability is
#   too low for all that are. With repetition_penalty the samples are off-policy, from the first step.
# Known: huggingface/transformers#42702; TRL set top_p=1.0 in GKD for that reason (huggingface/trl, pull request 6337).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import torch, transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
torch.manual_seed(0)
print("transformers", transformers.__version__, "torch", torch.__version__)
# nearly flat: 200 tokens of about 0.5%
model = LlamaForCausalLM(LlamaConfig(vocab_size=200, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()
prompt = torch.tensor([[5, 6, 7]]).repeat(4000, 1)
with torch.no_grad():  # but for token 5, whose logit is 3 after this prompt: about 9%
    last = model.model(prompt[:1]).last_hidden_state[0, -1]
    model.lm_head.weight[5] = 3 * last / last.square().sum()

def seen(name, config=None, **keywords):
    """How many different tokens 4000 samples of the next one have, and how many of them are from the prompt."""
    torch.manual_seed(0)
    new = model.generate(prompt, generation_config=config, max_new_tokens=1, **keywords)[:, -1]
    got, repeated = len(set(new.tolist())), int(torch.isin(new, prompt[0]).sum())
    print(f"{name:72s} {got:3d} tokens, {repeated} samples repeat the prompt")
    return got, repeated

print("GenerationConfig(do_sample=True).top_k:", GenerationConfig(do_sample=True).top_k)
assert GenerationConfig(do_sample=True).top_k is None
assert seen("GenerationConfig(do_sample=True)", GenerationConfig(do_sample=True))[0] == 50
assert seen("GenerationConfig(do_sample=True, top_k=None)", GenerationConfig(do_sample=True, top_k=None))[0] == 50
assert seen("generate(do_sample=True, top_k=None)", do_sample=True, top_k=None)[0] == 200
model.generation_config.top_k = None
assert seen("model.generation_config.top_k = None, generate(do_sample=True)", do_sample=True)[0] == 50
got, free = seen("GenerationConfig(do_sample=True, top_k=0)", GenerationConfig(do_sample=True, top_k=0))
assert got == 200 and free > 300
model.generation_config.update(do_sample=True, top_k=20, top_p=0.8, repetition_penalty=2.0)
print("model.generation_config as of chat models: top_k=20, top_p=0.8, repetition_penalty=2.0")
assert seen("GenerationConfig(do_sample=True, temperature=1.0, top_k=None)", GenerationConfig(do_sample=True, temperature=1.0, top_k=None))[0] <= 20
open_config = GenerationConfig(do_sample=True, top_k=0, top_p=1.0)
got, repeated = seen("GenerationConfig(do_sample=True, top_k=0, top_p=1.0)", open_config)
assert got == 200 and repeated < free / 2
plain = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, repetition_penalty=1.0)
assert seen("the same with repetition_penalty=1.0", plain) == (200, free)
EOF
