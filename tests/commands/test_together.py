"""Commands in two real processes: `evaluate` and `reward-model` equal to one, `align` without a common disk."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from byte_model import write_model

from experiments.benchmarks.resume import free_port
from pairgrpo_jax.commands import evaluate, reward_model
from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.rewards.reward_model import DEFAULT, RewardHead, load_reward_model, save_head
from pairgrpo_jax.training import read_metrics

MAIN = "from pairgrpo_jax.commands.main import main; main()"
# gloo's threads write to standard output piece by piece, at the same time.
GLOO = re.compile(
    r"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. Expected number of connected peer ranks is : |\s)*"
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Two models over bytes, a head, and 13 pairs, which four devices do not divide."""
    folder = tmp_path_factory.mktemp("together")
    write_model(folder / "model")
    model = load_model(folder / "model")
    save_pretrained(model, jax.tree.map(lambda x: 1.3 * x, model.params), folder / "other")
    weight = np.random.default_rng(0).normal(size=2 * model.config.hidden_size).astype(np.float32)
    save_head(RewardHead(weight, np.zeros((), np.float32), DEFAULT), folder / "head.safetensors")
    rows = [{"prompt": f"Say {i}", "chosen": "yes " * (1 + i % 3), "rejected": f"no {i}"} for i in range(13)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def in_two_processes(folders, *words):
    """What two processes of two devices each said, one in each folder."""
    address = f"localhost:{free_port()}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MAIN, *words, f"--coordinator={address}", "--processes=2", f"--process={i}"],
            cwd=folders[i],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    first, second = ([x for x in out.splitlines() if not GLOO.fullmatch(x)] for out, _ in said)
    assert first[0].startswith("2 processes, 4 devices") and not second  # one speaks
    return "\n".join(first)


def alike(here, there):
    """All figures, to 1e-5."""
    for (place, x), (other, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (here, there)), strict=True):
        assert place == other
        if isinstance(x, float):
            np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5, err_msg=str(place))
        else:
            assert x == y, place


@pytest.mark.slow
def test_evaluate_is_that_of_one_process(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    words = "--a other --b model --reference model --judge head.safetensors --data pairs.jsonl --fold -1 --prompts 6"
    words = [*words.split(), "--samples=2", "--completion-tokens=6", "--output"]
    assert run_here(evaluate.main, *words, "one.json").returncode == 0
    said = in_two_processes([workplace] * 2, "evaluate", *words, "two.json", "--mesh=data")
    one, two = (json.loads((workplace / name).read_text()) for name in ("one.json", "two.json"))
    assert {"win_rate", "implicit_accuracy", "head_accuracy"} <= set(one["figures"]) and '"win_rate"' in said
    alike(one, two)


@pytest.mark.slow
def test_a_reward_model_is_that_of_one_process(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    words = "--model model --data pairs.jsonl --mode lora --folds 0 --batch 4 --epochs 2 --l2 0.1 --output"
    assert run_here(reward_model.main, *words.split(), "one").returncode == 0
    said = in_two_processes([workplace] * 2, "reward-model", *words.split(), "two", "--mesh=data")
    assert "heads: two/a.safetensors" in said
    alike(*(json.loads((workplace / name / "figures.json").read_text()) for name in ("one", "two")))
    model = load_model(workplace / "model")
    for half in "ab":
        one, two = (load_reward_model(workplace / name / f"{half}.safetensors", model) for name in ("one", "two"))
        for x, y in zip(*(jax.tree.leaves((policy.lora, head)) for policy, head in (one, two)), strict=True):
            np.testing.assert_allclose(y, x, atol=1e-5)


def test_batches_that_devices_do_not_divide_are_refused_where_they_are_trained_on(workplace, monkeypatch, run_here):
    monkeypatch.chdir(workplace)
    words = "--model model --data pairs.jsonl --mode lora --batch 6 --mesh data --output three"
    done = run_here(reward_model.main, *words.split())
    assert done.returncode == 2 and "batch=6 must be a multiple of the 8 devices; try --batch 8" in done.stderr


@pytest.mark.slow
def test_align_needs_no_common_disk_but_for_checkpoints(workplace, tmp_path):
    here, there, new = folders = [tmp_path / name for name in ("here", "there", "new")]
    for folder in folders:
        folder.mkdir()
    words = "--data tiny --prompts 4 --candidates 2 --completion-tokens 4 --lora-rank 2 --no-anneal --judge="
    words += " --evaluation-prompts 4 --evaluation-samples 1 --shown 1 --no-export --mesh data --output out"
    words += " --reward experiments.benchmarks.resume:letters"
    words += f" --model {workplace / 'model'} --checkpoints {tmp_path / 'all'}"
    in_two_processes([here, there], "align", "grpo", *words.split(), "--iterations=2")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"2"}
    in_two_processes([new, there], "align", "grpo", *words.split(), "--iterations=3", "--resume")
    assert [row["iteration"] for row in read_metrics(new / "out")] == [3]
    assert not any(there.iterdir()) and not any(path.name == "checkpoints" for path in tmp_path.glob("*/out/*"))


def test_each_process_keeps_the_verdicts_it_asked_for(workplace, tmp_path):
    here, there = folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
        (folder / "mine.py").write_text("def longer(prompt, a, b):\n    return int(len(b) > len(a))\n")
    words = "--data tiny --prompts 4 --candidates 2 --completion-tokens 4 --lora-rank 2 --no-anneal --judge="
    words += " --shown 1 --no-export --mesh data --output out"
    words += f" --reward judge:mine:longer --model {workplace / 'model'} --checkpoints {tmp_path / 'all'}"
    in_two_processes(folders, "align", "soft", *words.split(), "--iterations=1")
    assert [path.name for path in there.glob("out/*")] == ["verdicts-1.sqlite"]
    assert (here / "out" / "verdicts.sqlite").exists()
