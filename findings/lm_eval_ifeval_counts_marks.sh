#!/usr/bin/env bash
# IFEval's checks, as lm_eval has them, see marks and not what they mean: a rule is a bullet, a product is two highlights, "start" holds "art".
# Guess: two items and a line of --- below them are two bullet points; `keyword_frequency` counts words, as `forbidden_words` does; "2 * 3 * 4"
#   highlights nothing; of a reply in which no language can be told the check of its language is not passed.
# Truth (lm_eval 0.4.13): any line that begins with - is a bullet, so a Markdown rule (or a heading underlined with dashes) makes an exact count
#   of two into three, and the reply fails. Keywords are searched anywhere in the text: "We start the party." has "art" twice, fails "less
#   than 2 times", passes "at least 2 times", and names the keyword "ram" if it says program; the check of forbidden words, alone, asks for whole
#   words. "2 * 3 * 4 = 24, and 5 * 6 * 7 = 210" has two highlighted sections, and "As Section 1 and Section 2 of the law say" has two sections.
#   A reply of digits passes as Hindi, or as any language: what the detector raises at is counted as followed.
# Who: whoever takes these checks as a verifiable reward (they are copied into many trainers), where a policy finds such marks, and whoever
#   compares scores of models that write Markdown with those of models that do not.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q nltk==3.10.4 langdetect==1.0.9 immutabledict==4.3.1 packaging==26.4
"$tmp/v/bin/pip" install -q --no-deps lm-eval==0.4.13
cd "$tmp"; "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import sys
import types
from importlib.metadata import version
from importlib.util import find_spec

# The checks alone: lm_eval itself needs torch.
root = find_spec("lm_eval").submodule_search_locations[0]
for name in ("lm_eval", "lm_eval.tasks"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [root + name.removeprefix("lm_eval").replace(".", "/")]
from lm_eval.tasks.ifeval import instructions

print("lm_eval", version("lm-eval"), "langdetect", version("langdetect"))


def verdicts(kind, replies, **wanted):
    check = getattr(instructions, kind)("0")
    check.build_description(**wanted)
    found = [check.check_following(reply) for reply in replies]
    print(kind, wanted, *zip(replies, found), sep="\n  ")
    return found


items = "- one\n- two"
assert verdicts("BulletListChecker", [items, items + "\n\n---\n\nThat is all.", "Answer\n------\n" + items], num_bullets=2) == [True, False, False]
party = ["We start the party."]
assert verdicts("KeywordFrequencyChecker", party, keyword="art", frequency=2, relation="less than") == [False]
assert verdicts("KeywordFrequencyChecker", party, keyword="art", frequency=2, relation="at least") == [True]
assert verdicts("KeywordChecker", ["A program."], keywords=["ram"]) == [True]
assert verdicts("ForbiddenWords", party, forbidden_words=["art"]) == [True]
assert verdicts("HighlightSectionChecker", ["2 * 3 * 4 = 24, and 5 * 6 * 7 = 210"], num_highlights=2) == [True]
assert verdicts("SectionChecker", ["As Section 1 and Section 2 of the law say."], section_spliter="Section", num_sections=2) == [True]
assert verdicts("ResponseLanguageChecker", ["42.", "It is forty-two."], language="hi") == [True, False]
EOP
