#!/usr/bin/env bash
# TRL's GRPO and RLOO train a model with learnt positions on other log-probabilities than those that it sampled by.
# Guess: prompts of different lengths are padded on the left, and attention_mask takes care of that in generate and in the trainer's own
#   forward pass alike: the log-probability of a reply is that of the unpadded text, whichever prompts share its batch.
# Truth (trl 1.16.0, transformers 5.23.0): generate counts positions from the mask, so replies are sampled as if unpadded. The trainer's forward
#   gets ids and mask but no position_ids, and GPT-2 then counts padding too: every prompt but the batch's longest is scored as a text that
#   starts further on, before and after the update alike. So the ratio is 1, nothing is clipped and no metric looks odd; but the gradient
#   belongs to a model that nobody samples from. Rotary models are safe, since only differences of positions count there.
# Who: tutorials, tests and papers' small runs on GPT-2 with real (uneven) prompts, and whoever compares another implementation with TRL on it:
#   log-probabilities are off by whole nats, with prompts of one length they agree. Group prompts by length, or take a rotary model.
# Known: huggingface/trl#6800 (open), of Online DPO, XPO and Nash-MD; PPO in the same library counts positions itself.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import datasets, torch, transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
print("trl", version("trl"), "transformers", transformers.__version__)
words = {name: i for i, name in enumerate(["<pad>", "<eos>", *"abcdefghijklmn"])}
raw = Tokenizer(models.WordLevel(words, unk_token="a"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
SHORT, LONG = "a b", "c d e f g h i j k"

def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1,
                                      pad_token_id=0, initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))

def llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                                        bos_token_id=1, eos_token_id=1, pad_token_id=0, initializer_range=0.3))

def noted(base):
    class Noted(base):
        """Keeps what the trainer's own scoring is given and what it finds."""

        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **options):
            found = super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, *args, **options)
            self.noted = [*getattr(self, "noted", []), (input_ids, attention_mask, logits_to_keep, found[0].detach())]
            return found
    return Noted

def run(name, trainer, config, make, prompts):
    torch.manual_seed(0)
    model = make()
    args = config(output_dir="out", max_steps=1, per_device_train_batch_size=8, num_generations=4, max_completion_length=4, learning_rate=0.0,
                  report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, logging_steps=1,
                  gradient_checkpointing=False, seed=0, beta=0.0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    it = noted(trainer)(model=model, reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions], args=args,
                        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]), processing_class=tokenizer)
    it.remove_callback(PrinterCallback)
    it.train()
    model.eval()
    off, sampled = {}, {}
    ids, mask, keep, logps = it.noted[-1]
    for row, kept, scored in zip(ids, mask, logps):
        text, length = row[kept.bool()], int(kept[-keep:].sum())
        with torch.no_grad():
            alone = model(text[None]).logits[0].log_softmax(-1)
            padded = model.generate(row[None, :-keep], attention_mask=kept[None, :-keep], max_new_tokens=1, do_sample=False, output_logits=True,
                                    return_dict_in_generate=True).logits[0][0].log_softmax(-1)
        own = alone[:-1].gather(1, text[1:, None])[:, 0][-length:]
        prompt = len(text) - length
        off[prompt] = max(off.get(prompt, 0.0), float((own - scored[:length]).abs().max()))
        sampled[prompt] = max(sampled.get(prompt, 0.0), float((padded - alone[prompt - 1]).abs().max()))
    last = it.state.log_history[0]
    clipped = last.get("clip_ratio/region_mean", 0.0)
    print(f"{name:24s} off by prompt length: trainer", {k: round(v, 2) for k, v in sorted(off.items())},
          "generate", {k: round(v, 2) for k, v in sorted(sampled.items())}, "| clipped", clipped)
    assert max(sampled.values()) < 1e-3 and clipped == 0
    return off

for trainer, config in ((GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)):
    kind = trainer.__name__[:4]
    off = run(f"{kind} GPT-2, 2 lengths", trainer, config, gpt2, [SHORT, LONG])
    assert off[2] > 0.5 and off[9] < 1e-3, off
    assert max(run(f"{kind} GPT-2, one length", trainer, config, gpt2, [SHORT, "c d"]).values()) < 1e-3
    off = run(f"{kind} Llama, 2 lengths", trainer, config, llama, [SHORT, LONG])
    assert set(off) == {2, 9} and max(off.values()) < 1e-3, off
EOP
