#!/usr/bin/env bash
# TRL's CISPO with default settings multiplies every gradient by about 0.2.
# Guess: the weight is clip(ratio, ..., 1 + epsilon_high), as equation 5 of the paper has it and as every other loss_type of
#   GRPOConfig reads epsilon_high; at ratio 1 the loss is the policy gradient.
# Truth (trl 1.16.0): with loss_type="cispo" epsilon_high is the cap itself (ScaleRL's 5.0, says its docstring), and unset it is
#   epsilon = 0.2, so nearly every weight is 0.2: a constant factor that is no longer an importance weight. DAPO's 0.28
#   gives 0.28. No warning; the metric cispo_clip_ratio is above 0 at the first update, where all ratios are 1.
# Who: whoever switches loss_type and keeps the rest, compares CISPO to GRPO under a clipped gradient norm or a KL term
#   (whose weight is 5 times as large then), or carries epsilon_high between TRL and libraries that follow the paper.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from importlib.metadata import version
import torch, transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
transformers.logging.set_verbosity_error()
print("trl", version("trl"), "transformers", transformers.__version__)
words = {name: i for i, name in enumerate(["<pad>", "<eos>", *"abcdefghijklmn"])}
raw = Tokenizer(models.WordLevel(words, unk_token="a"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

def first_update(**options):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=32, n_embd=16, n_layer=1, n_head=2,
                                       bos_token_id=1, eos_token_id=1, pad_token_id=0, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0))
    config = GRPOConfig(output_dir="out", max_steps=1, per_device_train_batch_size=8, num_generations=8, max_completion_length=8,
                        logging_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_grad_norm=1e9,
                        beta=0.0, gradient_checkpointing=False, seed=0, **options)
    trainer = GRPOTrainer(model, reward_funcs=lambda completions, **_: [float(len(set(x.split()))) for x in completions],
                          args=config, train_dataset=Dataset.from_dict({"prompt": ["a b c"] * 8}), processing_class=tokenizer)
    trainer.train()
    return [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row][0]

usual = first_update(loss_type="dapo")
for options in ({}, {"epsilon_high": 0.28}, {"epsilon_high": 5.0}):
    norm, cap = first_update(loss_type="cispo", **options), options.get("epsilon_high", 0.2)
    print(f"cispo {options}: gradient of the first update, where every ratio is 1, is {norm / usual:.4f} of dapo's")
    assert abs(norm / usual - min(cap, 1)) < 1e-3
EOF
