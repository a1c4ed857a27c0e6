"""Judges on the command line: measured on labelled pairs, and in the place of a reward."""

import json

import numpy as np
import pytest
from chat_server import KEY
from test_align import SMALL, write_model

from experiments.benchmarks.resume import result
from pairgrpo_jax.commands import align, judge
from pairgrpo_jax.core.statistics import mean_interval
from pairgrpo_jax.training import read_metrics

pytest.importorskip("openai", reason="needs the extra judge")

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": "yes" + "!" * (i % 4), "rejected": "no" + "?" * (i % 3), "answer": str(i)}
    for i in range(24)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, labelled pairs, rubrics, and judges of one's own."""
    folder = tmp_path_factory.mktemp("judge")
    write_model(folder / "model")
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (folder / "one.txt").write_text("{prompt} {a}")
    (folder / "answer.txt").write_text("{prompt} ({answer})\nA: {a}\nB: {b}\n")
    (folder / "unknown.txt").write_text("{prompt} ({anser})\nA: {a}\nB: {b}\n")
    (folder / "mine.py").write_text(
        "def longer(prompt, a, b):\n    return None if len(a) == len(b) else int(len(b) > len(a))\n"
        "def first(prompt, a, b):\n    return 0\n"
        "def broken(prompt, a, b):\n    raise OSError('no line')\n"
        "seen = []\n"
        "def once(prompt, a, b):\n"
        "    seen.append(prompt)\n"
        "    return int(b.startswith('yes')) if prompt == seen[0] else None\n"
        "def shorter(prompt, a, b):\n    return len(a) < len(b)\n"
        "def two(a, b):\n    return 0\n"
        "number = 3\n"
    )
    judged = "def longer(prompt, a, b):\n    return None if len(a) == len(b) else int(len(b) {} len(a))\n"
    (folder / "longerer.py").write_text(judged.format(">"))
    (folder / "shorterer.py").write_text(judged.format("<"))
    (folder / "torn.py").write_text("x = 1\ndef judge(:\n")
    (folder / "unnamed.py").write_text("x = 1\ny = z\n")
    (folder / "wanting.py").write_text("import no_such_package\n")
    return folder


@pytest.fixture
def at(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def measured(at, run_here, *words, output="out"):
    done = run_here(judge.main, "--data", "pairs.jsonl", *words, "--output", output)
    path = at / output / "figures.json"
    return done, json.loads(path.read_text()) if path.exists() else {}


def test_a_judge_of_length_is_measured(at, run_here, served):
    state = served()
    done, found = measured(at, run_here, "--judge", "judge:openai:m", "--pairs", "24", "--judge-prices", "1", "10")
    assert done.returncode == 0, done.stderr
    gaps = np.array([len(row["chosen"]) - len(row["rejected"]) for row in PAIRS])
    right = np.where(gaps > 0, 1.0, np.where(gaps < 0, 0.0, 0.5))
    figures = found["figures"]
    assert figures["agreement"]["share"] == pytest.approx(right.mean()) and figures["agreement"]["count"] == 24
    np.testing.assert_allclose(figures["agreement"]["interval"], mean_interval(right))
    assert figures["ties"]["share"] == pytest.approx((gaps == 0).mean()) and figures["flips"]["share"] == 0
    assert figures["agreement_decided"]["count"] == (gaps != 0).sum() and figures["longer"]["share"] == 1
    assert figures["longer_labels"]["share"] == pytest.approx((gaps > 0)[gaps != 0].mean())
    assert figures["first"]["share"] == 0.5 and found["failed"] == 0
    assert figures["first"]["interval"] == [0.5, 0.5], "over pairs, each of which it judges alike in both orders"
    assert figures["first"]["count"] == (gaps != 0).sum()
    assert len(state.requests) == 49 and found["judge_cost"] == pytest.approx(
        48 * (100 + 50) / 1e6
    )  # one to see it is up
    assert "48 questions" in done.stdout and (at / "out" / "table.md").read_text().count("\n") == 10
    again, _ = measured(at, run_here, "--judge", "judge:openai:m", "--pairs", "24")
    assert again.returncode == 0 and len(state.requests) == 49, "all is known"
    words = "".join(path.read_bytes().decode("latin1") for path in (at / "out").iterdir())
    assert KEY not in words + done.stdout + done.stderr


def test_a_judge_of_the_first_place_flips_always(at, run_here):
    done, found = measured(at, run_here, "--judge", "judge:mine:first", "--pairs", "10", output="first")
    figures = found["figures"]
    assert done.returncode == 0 and figures["flips"]["share"] == figures["ties"]["share"] == 1
    assert figures["first"]["share"] == 1 and figures["agreement"]["share"] == 0.5
    assert figures["agreement_decided"]["share"] is None and figures["agreement_one_order"]["share"] == 0.5


def test_a_rubric_is_given_the_columns(at, run_here, served):
    state = served()
    words = ["--judge", "judge:openai:m", "--rubric", "answer.txt", "--pairs", "6"]
    done, _ = measured(at, run_here, *words, output="columns")
    assert done.returncode == 0, done.stderr
    assert any("Question 4? (4)" in question for question in state.questions)


def test_pairs_without_a_verdict_are_counted(at, run_here):
    done, found = measured(
        at, run_here, "--judge", "judge:mine:broken", "--retries", "0", "--pairs", "4", output="none"
    )
    assert done.returncode == 1 and "no verdict on any of 4 pairs" in done.stderr and found["failed"] == 4
    assert "| - | 0 |" in (at / "none" / "table.md").read_text(), "of this run, as the figures are"


def test_a_judge_of_bools_is_refused_at_its_first_answer(at, run_here):
    done, found = measured(at, run_here, "--judge", "judge:mine:shorter", "--pairs", "4", output="bools")
    assert done.returncode == 2 and not found and len(done.stderr.splitlines()) == 1
    assert "shorter cannot be used: return 0 for a, 1 for b, None for a tie, not " in done.stderr


def test_figures_are_strict_json(at, run_here):
    done, found = measured(at, run_here, "--judge", "judge:mine:once", "--pairs", "4", output="strict")
    assert done.returncode == 0 and found["figures"]["agreement_decided"]["count"] == 1
    assert found["figures"]["agreement_decided"]["interval"] == [None, None]
    assert "NaN" not in (at / "strict" / "figures.json").read_text()


def test_a_judge_of_another_name_is_asked_anew(at, run_here):
    for name in ("longer", "shorter"):
        done, _ = measured(at, run_here, "--judge", f"judge:{name}er:longer", "--pairs", "10", output="shared")
        assert done.returncode == 0 and "20 questions (0 more known" in " ".join(done.stdout.split())


BAD = [
    (["--judge", "mine:longer"], "must be judge:openai:MODEL or judge:module:function"),
    ([], "must be judge:openai:MODEL"),
    (["--judge", "judge:mine:missing"], "error: judge: cannot import 'mine:missing'"),
    (["--judge", "judge:torn:judge"], "judge: cannot import 'torn:judge': SyntaxError: invalid syntax ("),
    (["--judge", "judge:mine"], "error: judge: 'mine' must be module:function"),
    (["--judge", "judge:mine:longr"], "cannot import 'mine:longr': there is no 'longr' in mine; did you mean longer?"),
    (["--judge", "judge:mine:judge"], "there is no 'judge' in mine; it has longer, first, broken, once, shorter, two"),
    (["--judge", "judge:mine.py:longer"], "name the module, not its file: mine:longer; modules are looked for in /"),
    (["--judge", "judge:./mine.py:longer"], "name the module, not its file: mine:longer; "),
    (["--judge", "judge:../x/mine.py:longer"], "name the module, not its file: mine:longer; "),
    (["--judge", "judge:/x/mine.py:longer"], "name the module, not its file: mine:longer; "),
    (["--judge", "judge:tools/mine.py:longer"], "name the module, not its file: tools.mine:longer; "),
    (["--judge", "judge:nomodule:f"], "No module named 'nomodule'; modules are looked for in /"),
    (["--judge", "judge:mine:two"], "two must take (prompt, a, b) first, by position"),
    (["--judge", "judge:torn:judge"], "torn.py:2)"),
    (["--judge", "judge:unnamed:judge"], "judge: cannot import 'unnamed:judge': NameError: name 'z' is not defined ("),
    (["--judge", "judge:unnamed:judge"], "unnamed.py:2)"),
    (["--judge", "judge:wanting:judge"], "wanting.py:1)"),
    (["--judge", "judge:mine:number"], "error: judge: 'mine:number' is no function, but int 3"),
    (["--judge", "judge:mine:longer", "--rubric", "one.txt"], "--rubric is no option here"),
    (["--judge", "judge:openai:m", "--rubric", "one.txt"], "one.txt has no {b}"),
    (["--judge", "judge:openai:m", "--rubric", "nowhere.txt"], "nowhere.txt cannot be read"),
    (["--judge", "judge:openai:m", "--rubric", "unknown.txt"], "judge: it asks for a column 'anser'; did you mean"),
    (["--judge", "judge:openai:m", "--pairs", "1"], "pairs must be >= 2"),
    (["--judge", "judge:openai:m", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(at, run_here, served, words, message):
    served()
    done = run_here(judge.main, "--data", "pairs.jsonl", *words, "--output", "bad")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (at / "bad").exists()


ALIGN = ["soft", "--model", "model", "--data", "pairs.jsonl", *SMALL.split(" --evaluation")[0].split(), "--shown", "2"]
ALIGN += ["--judge", "", "--candidates", "4", "--iterations", "3", "--no-export", "--reward", "judge:openai:m"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rubric", "one.txt"], "one.txt has no {b}"),
        (["--reward", "mine:number"], "reward: 'mine:number' is no function, but int 3"),
        (["--reward", "torn:judge"], "SyntaxError: invalid syntax ("),
        (["--rubric", "unknown.txt"], "did you mean 'answer'"),
        (["--comparisons", "sorted"], "did you mean sort?"),
        (["--comparisons", "7"], "comparisons=7 must be in [1, 6]"),
        (["--comparisons", "disjoint", "--candidates", "3"], "even number of candidates"),
        (["--judge-concurrency", "0"], "judge_concurrency must be >= 1"),
        (["--reward", "rewards:vowels", "--comparisons", "sort"], "--comparisons is no option here"),
        (["--reward", "judge:mine:longer", "--judge-tokens", "3"], "--judge-tokens is no option here"),
    ],
)
def test_bad_input_of_a_run_is_one_line_and_writes_nothing(at, run_here, served, words, message):
    served()
    done = run_here(align.main, *ALIGN, *words, "--output", "bad")
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    assert not (at / "bad").exists()


@pytest.mark.parametrize("trouble", [401, 500, "hang up", "key"])
def test_a_judge_that_is_down_is_known_before_anything_is_computed(at, run_here, served, monkeypatch, trouble):
    served(*([] if trouble == "key" else [trouble]), echo=True)
    if trouble == "key":
        monkeypatch.delenv("OPENAI_API_KEY")
    done = run_here(align.main, *ALIGN, "--output", "bad")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and KEY not in done.stderr
    assert ("OPENAI_API_KEY" if trouble == "key" else "judge m: http://127.0.0.1") in done.stderr
    assert not (at / "bad").exists()


@pytest.mark.slow
@pytest.mark.parametrize("comparisons", ["all", "sort", "4"])
def test_a_judge_that_dies_in_mid_batch_costs_nothing_twice(at, run_here, served, comparisons):
    words = [*ALIGN, "--comparisons", comparisons, "--reward-retries", "0", "--save-every", "100"]
    whole = served()
    done = run_here(align.main, *words, "--output", f"whole-{comparisons}")
    assert done.returncode == 0, done.stderr
    asked = len(whole.requests) - 1
    rows = read_metrics(at / f"whole-{comparisons}")
    assert sum(row["judge_questions"] for row in rows) == asked and rows[0]["judge_prompt_tokens"] > 0
    first = served(*["good"] * (1 + asked // 2), 500)
    done = run_here(align.main, *words, "--output", f"died-{comparisons}", "--judge-concurrency", "1")
    assert done.returncode == 1 and "openai:m failed" in done.stderr and "batch " in done.stderr
    second = served()
    done = run_here(align.main, *words, "--output", f"died-{comparisons}", "--resume")
    assert done.returncode == 0, done.stderr
    assert not set(first.questions[1 : 1 + asked // 2]) & set(second.questions)
    assert len(second.requests) == asked - asked // 2

    def plain(output):
        rows, *rest = result(output)
        return [{k: v for k, v in row.items() if not k.startswith("judge_")} for row in rows], rest

    assert plain(at / f"died-{comparisons}") == plain(at / f"whole-{comparisons}")
    for path in (at / f"died-{comparisons}").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
