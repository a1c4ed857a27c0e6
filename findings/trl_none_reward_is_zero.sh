#!/usr/bin/env bash
# In TRL's GRPO a grader that abstains on one reply has given it 0, unless it is the only grader.
# Guess: a reward function may return None for "cannot tell"; that reply is then left out, or judged by the other functions alone, next to
#   its siblings on the same scale.
# Truth (trl 1.16.0, transformers 5.23.0): the scores of a reply are summed without its Nones and only then set against the group. Beside
#   graders that score it, a None is a 0 in the sum: of four alike replies the one whose judge timed out gets advantage -1.5; with a reward
#   model's scores, mostly below 0, it gets the best advantage of the group. rewards/judge/mean leaves the None out, so the log shows
#   nothing wrong. With a single function it is really left out (advantage 0). multi_objective_aggregation="normalize_then_sum" has the
#   None at the judge's own mean.
# Who: a judge over a network or code in a sandbox, which fails for some replies of a group, beside a format or length reward: the policy
#   learns to make graders fail, or not to. (A None for a whole group, as for another task's prompts, cancels.) Return None from all of
#   the functions then, or ask again.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from importlib.metadata import version
import datasets, torch, transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
print("trl", version("trl"), "transformers", transformers.__version__)
raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["<pad>", "<eos>", *"abcdef"])}, unk_token="a"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

class Watched(GRPOTrainer):
    """Keeps the advantages in the order of the replies, before they are shuffled."""

    def _generate_and_score_completions(self, inputs):
        scored = super()._generate_and_score_completions(inputs)
        self.advantages = [round(x, 2) for x in scored["advantages"].tolist()]
        return scored

def reward(name, scores):
    def function(completions, **columns):
        return scores
    function.__name__ = name
    return function

def run(title, *rewards, **options):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1,
                                       pad_token_id=0))
    config = GRPOConfig(output_dir="out", max_steps=1, num_generations=4, per_device_train_batch_size=4, max_completion_length=4,
                        report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, logging_steps=1, **options)
    it = Watched(model, reward_funcs=list(rewards), args=config, train_dataset=Dataset.from_list([{"prompt": "a b"}] * 4),
                 processing_class=tokenizer)
    it.remove_callback(PrinterCallback)
    it.train()
    print(f"{title:52s} advantages {it.advantages}; logged judge mean {it.state.log_history[0]['rewards/judge/mean']:g}")
    return it.advantages

form = reward("form", [1.0, 1.0, 1.0, 1.0])
alike, model_scores = reward("judge", [1.0, 1.0, None, 1.0]), reward("judge", [-3.0, -2.0, None, -4.0])
assert run("judge alone: 1 1 None 1", alike) == [0, 0, 0, 0]
assert run("form 1 1 1 1, judge 1 1 None 1", form, alike) == [0.5, 0.5, -1.5, 0.5]
first = run("form 1 1 1 1, judge -3 -2 None -4", form, model_scores)
assert first[2] == max(first) > 1 and first[1] > 0 and run("judge alone: -3 -2 None -4", model_scores)[2] == 0
both = run("form and judge, normalize_then_sum", form, alike, multi_objective_aggregation="normalize_then_sum")
assert both == [0, 0, 0, 0]
EOF
