"""The alignment command lines as a user meets them, on a tiny model with a tokenizer of bytes."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from datetime import date, timedelta

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from byte_model import TEMPLATE, write_model
from safetensors.numpy import load_file

from experiments import paper_tables
from experiments.benchmarks.resume import result
from pairgrpo_jax.commands import align, align_data, evaluate, paper, reward_model
from pairgrpo_jax.commands.align_results import about_replies, score_of
from pairgrpo_jax.commands.align_settings import SUMS, Judging, Run, judge_of, preset
from pairgrpo_jax.commands.stored import read_stored
from pairgrpo_jax.core.statistics import length_controlled_rate, mean_interval
from pairgrpo_jax.lm import Policy, load_model
from pairgrpo_jax.lm.alignment import Placement, encode_pairs, tuned
from pairgrpo_jax.lm.data import first_turn, fold_of, load_preferences, split_by_first_turn
from pairgrpo_jax.lm.files import tokenizer
from pairgrpo_jax.lm.files.peft import load_peft
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.quantized import dequantized
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.lm.rewards.reward_model import DEFAULT, RewardHead, init_head, reward, save_head
from pairgrpo_jax.training import NonFiniteError, read_metrics

SMALL = (
    "--prompts 2 --candidates 2 --prompt-tokens 64 --completion-tokens 6 --lora-rank 2 --iterations 6 --save-every 2"
)
SMALL += " --evaluation-prompts 2 --evaluation-samples 2 --shown 2 --judge head.safetensors"
ARGUMENTS = ["--model", "model", "--data", "pairs.jsonl", "--reward", "rewards:vowels", *SMALL.split()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a model, data and reward functions."""
    folder = tmp_path_factory.mktemp("align")
    write_model(folder / "model", template="{{ strftime_now('%Y-%m-%d') }}" + TEMPLATE)
    rows = [{"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"question": f"Question {i}?", "answer": f"maybe {i}"} for i in range(20)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    weight = jax.random.normal(jax.random.key(1), (32,))
    save_head(RewardHead(weight, jnp.zeros(()), DEFAULT), folder / "head.safetensors", model="model")
    (folder / "rewards.py").write_text(
        "calls = []\n"
        "def late(prompts, completions):\n"
        "    calls.append(1)\n"
        "    return 1 / 0 if len(calls) == 4 else vowels(prompts, completions)\n"
        "def vowels(prompts, completions):\n"
        "    return [[float(sum(x in 'aeiou' for x in text)) for text in group] for group in completions]\n"
        "def worse(prompts, completions):\n"
        "    calls.append(1)\n"
        "    return [[-float(len(calls))] * len(group) for group in completions]\n"
        "def right(prompts, completions, answer):\n"
        "    assert [p[-1]['content'][9:-1] for p in prompts] == [a[6:] for a in answer]\n"
        "    return vowels(prompts, completions)\n"
        "def wrong(prompts, completions, answr):\n"
        "    return vowels(prompts, completions)\n"
        "def longer(prompt, a, b):\n"
        "    return int(len(b) > len(a))\n"
        "def broken(prompts, completions):\n"
        "    raise KeyError('nothing')\n"
    )
    return folder


def command(workplace, *words):
    return [sys.executable, "-m", "experiments.align", "hard", *ARGUMENTS, *map(str, words)]


def environment():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return os.environ | {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}


def run(workplace, *words):
    words = command(workplace, *words)
    return subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=workplace, env=environment())


@pytest.fixture(scope="module")
def finished(workplace):
    done = run(workplace, "--output", "whole")
    assert done.returncode == 0, done.stderr
    return workplace / "whole", done.stdout


@pytest.mark.slow
def test_leaves_what_it_says(finished):
    output, words = finished
    rows = read_metrics(output)
    assert len(rows) == 6 and len(rows[0]["grad_norm"]) == 2 and "score" in rows[-1]
    names = {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "replies.md", "model", "adapter", "done"}
    assert names | {"report.html", "replies.json"} <= {path.name for path in output.iterdir()}
    page = (output / "replies.md").read_text()
    assert page.count("before") == 2 and page.count("after") == 2 and "Question" in page
    assert "After 6 of 6 batches" in page and "scored by head.safetensors" in page
    assert len(rows[-1]["wins"]) == 2 and rows[-1]["win_rate"] == np.mean(rows[-1]["wins"])
    held_out = "held_out/rewards:vowels"
    assert rows[-1]["score"] == rows[-1][held_out] == pytest.approx(np.mean(rows[-1][f"{held_out}/each"]))
    assert rows[-1][f"{held_out}/low"] <= rows[-1][held_out] <= rows[-1][f"{held_out}/high"]
    assert rows[-1][f"{held_out}/failed"] == 0 and "held-out rewards:vowels" in words
    assert all(row["reward/rewards:vowels"] == row["reward"] for row in rows)
    assert rows[-1]["kl_reference"] != 0 and "held-out proxy-RM win rate over the start" in words
    assert "tokens/s" in words and "held out" in words
    models = [
        load_model(folder / "model").params["layers"]["attn"]["q"]["kernel"] for folder in (output.parent, output)
    ]
    assert np.abs(models[0] - models[1]).max() > 0


@pytest.mark.slow
def test_a_finished_run_exports_its_best_checkpoint(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    words = [*ARGUMENTS, "--evaluations", "3", "--reward", "rewards:worse=1", "--output", "best", "--quantize", "nf4"]

    def adapters():
        leaves = load_file(workplace / "best" / "adapter" / "adapter_model.safetensors").values()
        return sorted(float(np.abs(x).sum()) for x in leaves)

    def stored(step):
        state = ocp.StandardCheckpointer().restore(workplace / "best" / "checkpoints" / str(step) / "state")
        return sorted(float(np.abs(x).sum()) for x in jax.tree.leaves(state["params"]["lora"]))

    assert run_here(align.main, "hard", *words).returncode == 0
    np.testing.assert_allclose(adapters(), stored(6), rtol=1e-6)
    done = run_here(align.main, "hard", *words, "--resume", "--exported", "best")
    assert done.returncode == 0 and "exporting the best checkpoint, after 2 of 6 batches" in done.stdout, done.stderr
    np.testing.assert_allclose(adapters(), stored(2), rtol=1e-6)
    coded = load_model(workplace / "model", quantize="nf4")
    how, trained = load_peft(workplace / "best" / "adapter", coded.config)
    merged = lora.merge(how, dequantized(coded.params), trained)
    exported = load_model(workplace / "best" / "model").params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), exported, merged)
    done = run_here(align.main, "hard", *words, "--no-export", "--exported", "best")
    assert done.returncode == 2 and "exported='best' has no effect with --no-export" in done.stderr


@pytest.mark.slow
def test_killed_and_resumed_is_identical(workplace, finished, only_read_programs):
    output = workplace / "killed"
    process = subprocess.Popen(command(workplace, "--output", output), cwd=workplace, env=environment())
    while len(read_metrics(output)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(workplace, "--output", output, "--resume").returncode == 0
    assert result(output) == result(finished[0])


@pytest.mark.slow
def test_a_failing_reward_saves_and_names_the_batch(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    words = [*ARGUMENTS, "--reward", "rewards:broken"]
    done = run_here(align.main, "hard", *words, "--output", "broken")
    assert done.returncode == 1 and "batch 1: broken failed: KeyError: 'nothing'; mend it" in done.stderr
    done = run_here(align.main, "hard", *words, "--reward-on-error", "skip", "--output", "skipped")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(workplace / "skipped")
    assert all(row["failed_groups"] == 2 for row in rows)
    assert np.isnan(rows[-1]["score"]) and rows[-1]["win_rate"] >= 0 and "no score: the reward failed" in done.stdout
    assert "12 of 12 groups had no usable verdict and were left out" in done.stdout


@pytest.mark.slow
def test_a_failure_in_the_middle_loses_nothing_nor_does_a_night(workplace, finished, monkeypatch, run_here):
    """The chat template prints the date: the run that goes on a day later is the one that did not stop."""
    monkeypatch.chdir(workplace)
    began = date.fromisoformat(stored(finished[0])["chat"]["template_date"])
    monkeypatch.setattr(tokenizer, "date", types.SimpleNamespace(today=lambda: began))
    monkeypatch.delitem(sys.modules, "rewards", raising=False)  # late counts its calls
    words = [*ARGUMENTS, "--reward", "rewards:late=0.25,rewards:vowels=0.75", "--save-every", "100", "--no-export"]
    done = run_here(align.main, "hard", *words, "--output", "late")
    assert done.returncode == 1 and "batch 4: late failed: ZeroDivisionError" in done.stderr
    assert len(read_metrics(workplace / "late")) == 3
    monkeypatch.setattr(tokenizer, "date", types.SimpleNamespace(today=lambda: began + timedelta(days=1)))
    done = run_here(align.main, "hard", *words, "--output", "late", "--resume", "--reward-on-error", "skip")
    assert done.returncode == 0 and "after 3 of 6 iterations" in done.stdout, done.stderr
    assert unnamed(result(workplace / "late")) == unnamed(result(finished[0]))
    assert stored(workplace / "late")["chat"]["template_date"] == str(began)
    done = run_here(align.main, "hard", *words, "--output", "late", "--resume", "--template-date", "2020-02-29")
    assert done.returncode == 2 and "template_date" in done.stderr, done.stderr


def stored(output):
    return json.loads((output / "config.json").read_text())


def unnamed(found):
    """A run's result without the figures that carry the names of its rewards."""
    rows, *rest = found
    return [{n: x for n, x in row.items() if not n.startswith(("reward/", "held_out/"))} for row in rows], *rest


@pytest.mark.slow
def test_evaluate_compares_two_models(workplace, finished, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    words = "--b model --reference model --judge head.safetensors --data pairs.jsonl --prompts 2 --samples 2"
    words = [*words.split(), "--completion-tokens", "6", "--output", "figures.json"]
    assert run_here(evaluate.main, "--a", "model", *words).returncode == 0
    same = json.loads((workplace / "figures.json").read_text())["figures"]
    assert same["wins"] == [0.5, 0.5] and abs(same["kl_reference"]) < 1e-4 and same["implicit_accuracy"] == 0.5
    done = run_here(evaluate.main, "--a", "whole", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((workplace / "figures.json").read_text())
    assert abs(found["figures"]["kl_reference"]) > 1e-4 and found["figures"]["prompts"] == len(found["replies"]) == 2
    trained = read_metrics(finished[0])[-1]  # the run's own evaluation: the same prompts, keys and judge
    assert found["figures"]["wins"] == trained["wins"]
    np.testing.assert_allclose(found["figures"]["kl_reference"], trained["kl_reference"], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_offline_on_all_devices_judges_as_many_pairs_as_it_was_told(workplace, monkeypatch, run_here, method):
    monkeypatch.chdir(workplace)
    words = ["--evaluation-pairs", "3", "--no-export", "--output", f"offline-{method}"]
    words += ["--mesh", "fsdp", "--prompts", "8", "--quantize", "int8" if method == "kto" else "none"]
    offline = [word for word in ARGUMENTS if word not in ("--reward", "rewards:vowels")]
    offline = offline[: offline.index("--candidates")] + offline[offline.index("--candidates") + 2 :]
    done = run_here(align.main, method, *offline, *words)
    assert done.returncode == 0 and "implicit-reward accuracy" in done.stdout, done.stderr
    assert len(read_metrics(workplace / f"offline-{method}")[-1]["implicit_margins"]) == 3


EASY = "reasoning-gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"


def test_problems_of_a_generator_with_several_rewards(workplace, monkeypatch, run_here):
    """Bytes of "6" and the like are often right by chance; what is measured is that all figures fit together."""
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra: rewards)")
    monkeypatch.chdir(workplace)
    words = [*ARGUMENTS, "--data", EASY, "--prompt-tokens", "96", "--iterations", "2", "--judge", ""]
    words += ["--reward", r"verify:own,rewards:vowels=0.5,verify:format=[0-9]{1,3}=0.25", "--evaluation-prompts", "6"]
    done = run_here(align.main, "grpo", *words, "--no-export", "--output", "gym")
    assert done.returncode == 0, done.stderr
    assert "endless, 6 problems held out" in done.stdout and "held-out verify:own" in done.stdout
    first, last = read_metrics(workplace / "gym")
    names = ("verify:own", "rewards:vowels", "verify:format")
    parts = [first[f"reward/{name}"] for name in names]
    assert first["reward"] == pytest.approx(np.dot(parts, [1, 0.5, 0.25]), abs=1e-6)
    assert last["score"] == last["held_out/verify:own"] == last["held_out/verify:own/pass@1"]
    assert last["held_out/verify:format/pass@2"] >= last["held_out/verify:format/pass@1"]
    assert {"kl_reference", "reply_tokens"} <= set(last) and "win_rate" not in last
    assert (workplace / "gym" / "replies.md").read_text().count("after, reward") == 2
    words = ["--model", "model", "--data", EASY, "--reward", "verify:own", "--a", "model", "--b", "model"]
    words = [*words, "--reference", "model", "--prompts", "6", "--samples", "2", "--completion-tokens", "6"]
    done = run_here(evaluate.main, *words[2:], "--prompt-tokens", "96", "--output", "gym.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((workplace / "gym.json").read_text())["figures"]
    assert found["held_out/verify:own"] == found["held_out/verify:own/rival"] == last["held_out/verify:own/rival"]


def test_without_a_reward_or_a_head_nothing_is_scored(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    words = ["--model", "model", "--data", "pairs.jsonl", *SMALL.split(" --evaluation")[0].split(), "--shown", "2"]
    words += ["--reward", "judge:rewards:longer", "--judge", "", "--iterations", "1", "--no-export"]
    done = run_here(align.main, "soft", *words, "--output", "unscored")
    assert done.returncode == 0, done.stderr
    assert np.isnan(read_metrics(workplace / "unscored")[-1]["score"]) and "score 0" not in done.stdout
    assert "no score: not measured, as nothing scores held-out replies; a head does" in done.stdout
    page = (workplace / "unscored" / "report.html").read_text()
    assert "Replies are sampled, cut at 6 tokens.<" in page and "<svg" in page and ">score<" not in page
    row = paper.table(paper.rows_of([run for run in read_stored(workplace / "unscored")[0]]))[1]
    assert row[:2] == ("soft", "not measured")


def test_a_run_that_has_no_score_has_no_best(workplace):
    run = preset("soft", ["--reward", "judge:rewards:longer"]).replace(model="mine")
    for name, value in (("evaluation_prompts", 500), ("evaluation_samples", 64)):
        for silent in (run, preset("dpo").replace(model="mine"), preset("dpo").replace(judge="")):
            with pytest.raises(ValueError, match=f"{name}={value} has no effect where nobody scores replies"):
                silent.replace(**{name: value})
            assert silent.replace(judge="harmless-b", **{name: value}).judge == "harmless-b"
    with pytest.raises(ValueError, match=r"exported='best': .* no checkpoint is the best; name a held-out head"):
        run.replace(exported="best")
    for scored in (run.replace(judge="harmless-b"), run.replace(sft_iterations=1), preset("dpo").replace(model="mine")):
        assert scored.replace(exported="best").exported == "best"
    assert align_data.evaluated(run) == 32 and align_data.evaluated(run.replace(shown=99)) == 99
    assert align_data.evaluated(preset("grpo").replace(shown=99)) == 32


def test_who_scores_the_replies_that_are_shown_is_said():
    for judge, words in (("", "tokens."), ("harmless-b", "tokens, and scored by harmless-b.")):
        run = preset("soft", ["--reward", "judge:rewards:longer"]).replace(judge=judge)
        assert about_replies(run).endswith(words)
    assert about_replies(preset("soft", ["--reward", "mine:f"]).replace(judge="")).endswith("scored by mine:f.")


def test_a_batch_of_more_rows_than_there_are_is_told(workplace, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.chdir(workplace)

    def told(method, count):
        run = preset(method, ["--reward", "mine:f"]).replace(model="model", data="pairs.jsonl", prompts=count)
        align_data.read_data(run, model, None, Console(quiet=True))
        return capsys.readouterr().err

    model = align_data.load(Run(model="model"), Placement())
    many = 20 - len(split_by_first_turn(load_preferences("pairs.jsonl").rows)[1])
    for method, what in (("hard", "prompts"), ("dpo", "pairs")):
        assert not told(method, many)
        warning = f"warning: pairs.jsonl: {many} {what} to train on, and a batch takes {many + 1} (--prompts)"
        assert warning in told(method, many + 1)


def test_an_option_of_other_methods_is_told_to_be_theirs(run_here):
    done = run_here(align.main, "dpo", "--candidates", "4")
    assert done.returncode == 2
    assert "--candidates is a setting of grpo, rank, ppo, soft, hard and has no effect here" in done.stderr


def test_rows_whose_answer_cannot_be_read_are_counted(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    rows = [{"prompt": f"{i} + 1 =", "answer": i + 1 if i % 2 else "many"} for i in range(20)]
    (workplace / "sums.jsonl").write_text("\n".join(map(json.dumps, [{**r, "answer": str(r["answer"])} for r in rows])))
    words = [*ARGUMENTS, "--data", "sums.jsonl", "--reward", "verify:number", "--judge", "", "--iterations", "1"]
    done = run_here(align.main, "grpo", *words, "--no-export", "--output", "sums")
    assert done.returncode == 0 and "dropped 10: 10 unreadable answer" in done.stdout, done.stderr
    done = run_here(align.main, "grpo", *words, "--reward", "verify:choice", "--output", "bad")
    assert done.returncode == 2 and "sums.jsonl: no answer that verify:choice can read" in done.stderr


@pytest.mark.slow
def test_columns_of_the_data_reach_the_reward_after_a_stop_too(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    monkeypatch.delitem(sys.modules, "rewards", raising=False)  # late counts its calls
    words = [*ARGUMENTS, "--data", "questions.jsonl", "--prompt-column", "question", "--system", "Be brief."]
    words += ["--reward", "rewards:right=1,rewards:late=0", "--no-export", "--output", "columns"]
    assert run_here(align.main, "hard", *words).returncode == 1  # rewards:late fails in batch 3
    done = run_here(align.main, "hard", *words, "--resume", "--reward-on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert len(read_metrics(workplace / "columns")) == 6
    assert "**system**: Be brief." in (workplace / "columns" / "replies.md").read_text()


BAD = [
    (["--reward", "verify:numbr"], "verify:numbr is unknown; did you mean verify:number?"),
    (["--reward", "verify:own"], "it needs --data reasoning-gym:NAME"),
    (["--reward", "verify:number"], "no column 'answer', which the reward asks for"),
    (["--reward", "verify:format=("], "is no regular expression"),
    (["--data", "reasoning-gym:chain_sums"], "did you mean 'chain_sum'?"),
    (["--data", "reasoning-gym:chain_sum?max_digit=1"], "no option 'max_digit'; did you mean 'max_digits'?"),
    (["--sft-iterations", "1", "--data", "reasoning-gym:chain_sum"], "holds no preference pairs"),
    (["--split", "test", "--data", "reasoning-gym:chain_sum"], "split='test' has no effect with reasoning-gym:NAME"),
    (["--prompt-column", "q", "--data", "reasoning-gym:chain_sum"], "prompt_column='q' has no effect"),
    (["--evaluation-pairs", "9", "--data", "reasoning-gym:chain_sum"], "evaluation_pairs=9 has no effect"),
    (["--reward", "rewards:wrong"], "pairs.jsonl:1: no column 'answr', which the reward asks for; there are chosen"),
    (["--data", "questions.jsonl"], "if 'question' holds the prompt: --prompt-column question"),
    (["--prompt-column", "promt"], "no column 'promt' (--prompt-column); did you mean 'prompt'?"),
    (["grpo-offline"], "method 'grpo-offline' is unknown"),
    (["dpo", "--temperature", "2"], "--reward is a setting of grpo, rank, ppo, soft, hard and has no effect here"),
    (["soft", "--comparisons", "sort"], "--comparisons is no option here; --help lists the options"),
    (["--candidates", "3", "--scheme", "matched"], "candidates=3 must be even"),
    (["--iterations", "0"], "iterations must be >= 1"),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--data", "nowhere.jsonl", "--reward", "harmless-a"], "nowhere.jsonl: no such file or folder"),
    (["--reward", "harmless-a"], "gives 32; fit one on it"),
    (["--reward", "harmless-a"], "(the head is harmless-a, which is the default of --reward)"),
    (["--reward", "judge:rewards:longer", "--judge", "", "--exported", "best"], "evaluation_prompts=2 has no effect"),
    (["--reward", "rewards:missing"], "reward: cannot import 'rewards:missing'"),
    (["grpo", "--reward", "judge:rewards:vowels"], "a judge gives pairs"),
    (["--prompt-tokens", "3"], "prompt_tokens=3: none of"),
    (["--judge", "nowhere"], "nowhere"),
    (["--judge", "harmless-b"], "head: made for 1152 features, and this model gives 32"),
    (["--reward", "head.safetensors"], "is the reward itself"),
    (["--reward", "rewards:vowels=much"], "weights must be numbers"),
    (["--quantize", "int4"], "quantize"),
    (["--lora-targets", "q", "--lora-rank", "0"], "lora_targets=('q',) has no effect with lora_rank=0"),
    (["--quantize", "int8", "--lora-rank", "0"], "quantize='int8' has no effect with lora_rank=0"),
    (["--operands", "bfloat16", "--dtype", "bfloat16"], "operands='bfloat16' has no effect with dtype='bfloat16'"),
    (["--lora-targets", "nose"], "targets: llama has no linear layers ['nose']"),
    (["--reward", "judge:rewards:vowels", "--comparisons", "disjoint", "--candidates", "3"], "even"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(workplace, monkeypatch, run_here, words, message):
    monkeypatch.chdir(workplace)
    method, words = ("hard", words) if words[0].startswith("-") else (words[0], words[1:])
    done = run_here(align.main, method, *ARGUMENTS, *words, "--output", "bad")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("program: error: ") and message in done.stderr
    assert not (workplace / "bad").exists()


@pytest.mark.parametrize("width", [80, 120])
def test_help_has_no_line_that_ends_before_it_is_full(run_here, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [line.strip("│").rstrip() for line in run_here(align.main, "hard", "--help").stdout.splitlines()]
    both = [(a, b) for a, b in itertools.pairwise(lines) if a.startswith(20 * " ") and b.startswith(20 * " ")]
    assert len(both) > 20 and not [a for a, b in both if len(f"{a} {b.split()[0]}") < width - 3]


@pytest.mark.parametrize("text", ["[]", "{", '{"config": {"method": {}}}'])
def test_a_damaged_run_is_named(tmp_path, run_here, text):
    (tmp_path / "config.json").write_text(text)
    done = run_here(align.main, "hard", "--resume", "--output", tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"{tmp_path / 'config.json'}: these are no settings of a run" in done.stderr


@pytest.mark.parametrize("main", [align.main, reward_model.main])
def test_a_folder_that_is_taken_is_refused_before_anything_is_loaded(tmp_path, run_here, main):
    (tmp_path / "config.json").write_text("{}")
    done = run_here(main, "--model", "nowhere", "--output", tmp_path)
    assert done.returncode == 2 and f"output: {tmp_path} holds another run: add --resume" in done.stderr


def test_intervals_and_length_control():
    rng = np.random.default_rng(0)
    wins = (rng.random(400) < 0.6).astype(float)
    low, high = mean_interval(wins)
    assert low < wins.mean() < high and high - low < 0.12
    longer = rng.normal(size=4000)
    wins = (rng.random(4000) < 1 / (1 + np.exp(-3 * np.tanh(longer) - 0.0))).astype(float)
    assert abs(length_controlled_rate(wins, longer + 1) - 0.5) > 0.1  # the longer side of an even match
    assert length_controlled_rate(wins, longer) == pytest.approx(0.5, abs=0.04)
    assert length_controlled_rate(np.array([1, 1, 0.5]), np.zeros(3)) > 0.6


def test_what_differs_between_the_updates_on_a_batch_is_no_noise():
    rows = [{"grad_norm": [1.0, 3.0]} for _ in range(9)] + [{"grad_norm": [1.0, float("nan")]}]
    kept = paper_tables.updates(rows, "grad_norm", 8)
    assert kept.tolist() == [[1.0] * 4, [3.0] * 4] and paper_tables.updates(rows, "grad_norm", 10**9).size == 18
    assert paper_tables.noise_variance(kept).tolist() == [0, 0]
    assert paper_tables.updates([{}], "grad_norm", 8).size == 0


def test_an_unknown_method_of_the_tables_is_named(tmp_path, run_here):
    done = run_here(paper_tables.main, "--methods", "soft-ofline", "--output", tmp_path)
    assert done.returncode == 2 and "methods: 'soft-ofline' is unknown" in done.stderr


def test_a_wrong_option_of_the_tables_is_one_line(tmp_path, run_here):
    done = run_here(paper_tables.main, "--method", "soft", "--output", tmp_path)
    assert (
        done.returncode == 2 and done.stderr == "program: error: --method is no option here; did you mean --methods?\n"
    )


def test_a_method_of_the_tables_can_name_its_learning_rate():
    configs = [paper_tables.config_of(f"{label}@3e-4") for label in ("soft", "hard-offline")]
    assert [config.optimizer.learning_rate for config in configs] == [3e-4, 3e-4]
    assert [config.online for config in configs] == [True, False]
    assert paper_tables.config_of("soft").optimizer.learning_rate == 1e-4
    paper = paper_tables.paper_of("hard@1e-4")
    assert paper is not None and paper.harmless == 85.7


def test_a_diverged_cell_does_not_stop_the_others(tmp_path, monkeypatch, run_here):
    made = []

    def complete(program, run, title, console):
        made.append((title, run.reward))
        if "soft" in title:
            raise NonFiniteError("too many")
        return 0

    monkeypatch.setattr(paper_tables, "complete", complete)
    monkeypatch.setattr(paper_tables, "report", lambda args, console: None)
    words = "--methods soft hard --domains helpful --data tiny-helpful --no-ablations --heads mine --output".split()
    done = run_here(paper_tables.main, *words, tmp_path)
    assert done.returncode == 1 and "helpful, soft, seed 0 has diverged: too many" in done.stdout
    head = "mine/helpful-a.safetensors"
    assert made == [("helpful, soft, seed 0", head), ("helpful, hard, seed 0", head)]


def test_the_held_out_judge_is_the_other_half_and_of_the_same_model(capsys):
    judges = {"helpful-a": "helpful-b", "harmless-b": "harmless-a", "mine:f": "harmless-b"}
    assert {reward: judge_of(Run(judging=Judging(reward))) for reward in judges} == judges
    assert judge_of(Run(judging=Judging("mine:f"), model="other")) == ""
    evaluate.tell_other_model("smollm2", "helpful-a")
    assert not capsys.readouterr().err
    evaluate.tell_other_model("other", "helpful-a")
    assert "helpful-a was made on smollm2; is other the same model?" in capsys.readouterr().err


def test_a_judge_whose_trunk_was_trained_is_refused_before_anything_is_loaded(tmp_path, run_here):
    for half in "ab":
        save_head(init_head(4), tmp_path / f"{half}.safetensors", mode="lora", half="ab".index(half))
    words = "soft", "--data", "tiny", "--reward", tmp_path / "a.safetensors", "--model", tmp_path / "none"
    done = run_here(align.main, *words)
    assert done.returncode == 2 and re.search(r"b\.safetensors: its trunk was trained too.*--judge", done.stderr)


@pytest.mark.parametrize(
    ("weights", "score"),
    [
        ({"length": 1.0, "right": 1.0}, 40.0),
        ({"length": -0.01, "right": 1.0}, 0.5),
        ({"length": 0.0, "right": 2.0}, 0.5),
        ({"length": -0.01}, -0.4),
        ({}, 0.7),
    ],
)
def test_the_best_checkpoint_has_most_of_what_is_wanted(weights, score):
    row = {"held_out/length": 40.0, "held_out/right": 0.5, "win_rate": 0.7}
    assert score_of(row, weights, ["win_rate"]) == pytest.approx(score)
    assert np.isnan(score_of(row, {}, [])) and np.isnan(score_of(row, {"other": 1.0}, ["win_rate"]))


def test_a_head_of_ones_own_is_judged_by_its_sibling_or_by_who_is_named(tmp_path):
    def judge(name, **options):
        return judge_of(Run(judging=Judging(str(tmp_path / name)), **options))

    for name in ("a", "b", "my-a", "my-b", "my_b", "alone-a", "panda"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    siblings = {"a": "b", "b": "a", "my-a": "my-b"}
    for name, other in siblings.items():
        assert judge(f"{name}.safetensors") == str(tmp_path / f"{other}.safetensors")
        assert judge(f"{name}.safetensors", model="other") == str(tmp_path / f"{other}.safetensors")
    for alone in ("my_b", "alone-a", "panda"):
        with pytest.raises(ValueError, match="name a judge, or '' for none"):
            judge(f"{alone}.safetensors")
        assert judge(f"{alone}.safetensors", judge="") == ""
        assert judge(f"{alone}.safetensors", judge="harmless-b") == "harmless-b"
    (tmp_path / "my-b.safetensors").write_text("my-a")  # a copy of what trains
    with pytest.raises(ValueError, match=r"my-b\.safetensors' is the reward itself, .* name another"):
        judge("my-a.safetensors")


@pytest.mark.parametrize("method", ["hard", "dpo"])
def test_what_the_judge_was_fitted_on_is_left_out_and_its_accuracy_told(workplace, monkeypatch, capsys, method):
    from rich.console import Console

    monkeypatch.chdir(workplace)
    head = RewardHead(jax.random.normal(jax.random.key(1), (32,)), jnp.zeros(()), DEFAULT)
    save_head(head, "half.safetensors", model="model", half=1, seed=0)
    config = tuned(method, method == "dpo").replace(prompts=2)
    judging = Judging("rewards:vowels") if config.online else None
    run = Run(model="model", data="pairs.jsonl", judge="half.safetensors", judging=judging, config=config)
    made, console = {}, Console(width=200)

    def make_nothing(config, model, data, *_, **__):
        made.update(data=data)
        return types.SimpleNamespace(model=model)

    monkeypatch.setattr(align_data, "make_trainer", make_nothing)
    model = align_data.load(run, Placement())
    held_out = align_data.prepare(run, model, Placement(), console)
    texts = [f"Question {i}?" for i in range(20)]
    theirs = {text for text in texts if fold_of(text, 2, 0) == 1}
    ours = [{prompt.messages[-1]["content"] for prompt in part.prompts} for part in (made["data"], held_out)]
    assert 0 < len(theirs) < 20 and ours[0] | ours[1] == set(texts) - theirs and not ours[0] & ours[1]
    if method == "dpo":
        assert len(made["data"].pairs) == len(ours[0]) and len(held_out.pairs) == len(ours[1])
    judges = align_data.make_judges(run, held_out, head, Placement())
    cooler = align_data.make_judges(run.replace(evaluation_temperature=0.5), held_out, head, Placement())
    assert (judges.sampling, cooler.sampling) == (config.scored, Sampling(0.5))
    row = align_data.judge_accuracy(run, judges, console)
    said = capsys.readouterr().out
    assert f"{len(theirs)} left out: half.safetensors was fitted on that half" in said
    assert row["head_pairs"] == 20 - len(theirs) and f"the judge orders {row['head_accuracy']:.1%} [" in said
    pairs = encode_pairs(
        model, [x for x in load_preferences("pairs.jsonl").rows if first_turn(x) not in theirs], 64, 32
    )
    replies = lambda which: [[pair.replies[which]] for pair in pairs]  # noqa: E731
    chosen, rejected = (rewards_of(model, head, [pair.prompt for pair in pairs], replies(i)) for i in (0, 1))
    assert row["head_accuracy"] == np.mean(chosen > rejected)


def rewards_of(model, head, prompts, replies):
    """One reply at a time, without padding."""
    policy = Policy(model, model.params)
    one = lambda ids: (jnp.asarray([ids]), jnp.asarray([len(ids)]))  # noqa: E731
    found = []
    for prompt, (reply,) in zip(prompts, replies):
        tokens = jnp.asarray([[reply]]), jnp.asarray([[len(reply)]])
        found.append(float(reward(policy, head, *one(prompt), *tokens)[0, 0]))
    return np.array(found)


def test_tables_from_finished_runs(tmp_path, capsys):
    from rich.console import Console

    from pairgrpo_jax.training import settings

    args = paper_tables.Tables(methods=("grpo", "hard", "dpo"), seeds=2, output=tmp_path)
    assert len(paper_tables.cells(args)) == 2 * (9 + 5)
    for i, cell in enumerate(paper_tables.cells(args)):
        of = paper_tables.run_of(args, cell)
        of.output.mkdir(parents=True)
        (of.output / "config.json").write_text(json.dumps(settings(of)))
        row = {"grad_norm": [1.0, 2.0], "kl_ref": [0.1, 0.2 + i], "seconds": 60.0, "wins": [1, 1, 0, 0.5]}
        row |= {"implicit_margins": [1.0, -1.0]} if cell.label == "dpo" else {}
        row |= {"win_rate_length_controlled": 0.6, "kl_reference": 1.25}
        row |= {"win_rate_length_controlled_low": 0.5, "win_rate_length_controlled_high": 0.7} if cell.seed else {}
        row |= {"head_accuracy": 0.6, "head_accuracy_low": 0.5, "head_accuracy_high": 0.7}
        rows = [{"iteration": i, "steps": i, **row} for i in (1, 2)]
        (of.output / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (of.output / "done").touch()
    paper_tables.report(args, Console(width=500))
    text = (tmp_path / "tables.md").read_text()
    assert text.count("###") == 4 and "Only orderings compare" in text and "**62.5** [" in text and "85.7" in text
    assert "harmless 60.0% [50.0, 70.0], ultrafeedback" in text and "| 60.0 | 1.2 |" in text
    assert (tmp_path / "tables.png").stat().st_size > 10_000


@pytest.mark.slow
def test_supervised_fine_tuning_ends_and_is_marked_done(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    done = run_here(align.main, "hard", *ARGUMENTS, "--sft-iterations", "2", "--no-export", "--output", "sft")
    assert done.returncode == 0, done.stderr
    assert (workplace / "sft" / "done").exists()


def test_the_default_run_is_sums_and_data_or_a_reward_bring_preferences_back():
    sums = preset("hard")
    assert sums.data == SUMS and sums.reward == "verify:own" and judge_of(sums) == ""
    assert sums.config.texts.prompts * sums.config.group_size == 128 and sums.config.optimizer.updates_per_batch == 1
    assert [preset(name).config.samples.resample for name in ("grpo", "ppo")] == [2, 0]
    named = {"harmless-a": ["--data", "tiny"], "harmless-b": ["--data=x.jsonl", "--reward=harmless-b"]}
    for name, words in (named | {"mine:f": ["--reward", "mine:f"]}).items():
        run = preset("hard", words)
        assert run.data == "tiny" and run.reward == name and run.config == tuned("hard")
    assert preset("hard-offline").data == preset("dpo").data == "tiny"


def test_made_problems_are_checked_by_what_made_them():
    longer = "reasoning-gym:chain_sum?min_digits=2&max_digits=2"
    for words in (["--data", longer], [f"--data={longer}", "--reward", "verify:own"], ["--reward=verify:own"]):
        assert preset("hard", words) == preset("hard")  # the data is parsed over it
    other = preset("hard", ["--data", "reasoning-gym:letter_counting"])
    assert other.reward == "verify:own" and other.config == tuned("hard")
    headed = preset("hard", ["--data", longer, "--reward", "harmless-b"])
    assert headed.reward == "harmless-b" and headed.config == tuned("hard")


def test_help_lists_only_what_has_an_effect(run_here):
    hard, dpo = (run_here(align.main, method, "--help").stdout for method in ("hard", "dpo"))
    assert "--delta-0" in hard and "--temperature" in hard and "--clip" not in hard and "--gae-lambda" not in hard
    assert all("offline, those of preferences" in " ".join(words.split()) for words in (hard, dpo))
    assert "--label-smoothing" in dpo and not any(x in dpo for x in ("--temperature", "--reward ", "--delta-0"))
