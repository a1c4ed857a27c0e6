#!/usr/bin/env bash
# TRL's KTO on preference pairs: 1000 chosen replies in a row, then their 1000 rejected ones, in the same order in every epoch.
# Guess: KTOTrainer splits {prompt, chosen, rejected} into good and bad rows and shuffles them, so a batch holds some of both; a data set
#   that was shuffled beforehand is mixed in any case.
# Truth (trl 1.16.0, transformers 5.23.0): it splits by blocks of 1000 pairs, all chosen replies of a block before all rejected ones, and
#   its sampler is sequential, as its KL term needs ("random" is refused). Up to 1000 pairs, an epoch's first half only raises replies and
#   its second only lowers them. Shuffling the pairs beforehand does not help. No warning; rewards/margins is not logged at such steps.
# Who: KTO against DPO on the same pairs: a policy is saved right after a block of rejected replies, the learning rate's schedule gives more
#   weight to one sign, and the optimiser's moments are of one sign. unpair_preference_dataset(pairs).shuffle(seed) beforehand mixes them.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import copy
from importlib.metadata import version
import datasets, numpy as np, torch, transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback
from trl import KTOConfig, KTOTrainer, unpair_preference_dataset
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
print("trl", version("trl"), "transformers", transformers.__version__, "datasets", datasets.__version__)
words = {name: i for i, name in enumerate(["<pad>", "<eos>", *"abcdefghijklmn"])}
raw = Tokenizer(models.WordLevel(words, unk_token="a"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

class Watched(KTOTrainer):
    """Notes which labels each training batch holds: + only desirable, - only undesirable, x both."""

    def training_step(self, model, inputs, *args, **options):
        labels = {bool(x) for x in inputs["label"]}
        self.seen = getattr(self, "seen", "") + ("x" if len(labels) == 2 else "+" if labels == {True} else "-")
        self.texts = [*getattr(self, "texts", []), inputs["input_ids"].tolist()]
        return super().training_step(model, inputs, *args, **options)

def trainer(rows, epochs=1, **options):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1,
                                       pad_token_id=0))
    config = KTOConfig(output_dir="out", num_train_epochs=epochs, per_device_train_batch_size=100, report_to=[], use_cpu=True, bf16=False,
                       save_strategy="no", disable_tqdm=True, logging_steps=1, gradient_checkpointing=False, seed=0, **options)
    return Watched(model, ref_model=copy.deepcopy(model), args=config, train_dataset=rows, processing_class=tokenizer)

def run(name, rows, epochs=1):
    it = trainer(rows, epochs)
    it.remove_callback(PrinterCallback)
    it.train()
    steps = len(it.texts) // epochs
    assert it.texts[:steps] * epochs == it.texts  # every epoch has the same batches in the same order
    both = sum("rewards/margins" in row for row in it.state.log_history)
    print(f"{name:38s} batches {it.seen}; rewards/margins logged in {both} of {len(it.seen)} steps")
    return it.seen

def pairs(count):
    draw = np.random.default_rng(0)
    say = lambda: " ".join(draw.choice(list("abcdefghijklmn"), 3))
    return Dataset.from_list([{"prompt": say() + " ", "chosen": say(), "rejected": say()} for _ in range(count)]).shuffle(seed=0)

assert run("500 pairs, shuffled, 2 epochs", pairs(500), 2) == ("+" * 5 + "-" * 5) * 2
assert run("1200 pairs, shuffled", pairs(1200)) == "+" * 10 + "-" * 10 + "+" * 2 + "-" * 2
assert run("500 pairs, unpaired and then shuffled", unpair_preference_dataset(pairs(500)).shuffle(seed=0)) == "x" * 10
try:
    trainer(pairs(100), train_sampling_strategy="random")
    raise SystemExit("random sampling is accepted now")
except ValueError as e:
    print("train_sampling_strategy='random':", str(e).split(" because")[0])
EOF
