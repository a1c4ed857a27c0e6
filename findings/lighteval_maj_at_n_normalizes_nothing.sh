#!/usr/bin/env bash
# lighteval's maj@4 of the MATH tasks is 0 for right answers, and its avg@n and pass@1 differ on the same replies.
# Guess: math:algebra and the other tasks name math_normalizer for replies and for solutions, as with exact match, so that maj@4 votes over
#   answers in \boxed{}. The average of n samples is pass@1: the estimator with k=1 is the share of right samples.
# Truth (lighteval 0.13.0): maj@n reads one option, `normalize`; the tasks set `normalize_pred` and `normalize_gold`, which are written on the metric and
#   read by nobody. Whole replies are voted on and compared with the whole worked solution: 0 for four replies that box the right answer. With
#   `normalize` it is 1, as exact match is with the tasks' own two options. The metric is named in the results with both options all the same.
#   avg@n takes strip_strings and normalize and applies neither (pass@k and maj@n apply both): "42" with a line end is right for pass@1 and wrong for avg@n.
# Who: MATH by lighteval's math:* tasks, whose only metric this is; and whoever reports avg@n beside pass@k of an exact-match task. An unknown
#   name in sample_params is taken without a word, so that a misspelt option has the same effect.
# Seen: the table below.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile lighteval==0.13.0 sacrebleu==2.6.0 torch==2.13.0 numpy==2.4.6 transformers==5.24.0 datasets==5.2.0 inspect_ai==0.3.285
cd "$tmp"; HOME="$tmp" HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
from lighteval.metrics.metrics import Metrics
from lighteval.metrics.normalizations import math_normalizer
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
from lighteval.tasks.tasks.math import math_algebra

print("lighteval", version("lighteval"))


def score(metric, doc, replies):
    (_, value), = metric.compute_sample(doc=doc, model_response=ModelResponse(text=replies)).items()
    return float(value)


line = {"problem": "What is 6 times 7?", "solution": r"Six sevens are $6 \cdot 7 = \boxed{42}$."}
doc = math_algebra.prompt_function(line, "math:algebra")
replies = [rf"{words} \boxed{{42}}." for words in ("It is", "We get", "So", "Hence")]
theirs, = math_algebra.metrics
two = {"strip_strings": True, "normalize_pred": math_normalizer, "normalize_gold": math_normalizer}
found = {"maj@4, as math:algebra has it": score(theirs, doc, replies),
         "maj@4, normalize=": score(Metrics.maj_at_n(sample_params={"n": 4, "strip_strings": True, "normalize": math_normalizer}), doc, replies),
         "maj@4, normalise= (misspelt)": score(Metrics.maj_at_n(sample_params={"n": 4, "normalise": math_normalizer}), doc, replies),
         "exact match, the task's options": score(Metrics.exact_match(sample_params=two), doc, replies[:1])}
for title, value in found.items():
    print(f"{title:32s} {value}")
assert list(found.values()) == [0, 1, 0, 1]

doc = Doc(query="", choices=["42"], gold_index=0)
for replies, expected in ((["42", "42", "41", "40"], (0.5, 0.5)), (["42\n", "42\n", "41", "40"], (0.0, 0.5)), ([" 42", " 42", "42", "42"], (0.5, 1.0))):
    params = {"n": 4, "strip_strings": True}
    got = score(Metrics.avg_at_n(sample_params=params), doc, replies), score(Metrics.pass_at_k(sample_params=params | {"k": 1}), doc, replies)
    print(f"{str(replies):32s} avg@4 {got[0]}, pass@1 of 4 {got[1]}")
    assert got == expected
EOP
