#!/usr/bin/env bash
# lighteval's chrF and TER of a whole test set are those of its first translation, against whichever reference suits it best.
# Guess: the corpus metrics BLEU, chrF, chrF++ and TER of a task, "using the sacrebleu implementation", are sacrebleu's over all translations, each
#   against its own reference; all of them see the same test set.
# Truth (lighteval 0.13.0, sacrebleu 2.6.0): BLEU is given the references as sacrebleu wants them, one list over all documents. For chrF, chrF++ and
#   TER the lists are the other way round, one for each document: sacrebleu takes them for so many references of the first document, and pairs
#   translations with references until the shorter list ends, after one. The other translations are never looked at: a model whose first
#   translation is right and whose others are empty has chrF 100 and TER 0; the first translation may also equal the reference of another
#   document. Nothing warns. The standard error, from resampling the documents, is that of a single translation.
# Who: the WMT tasks (sacrebleu.py of lighteval: metrics bleu, chrf, ter) and whatever names Metrics.chrf, chrf_plus or ter: rankings by chrF are
#   rankings by the first sentence. BLEU is right. And SuperGLUE's CB, whose mf1 is the mean over three classes of a micro-averaged F1 that
#   counts "not this class" as a class: a model that is wrong on every example has mf1 0.33, and every accuracy a becomes (1 + 2a) / 3.
# Seen: the table below.
# Known: the references in huggingface/lighteval#1112, open since January 2026; mf1 not found.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile sacrebleu==2.6.0 scikit-learn==1.9.1 numpy==2.4.6 pytablewriter==1.2.1
"$tmp/v/bin/pip" install -q --no-compile --no-deps lighteval==0.13.0
cd "$tmp"; "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import sys
import types
from importlib.metadata import version
from importlib.util import find_spec

# The corpus metrics alone: all of lighteval needs torch, of which they have the name of a type.
sys.modules["torch"] = types.ModuleType("torch")
sys.modules["torch"].Tensor = object
sys.modules["lighteval.metrics"] = types.ModuleType("lighteval.metrics")
sys.modules["lighteval.metrics"].__path__ = [find_spec("lighteval").submodule_search_locations[0] + "/metrics"]
import sacrebleu
from lighteval.metrics.metrics_corpus import CorpusLevelF1Score, CorpusLevelTranslationMetric
from lighteval.metrics.sample_preparator import GenerativePreparator, LoglikelihoodPreparator
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc

print("lighteval", version("lighteval"), "sacrebleu", version("sacrebleu"))
REFERENCES = ["The cat sat on the mat.", "All my friends live in the north.", "It will rain tomorrow."]
MODELS = {"all right": REFERENCES, "first right, others empty": [REFERENCES[0], "", ""],
          "first wrong, others right": ["Yes!", *REFERENCES[1:]], "the last one's, three times": [REFERENCES[2]] * 3}
SACREBLEU = {"chrf": sacrebleu.CHRF(), "chrf++": sacrebleu.CHRF(word_order=2), "ter": sacrebleu.TER()}


def corpus(name, translations):
    """As Metrics.chrf, chrf_plus and ter are put together."""
    samples = [GenerativePreparator.prepare(Doc(query="", choices=[reference], gold_index=0), ModelResponse(text=[text]))
               for reference, text in zip(REFERENCES, translations)]
    return round(CorpusLevelTranslationMetric(name).compute_corpus(samples), 1)


print(f"{'translations':30s}", *(f"{name + ': lighteval, sacrebleu':30s}" for name in SACREBLEU))
got = {}
for title, translations in MODELS.items():
    for name, metric in SACREBLEU.items():
        got[title, name] = corpus(name, translations), round(metric.corpus_score(translations, [REFERENCES]).score, 1)
    print(f"{title:30s}", *(f"{str(got[title, name]):30s}" for name in SACREBLEU))
for name, best in (("chrf", 100), ("chrf++", 100), ("ter", 0)):
    assert got["all right", name] == (best, best)
    for title in ("first right, others empty", "the last one's, three times"):
        assert got[title, name][0] == best and abs(got[title, name][1] - best) > 40
    theirs, real = got["first wrong, others right", name]
    assert abs(theirs - best) > 70 and abs(real - best) < 36

mf1 = CorpusLevelF1Score(average="micro", num_classes=3)  # Metrics.multi_f1_numeric, of super_glue:cb
for title, wrong in (("all right", 0), ("half right", 6), ("all wrong", 12)):
    samples = [LoglikelihoodPreparator(is_single_token=True).prepare(
        Doc(query="", choices=["a", "b", "c"], gold_index=i % 3), ModelResponse(logprobs=[float((i + (i < wrong)) % 3 == c) for c in range(3)]))
        for i in range(12)]
    value = mf1.compute_corpus(samples)
    print(f"CB, {title:10s} mf1 {value:.3f}")
    assert abs(value - (1 + 2 * (12 - wrong) / 12) / 3) < 1e-9
EOP
