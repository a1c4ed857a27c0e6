#!/usr/bin/env bash
# load_dataset("json") changes answers: date strings become datetimes, integers become floats.
# Guess: a JSON string stays a string and 12 stays 12.
# Truth (datasets 5.2.0, pyarrow 26.0.1): a column in which every string is an ISO date is read as timestamps, so "2024-01-02" prints
#   as "2024-01-02 00:00:00"; one other string among them ("unknown") and all stay strings. An int column with one float in it
#   turns float: str(12) is "12.0". Both depend on the rest of the file, so a subset can behave unlike the whole.
#   features={"answer": Value("string")} does not help: the date is parsed first and its long form becomes the string.
# Who: gold answers for exact-match rewards and evaluation: correct completions score 0. Read the lines with json and
#   Dataset.from_list instead.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
cd "$tmp"; HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - <<'EOF'
import json
import datasets, pyarrow
from datasets import Dataset, Features, Value, load_dataset
datasets.disable_progress_bars()
print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
count = 0

def read(answers, by_hand=False, **kw):
    global count
    count += 1
    with open(f"{count}.jsonl", "w") as f:
        f.writelines(json.dumps({"answer": a}) + "\n" for a in answers)
    if by_hand:
        made = Dataset.from_list([json.loads(line) for line in open(f"{count}.jsonl")])
    else:
        made = load_dataset("json", data_files=f"{count}.jsonl", split="train", **kw)
    got = [str(a) for a in made["answer"]]
    right = sum(str(a) == g for a, g in zip(answers, got))
    print(f"{str(answers):38s} read as {str(got):52s} exact matches {right}/{len(got)}")
    return right

assert read(["2024-01-02", "2023-05-06"]) == 0
assert read(["2024-01-02", "unknown"]) == 2
assert read(["12:30:00", "01:02:03"]) == 2
assert read([12, 7]) == 2
assert read([12, 0.5]) == 1
text = Features({"answer": Value("string")})
assert read(["2024-01-02", "2023-05-06"], features=text) == 0
assert read(["2024-01-02", "2023-05-06"], by_hand=True) == 2
EOF
