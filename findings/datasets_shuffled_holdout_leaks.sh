#!/usr/bin/env bash
# A held-out part taken from a shuffled stream is trained on from the second epoch.
# Guess: with stream = data.shuffle(seed=0), stream.take(n) and stream.skip(n) are a split of the rows: fixed, and disjoint for good.
# Truth (datasets 5.2.0, accelerate 1.15.0, transformers 5.23.0): both are positions in an order that is drawn anew from seed + epoch, and
#   accelerate's data loader calls set_epoch before each pass. From the second on, in transformers' Trainer as well, training meets rows
#   of the held-out part and leaves out others. Trainer makes a loader anew for each evaluation, so that its held-out rows stay; in a loop
#   of one's own over a loader that is kept, they change too. Nothing warns. Split first, stream.skip(n).shuffle(...), and it holds: the
#   order of files is fixed then, and only the buffer shuffles.
# Who: streamed preference or prompt data for several epochs with early stopping, best-checkpoint selection or a reported win rate on the
#   part held out. The library's documents once advised to shuffle before such a split (huggingface/datasets#5435).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from importlib.metadata import version
import torch
from accelerate import Accelerator
from datasets import Dataset, load_dataset
from transformers import PrinterCallback, Trainer, TrainingArguments
print(*(f"{name} {version(name)}" for name in ("datasets", "accelerate", "transformers")))
for part in range(4):
    Dataset.from_dict({"row": range(250 * part, 250 * part + 250)}).to_parquet(f"part{part}.parquet")
data = load_dataset("parquet", data_files="part*.parquet", split="train", streaming=True)

class Model(torch.nn.Module):
    """Notes the rows that it is trained and evaluated on."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.zeros(1)), {True: [], False: []}

    def forward(self, row, labels=None):
        self.rows[self.training] += row.tolist()
        return {"loss": self.weight.square().sum(), "logits": row}

def by_trainer(train, held_out):
    model = Model()
    args = TrainingArguments("out", max_steps=48, eval_strategy="steps", eval_steps=16, per_device_train_batch_size=50, report_to=[],
                             per_device_eval_batch_size=50, use_cpu=True, save_strategy="no", disable_tqdm=True)
    it = Trainer(model, args=args, train_dataset=train, eval_dataset=held_out)
    it.remove_callback(PrinterCallback)
    it.train()
    for epoch in range(3):
        yield (set(model.rows[training][size * epoch:size * (epoch + 1)]) for training, size in ((True, 800), (False, 200)))

def by_hand(*parts):
    prepare = Accelerator(cpu=True).prepare_data_loader
    loaders = [prepare(torch.utils.data.DataLoader(part, batch_size=50)) for part in parts]
    for _ in range(3):
        yield ({int(row) for batch in loader for row in batch["row"]} for loader in loaders)

def epochs(title, how, train, held_out):
    passes = [tuple(sets) for sets in how(train, held_out)]
    assert all((len(trained), len(held)) == (800, 200) for trained, held in passes)
    first = passes[0][1]
    leaked, kept = ([len(first & sets[i]) for sets in passes] for i in (0, 1))
    print(f"{title:33s} the first 200 held out: trained on {leaked}, still held out {kept}, in epochs 1, 2 and 3")
    return leaked, kept

mixed = lambda stream: stream.shuffle(seed=0, buffer_size=500)
for how in (by_trainer, by_hand):
    leaked, kept = epochs(f"{how.__name__}: shuffle, then split", how, mixed(data).skip(200), mixed(data).take(200))
    assert leaked[0] == 0 and min(leaked[1:]) > 50 and kept[0] == 200 and (max(kept[1:]) < 150) == (how is by_hand)
    assert epochs(f"{how.__name__}: split, then shuffle", how, mixed(data.skip(200)), data.take(200)) == ([0] * 3, [200] * 3)
EOF
