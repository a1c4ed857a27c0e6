#!/usr/bin/env bash
# TRL's GRPO leaves dropout on: replies are sampled from thinned-out models, and at the first update 4 tokens of 10 are clipped already.
# Guess: rollouts run without dropout, as generate does in an evaluation; old log-probabilities are those of the policy that sampled, so before
#   anything was learnt the ratio is 1 and nothing is clipped.
# Truth (trl 1.16.0, transformers 5.23.0): with disable_dropout=False, the default, the model stays in train() for all of it. At a temperature
#   near 0 the replies to one prompt all differ. With num_iterations=2 old and new log-probabilities come from two draws of dropout: at
#   GPT-2's default of 0.1 and a learning rate of 0 the ratio is clipped for 4 tokens of 10. With num_iterations=1 nothing is clipped, for
#   the old ones are a copy of the new; but neither belongs to what sampled. disable_dropout=True gives ratio 1, and one greedy reply.
#   DPO, in the same library, has it True by default.
# Who: models whose config has dropout (GPT-2, OPT), and LoRA with a dropout once B is not 0: a clipped share or an early stop on it
#   measures dropout, and clipping throws tokens away at random. Best-of-n and pass@k of the rollouts are not those of the served model.
# Known: huggingface/trl pull request 3234, which added the switch.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import datasets, torch, transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, GRPOConfig, GRPOTrainer
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
print("trl", version("trl"), "transformers", transformers.__version__)
words = {name: i for i, name in enumerate(["<pad>", "<eos>", *"abcdefghijklmn"])}
raw = Tokenizer(models.WordLevel(words, unk_token="a"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

def run(name, **options):
    """GRPO at a learning rate of 0: the share of clipped tokens at each update, and how many different replies the first prompt got."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1,
                                       pad_token_id=0, initializer_range=0.3))  # dropout as GPT-2 has it, 0.1
    replies = []

    def reward(completions, **_):
        replies.extend(completions)
        return [float(len(set(text.split()))) for text in completions]

    args = GRPOConfig(output_dir="out", max_steps=2, per_device_train_batch_size=32, num_generations=32, max_completion_length=8,
                      learning_rate=0.0, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, logging_steps=1,
                      gradient_checkpointing=False, seed=0, **options)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    it = GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=Dataset.from_list([{"prompt": "a b c"}]),
                     processing_class=tokenizer)
    it.remove_callback(PrinterCallback)
    it.train()
    clipped = [row["clip_ratio/region_mean"] for row in it.state.log_history if "clip_ratio/region_mean" in row]
    print(f"{name:54s} clipped {[round(x, 2) for x in clipped]}, different replies {len(set(replies[:32]))} of 32")
    return clipped, len(set(replies[:32]))

assert GRPOConfig.disable_dropout is False and DPOConfig.disable_dropout is True
clipped, _ = run("two updates a rollout", num_iterations=2)
assert min(clipped) > 0.2
clipped, _ = run("two updates a rollout, disable_dropout", num_iterations=2, disable_dropout=True)
assert clipped == [0, 0]
clipped, count = run("one update a rollout, temperature 0.0001", temperature=1e-4)
assert clipped == [0, 0] and count > 3
clipped, count = run("one update, temperature 0.0001, disable_dropout", temperature=1e-4, disable_dropout=True)
assert clipped == [0, 0] and count == 1
EOP
