#!/usr/bin/env bash
# Dataset.map reuses old results after the code that makes them was edited, if that code was imported by name.
# Guess: map's cache is found by a hash of the function, of what it calls and of the globals that it reads, so a changed prompt template,
#   parser or length limit is run anew; a lambda over a helper is hashed with the helper.
# Truth (datasets 5.2.0, dill 0.4.1): a function that can be imported is hashed as the name of its module and its own, without its code or
#   globals. Edit the file, run again, and map, filter and a lambda that calls the helper give the last run's rows, without a word. The same
#   function written in the script is hashed with its code and globals, and runs again; so does a lambda that says helpers.render(row) where
#   one that says render(row) does not. So moving a function out of the script changes the rule, and `from helpers import render` for
#   `import helpers` does. Only data from files is affected: a data set made in memory has no cache that lasts.
# Who: a project with its templates, parsers and filters in a package, as all but the smallest have: prompts and gold answers of the version
#   before, beside a log and a commit of the new one; ablations over a template that all train on the first.
#   load_from_cache_file=False, or a new_fingerprint with the version in it.
# Known: huggingface/datasets#3297 (2021, open); pull request 8614 (open).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1 dill==0.4.1
cd "$tmp"
cat > run.py <<'EOP'
import json
import datasets, helpers
from helpers import Render, fits, render
datasets.disable_progress_bars()

def inline(row):
    return {"prompt": TEMPLATE + row["text"]}

def inline_fits(row):
    return len(row["text"]) <= LIMIT

TEMPLATE, LIMIT = helpers.TEMPLATE, helpers.LIMIT
data = datasets.load_dataset("parquet", data_files="rows.parquet", split="train")
prompt = lambda how: data.map(how)[0]["prompt"]
print(json.dumps({
    "map(render)": prompt(render),
    "map(Render())": prompt(Render()),
    "map(lambda r: render(r))": prompt(lambda r: render(r)),
    "map(lambda r: helpers.render(r))": prompt(lambda r: helpers.render(r)),
    "map(function of the script)": prompt(inline),
    "map(render, load_from_cache_file=False)": data.map(render, load_from_cache_file=False)[0]["prompt"],
    "map(render, new_fingerprint=...)": data.map(render, new_fingerprint=f"v-{helpers.TEMPLATE.strip(': ')}")[0]["prompt"],
    "filter(fits)": len(data.filter(fits)),
    "filter(function of the script)": len(data.filter(inline_fits)),
}))
EOP
cat > check.py <<'EOP'
import json, os, subprocess, sys
from importlib.metadata import version
from datasets import Dataset
print("datasets", version("datasets"), "dill", version("dill"))
Dataset.from_dict({"text": ["ab", "abc", "abcdef"]}).to_parquet("rows.parquet")

def run(template, limit):
    with open("helpers.py", "w") as file:
        file.write(f'''
TEMPLATE, LIMIT = {template!r}, {limit}

def render(row):
    return {{"prompt": {template!r} + row["text"]}}

def fits(row):
    return len(row["text"]) <= {limit}

class Render:
    def __call__(self, row):
        return render(row)
''')
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return json.loads(subprocess.run([sys.executable, "run.py"], env=environment, check=True, capture_output=True, text=True).stdout)

first, second = run("Q: ", 3), run("Question: ", 6)
old = {name for name in first if second[name] == first[name]}
for name in first:
    print(f"{name:42s} {first[name]!s:14s} then {second[name]!s:14s} {'<- of the old code' if name in old else ''}")
assert {first[name] for name in first} == {"Q: ab", 2}
assert old == {"map(render)", "map(Render())", "map(lambda r: render(r))", "filter(fits)"}, old
assert all(second[name] in ("Question: ab", 3) for name in set(first) - old)
EOP
HF_HOME="$tmp/hf" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" check.py 2>stderr || { cat stderr; exit 1; }
