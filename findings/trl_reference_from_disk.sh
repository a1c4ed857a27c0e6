#!/usr/bin/env bash
# TRL's DPO and GRPO take the reference from where the model was once loaded, not from the model that they are given.
# Guess: without ref_model the reference is a copy of `model` as it is handed over (the trainer's own error message says so), so training
#   starts at loss ln 2 and KL 0, whatever was done to the model before.
# Truth (trl 1.16.0, transformers 5.23.0): it is loaded anew from config._name_or_path. After fine-tuning in the same process, also after
#   save_model, that is still the model before the fine-tuning: DPO starts off ln 2 and pulls towards it, GRPO with beta > 0 starts with a
#   KL above 0. With precompute_ref_log_probs=True, meant to save memory, the reference is the model that was given. No warning.
# Who: SFT and then DPO or GRPO in one script or notebook, averaged or merged weights, weights loaded with load_state_dict. Hand over
#   ref_model=copy.deepcopy(model), or save, and load from there. A full model only: LoRA has its own rules.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import copy, math
from importlib.metadata import version
import datasets, numpy as np, torch, transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
print("trl", version("trl"), "transformers", transformers.__version__)
raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["<pad>", "<eos>", *"abcdefghijklmn"])}, unk_token="a"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
tokenizer.save_pretrained("base")
torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1,
                           pad_token_id=0)).save_pretrained("base")
draw = np.random.default_rng(0)
quiet = lambda trainer: (trainer.remove_callback(PrinterCallback), trainer)[1]
say = lambda: " ".join(draw.choice(list("abcdefghijklmn"), 3))
pairs = Dataset.from_list([{"prompt": say() + " ", "chosen": say(), "rejected": say()} for _ in range(64)])
common = dict(output_dir="out", report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, logging_steps=1, seed=0)

chosen = pairs.map(lambda row: {"completion": row["chosen"]}, remove_columns=["chosen", "rejected"])
sft = quiet(SFTTrainer("base", args=SFTConfig(**common, num_train_epochs=5, learning_rate=1e-2), train_dataset=chosen))
sft.train()
sft.save_model("sft")
tuned = sft.model
print("config._name_or_path of the fine-tuned model:", tuned.config._name_or_path)

def dpo(name, model=None, reference=None, **options):
    it = quiet(DPOTrainer(copy.deepcopy(tuned) if model is None else model, ref_model=reference, args=DPOConfig(**common, **options),
                          train_dataset=pairs, eval_dataset=pairs, processing_class=tokenizer))
    found = it.evaluate()
    print(f"DPO, {name:36s} loss {found['eval_loss']:.4f}, rewards/chosen {found['eval_rewards/chosen']:.4f} before a step")
    return found["eval_loss"]

none = dpo("ref_model left out")
assert none == dpo("ref_model the one before fine-tuning", reference=AutoModelForCausalLM.from_pretrained("base"))
assert abs(none - math.log(2)) > 0.01
for loss in (dpo("ref_model a copy", reference=copy.deepcopy(tuned)), dpo("left out, precompute_ref_log_probs", precompute_ref_log_probs=True),
             dpo("left out, loaded from what was saved", AutoModelForCausalLM.from_pretrained("sft"))):
    assert abs(loss - math.log(2)) < 1e-6
kl = {}
for name in ("fine-tuned here", "loaded from what was saved"):
    model = copy.deepcopy(tuned) if name == "fine-tuned here" else AutoModelForCausalLM.from_pretrained("sft")
    options = dict(beta=0.1, max_completion_length=5, num_generations=4, per_device_train_batch_size=8, max_steps=1,
                   disable_dropout=True)  # DPO's default; else dropout alone makes a KL of about 0.001
    it = quiet(GRPOTrainer(model, reward_funcs=lambda completions, **columns: [float(len(x)) for x in completions],
                           args=GRPOConfig(**common, **options), train_dataset=pairs.select_columns("prompt"), processing_class=tokenizer))
    it.train()
    kl[name] = it.state.log_history[0]["kl"]
    print(f"GRPO, {name}: kl {kl[name]:.4f} at the first step")
assert kl["fine-tuned here"] > 0.05 and kl["loaded from what was saved"] < 1e-6
EOF
