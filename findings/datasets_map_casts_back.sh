#!/usr/bin/env bash
# Dataset.map over an existing column casts the new values back to the old type when it can.
# Guess: map(lambda r: {"answer": str(r["answer"])}) gives a string column; {"score": 2 if good else 0} gives 2 and 0.
# Truth (datasets 5.2.0): the old type is tried first. Strings that look like integers become integers again ("007" -> 7),
#   numbers written over a bool column become True/False (a score of 2 is True), lists of strings become lists
#   of ints. One value that does not fit anywhere in the batch and the whole column changes type instead, so the outcome
#   depends on the data; a new column name never casts.
# Who: reward functions that compare text with a gold answer column "turned to text" by map (7 == "7" is False: all
#   rewards 0), and graded preferences written over a chosen/not-chosen column (their strength is gone).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
cd "$tmp"; HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - <<'EOF'
import datasets
from datasets import Dataset
datasets.disable_progress_bars()
print("datasets", datasets.__version__)

def show(name, values, function):
    made = Dataset.from_dict({"x": values}).map(lambda r: {"x": function(r["x"])})
    print(f"{name:32s} {values} -> wrote {[function(v) for v in values]} -> read {made['x'][:]}")
    return made["x"][:]

assert show("str over int", [7, 8], str) == [7, 8]
assert show("zero-padded str over int", [7, 8], lambda v: f"{v:03d}") == [7, 8]
assert show("str over int, one is no number", [7, 8], lambda v: "seven" if v == 7 else str(v)) == ["seven", "8"]
graded = show("0/2 over bool", [True, False], lambda v: 2 if v else 0)
assert graded == [True, False] and graded[0] is True
assert show("list of str over list of int", [[1, 2], [3]], lambda v: [str(i) for i in v]) == [[1, 2], [3]]
whole = show("float over int, all whole", [0, 1], lambda v: 2.0 * v)
half = show("float over int, one half", [0, 1], lambda v: 0.5 * v)
assert type(whole[0]) is int and type(half[0]) is float
fresh = Dataset.from_dict({"x": [7, 8]}).map(lambda r: {"text": str(r["x"])})["text"][:]
print("under a new name:", fresh)
assert fresh == ["7", "8"]
EOF
