"""The HalfCheetah command line as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.resume import TINY, Resume, disturbed, result, undisturbed
from pairgrpo_jax.commands import cheetah
from pairgrpo_jax.commands.cheetah import another_seed
from pairgrpo_jax.commands.cli import parse_run
from pairgrpo_jax.methods import ONLINE
from pairgrpo_jax.training import read_metrics

COMMAND = [sys.executable, "-m", "experiments.halfcheetah", "hard", *TINY.split()]


def run(*words, timeout=300):
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run: its folder and its result."""
    output = tmp_path_factory.mktemp("run") / "out"
    return output, undisturbed(Resume(), output)


def test_leaves_what_the_readme_says(finished):
    output, _ = finished
    names = {path.name for path in output.iterdir()}
    assert {
        "config.json",
        "versions.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "learning_curve.png",
        "report.html",
    } <= names
    config = json.loads((output / "config.json").read_text())
    assert (
        config["config"]["collection"]["candidates"] == 4
        and config["config"]["method"]["name"] == "hard"
        and config["env"] == "mujoco"
    )
    rows = read_metrics(output)
    assert len(rows) == 40 and rows[-1]["steps"] == 12800
    assert sum("score" in row for row in rows) == 4


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_killed_and_resumed_is_identical(finished, only_read_programs, tmp_path, share):
    found, killed_at, resumed_from = disturbed(Resume(), tmp_path / "out", share)
    assert found == finished[1] and share * 40 <= killed_at and resumed_from >= 3
    seconds = [row["seconds"] for row in read_metrics(tmp_path / "out")]
    assert seconds == sorted(seconds)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(finished, only_read_programs, tmp_path, number, code):
    output = tmp_path / "out"
    process = subprocess.Popen([*COMMAND, "--output", str(output)], stdout=subprocess.PIPE, text=True)
    while len(read_metrics(output)) < 5 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, number)
    words, _ = process.communicate(timeout=120)
    assert process.returncode == code and "go on with --resume" in words
    assert run("--output", output, "--resume").returncode == 0
    assert result(output) == finished[1]


BAD = [
    (["--env", "walker"], "env='walker' is unknown; choose one of mujoco"),
    (["--candidates", "1"], "candidates must be >= 2"),
    (["--groups", "0"], "groups must be >= 1"),
    (["--max-grad-norm", "0"], "max_grad_norm must be > 0"),
    (["--init-log-std", "-3", "--min-log-std", "-2"], "init_log_std=-3.0 must be >= min_log_std=-2.0"),
    (["--scheme", "matched", "--candidates", "3"], "candidates=3 must be even"),
    (["--horizon", "64"], "horizon=64 must divide the episode length"),
    (["--delta-0", "-1"], "delta_0 must be >= 0"),
    (["--mesh", "data"], "mesh: mujoco runs on the host"),
    (
        ["--mesh", "data", "--env", "brax:spring", "--groups", "12"],
        "groups=12 must be a multiple of the 8 devices; try --groups 16",
    ),
    (["--trust-region", "lagrangian", "--alpha", "3"], 'alpha=3.0 has no effect with trust_region="lagrangian"'),
    (["--seed", "4294967295", "--seeds", "2"], "seed=4294967295, seeds=2: the last seed must be at most 4294967295"),
    (["--steps", "0"], "steps must be >= 1"),
    (["--steps", "inf"], "steps must be finite"),
    (["--clip", "0.1"], "--clip is a setting of grpo, rank, ppo, soft and has no effect here"),
    (["--delta", "0.1"], "--delta is no option here; did you mean --delta-0?"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, run_here, words, message):
    done = run_here(cheetah.main, *TINY.split(), *words, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"program: error: {message}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_multiplier_takes_the_place_of_the_presets_hinge():
    words = ["hard", "--trust-region", "lagrangian", "--beta", "0.02"]
    run = parse_run(words, ONLINE, cheetah.preset, "pairgrpo cheetah")
    assert run.config.method == cheetah.preset("hard").config.method.replace(
        trust_region="lagrangian", beta=0.02, alpha=0.5, hinge="candidates"
    )
    assert run.command == f"pairgrpo cheetah {' '.join(words)}"


def test_no_seeds_are_named_beyond_the_last():
    assert another_seed(cheetah.Run(seed=2**32 - 1)) == [] != another_seed(cheetah.Run(seed=2**32 - 2))


def test_an_episode_that_fails_is_left_out_of_the_means_and_counted():
    returns = jnp.array([[1.0, jnp.nan, 3.0], [jnp.inf, jnp.nan, -jnp.inf], [1.0, 2.0, 6.0]])
    trainer = SimpleNamespace(evaluate=lambda state, key, episodes, deterministic: state if deterministic else -state)
    row = cheetah.make_evaluation(trainer, 3)(returns, 1)
    np.testing.assert_equal(row["score"], [2.0, np.nan, 3.0])
    np.testing.assert_equal(row["stochastic_score"], [-2.0, np.nan, -3.0])
    assert row["failed"] == [2, 6, 0]


@pytest.mark.parametrize(("evaluations", "chunk"), [(1, 5), (20, 3), (118, 1)])
def test_brax_saves_as_often_as_it_is_told(evaluations, chunk):
    run = cheetah.Run(env="brax:spring", evaluations=evaluations, save_every=5)
    schedule = cheetah.make_schedule(run, SimpleNamespace(name=run.env))
    assert schedule.chunk == chunk and set(schedule.chunks()) <= {chunk, *range(1, 5)}


def test_an_unknown_algorithm_exits_with_2(tmp_path, run_here):
    done = run_here(cheetah.main, "hrd", "--output", tmp_path / "out")
    assert done.returncode == 2 and done.stderr == "program: error: method 'hrd' is unknown; did you mean hard?\n"
    assert not (tmp_path / "out").exists()


def test_another_runs_folder_is_refused_and_left_alone(finished, run_here):
    output, _ = finished
    before = (output / "metrics.jsonl").read_bytes()
    done = run_here(cheetah.main, *TINY.split(), "--output", output)
    assert done.returncode == 2 and "holds another run" in done.stderr
    words = ("--resume", "--alpha", "0.3", "--seed", "7")
    done = run_here(cheetah.main, *TINY.split(), "--output", output, *words)
    assert done.returncode == 2 and "(alpha: 2.0 -> 0.3" in done.stderr and "seed: 0 -> 7" in done.stderr
    assert (output / "metrics.jsonl").read_bytes() == before


def test_an_unreadable_checkpoint_is_named(tmp_path, finished, run_here):
    import shutil

    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    for path in (output / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    done = run_here(cheetah.main, *TINY.split(), "--output", output, "--resume")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("program: error: output: no readable checkpoint in ")
    assert (output / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_help_explains_every_field_with_its_unit(run_here):
    words = run_here(cheetah.main, "hard", "--help").stdout
    for phrase in ("--delta-0", "nats", "environment steps", "--resume", "control steps"):
        assert phrase in words


@pytest.mark.slow
def test_brax_trains_seeds_side_by_side_in_one_program(tmp_path):
    done = run(
        "--env", "brax:spring", "--seeds", "2", "--steps", "2560", "--evaluations", "2", "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "out")
    assert [row["steps"] for row in rows] == [320 * (i + 1) for i in range(8)]
    assert all(len(row["return"]) == 2 and row["return"][0] != row["return"][1] for row in rows)
    assert len(rows[-1]["score"]) == 2


def test_resume_alone_goes_on_with_the_run_that_is_there(tmp_path, run_here):
    output = tmp_path / "out"
    words = ["--steps", "1280", "--no-anneal", "--video-steps", "2", "--output", output]
    done = run_here(cheetah.main, "soft", *TINY.split(), *words)
    assert done.returncode == 0 and "fork" not in done.stderr, done.stderr
    compiling, *lines, _, title, returns = done.stdout.splitlines()[:-6]
    progress = r"[\d,]+ steps  [\d,]+ steps/s  return -?[\d.]+  stochastic .*  in training .*  KL .* s left"
    assert compiling == "compiling; progress is told at each evaluation (4 to come)"
    assert len(lines) == 4 and all(re.fullmatch(progress, line) for line in lines)
    assert ", 1 seed: 1,280 steps in " in title and str(output / "cheetah.mp4") in done.stdout
    assert re.fullmatch(r"return -?\d+ deterministic, -?\d+ stochastic", returns) and "return -0 " not in returns
    assert run_here(cheetah.main, "--resume", "--output", output, "--steps", "2560").returncode == 0
    rows = read_metrics(output)
    assert rows[-1]["steps"] == 2560 and "delta" not in rows[-1]
    done = run_here(cheetah.main, "grpo", "--resume", "--output", output)
    assert done.returncode == 2 and "is one of soft, not of grpo" in done.stderr


def test_an_annealed_run_says_why_it_cannot_be_longer(finished, run_here):
    done = run_here(cheetah.main, "--resume", "--output", finished[0], "--steps", "25600")
    assert done.returncode == 2 and "steps: 12800.0 -> 25600.0" in done.stderr and "anneal" in done.stderr
