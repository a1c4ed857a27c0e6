#!/usr/bin/env bash
# datasets.Dataset.from_list keeps only the columns of the first row.
# Guess: rows with different keys give the union of the columns, None where a row lacks one (as a JSONL file does).
# Truth (datasets 5.2.0): a key that the first row lacks is dropped from every row without a word; a key that only
#   later rows lack becomes None. So what survives depends on the order: sort or shuffle the list and a column comes or goes.
#   from_generator does the same. The same rows through a JSONL file keep both.
# Who: rows made in Python with an optional "answer", "score" or "rejected": if the first row has none, the reward
#   function gets no answers at all, and code that reads row.get("answer") scores everything as wrong.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
cd "$tmp"; HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - <<'EOF'
import json
import datasets
from datasets import Dataset, load_dataset
datasets.disable_progress_bars()
print("datasets", datasets.__version__)
rows = [{"prompt": "hi"}, {"prompt": "2+2", "answer": "4"}, {"prompt": "3+3", "answer": "6"}]
first, last = Dataset.from_list(rows)[:], Dataset.from_list(rows[::-1])[:]
generated = Dataset.from_generator(lambda: iter(rows))[:]
with open("rows.jsonl", "w") as f:
    f.writelines(json.dumps(r) + "\n" for r in rows)
from_file = load_dataset("json", data_files="rows.jsonl", split="train")[:]
print("from_list, row without answer first:", first)
print("from_list, the same rows reversed:  ", last)
print("from_generator:                     ", generated)
print("the same rows from a JSONL file:    ", from_file)
assert "answer" not in first and "answer" not in generated
assert last["answer"] == ["6", "4", None] and from_file["answer"] == [None, "4", "6"]
EOF
