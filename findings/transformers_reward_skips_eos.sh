#!/usr/bin/env bash
# A reward model whose pad token is its EOS never sees whether a reply has ended; TRL makes it so where a tokenizer has no pad token.
# Guess: a ...ForSequenceClassification model gives its score at the last position that attention_mask keeps, so at the EOS of a reply that
#   ended and at the last word of one that was cut off: padding with EOS is harmless, for the mask tells the two apart.
# Truth (transformers 5.23.0, trl 1.16.0): the position is the last id that is not config.pad_token_id, whatever attention_mask says. With
#   pad = EOS the score is that of the word before EOS, so a reply gets the same reward ended or cut off; and padding by any other id than
#   the config's is read as text. RewardTrainer appends EOS to its texts, and without a pad token sets pad to EOS: then pairs
#   that differ in their end alone keep a loss of log 2, accuracy 0 and no gradient; with a pad token of its own they are learnt.
# Who: reward models on bases without a pad token (GPT-2, Llama 3, Mistral), best-of-n and RL with a limit on length: the reward cannot ask
#   for an end, and scores made with another pad id than training's are of other positions.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from importlib.metadata import version
import datasets, numpy as np, torch, transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, PrinterCallback
from trl import RewardConfig, RewardTrainer
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
print("trl", version("trl"), "transformers", transformers.__version__)
PAD, EOS = 0, 1

def reward_model(pad):
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_labels=1, eos_token_id=EOS, pad_token_id=pad)).eval()

@torch.no_grad()
def score(model, ids, kept):
    mask = [[1] * kept + [0] * (len(ids) - kept)]
    return model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor(mask)).logits.item()

own, same = reward_model(PAD), reward_model(EOS)
words = [5, 6, 7]
for name, model in (("own pad token", own), ("pad = EOS", same)):
    print(f"{name}: cut off {score(model, words, 3):+.5f}, ended, its EOS kept by the mask, {score(model, [*words, EOS], 4):+.5f}")
assert abs(score(own, words, 3) - score(own, [*words, EOS], 4)) > 1e-3
assert abs(score(same, words, 3) - score(same, [*words, EOS], 4)) < 1e-6
right, wrong = score(own, [*words, PAD, PAD], 3), score(own, [*words, 9, 9], 3)
print(f"masked padding: by the config's id {right:+.5f}, by another id {wrong:+.5f}")
assert abs(right - score(own, words, 3)) < 1e-6 and abs(wrong - right) > 1e-3

def train(pad):
    """Pairs of equal words, the chosen one ended and the rejected one cut off."""
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["<pad>", "<eos>", *"abcdefghijklmn"])}, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", **({"pad_token": pad} if pad else {}))
    texts = np.random.default_rng(0).integers(2, 16, (64, 5)).tolist()
    rows = Dataset.from_list([{"chosen_ids": [*ids, EOS], "rejected_ids": ids} for ids in texts])
    config = RewardConfig(output_dir="out", max_steps=30, learning_rate=1e-2, per_device_train_batch_size=16, report_to=[], use_cpu=True,
                          bf16=False, save_strategy="no", disable_tqdm=True, logging_steps=10, gradient_checkpointing=False, seed=0)
    trainer = RewardTrainer(reward_model(None), args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    last = [row for row in trainer.state.log_history if "grad_norm" in row][-1]
    print(f"RewardTrainer, tokenizer's pad token {pad}: config.pad_token_id {trainer.model.config.pad_token_id}, "
          f"loss {last['loss']:.4f}, accuracy {last['accuracy']:.2f}, gradient {last['grad_norm']:.1e}")
    return trainer.model.config.pad_token_id, last

pad, last = train("<pad>")
assert pad == PAD and last["loss"] < 0.1 and last["accuracy"] == 1
pad, last = train(None)
assert pad == EOS and abs(last["loss"] - np.log(2)) < 1e-4 and last["grad_norm"] < 1e-5
EOF
