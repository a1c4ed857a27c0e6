"""The listings of CONTRIBUTING.md and of the README do what they are there for; test_docs.py runs the others."""

import gzip
import itertools
import json
import os
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax import core, methods
from pairgrpo_jax.methods import Adaptive, Likelihoods, SoftPair, Verdict

ROOT = Path(__file__).parents[1]


def listings(name):
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


def listing(name, word):
    (found,) = (text for text in listings(name) if word in text)
    return found


@pytest.fixture
def run(monkeypatch):
    numbers = itertools.count()

    def run(name, word):
        # Dataclasses look their annotations up in their module.
        module = types.ModuleType(f"listing_{next(numbers)}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(listing(name, word), name, "exec"), module.__dict__)
        return module

    return run


@pytest.fixture
def lopsided(run):
    return run("CONTRIBUTING.md", "class Lopsided").Lopsided


def gradient(method, verdict, old_logp, logp):
    adaptive = Adaptive(jnp.int32(0), jnp.float32(0))
    signal = method.signal(verdict, jax.random.key(3), adaptive)

    def loss(x):
        return core.evaluate(method.objective(Likelihoods(x, old_logp), signal, adaptive))

    (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(logp)
    assert "surrogate" in metrics
    assert np.isfinite(value)
    return np.asarray(slope)


@pytest.fixture
def arrays():
    scores, old_logp = jax.random.normal(jax.random.key(0), (5, 4)), -jnp.ones((5, 4, 3))
    return Verdict(scores), old_logp, old_logp + 0.05 * jax.random.normal(jax.random.key(1), (5, 4, 3))


def test_method_is_short():
    assert len(listing("CONTRIBUTING.md", "class Lopsided").splitlines()) < 40


def test_method_is_soft_where_both_labels_weigh_the_same(lopsided, arrays):
    np.testing.assert_allclose(
        gradient(lopsided(rejected=1.0), *arrays), gradient(SoftPair(beta=0.0), *arrays), rtol=1e-6
    )


def test_method_leaves_rejected_candidates_alone_at_weight_0(lopsided, arrays):
    verdict, old_logp, _ = arrays
    slope = gradient(lopsided(rejected=0.0, scheme="best_worst"), verdict, old_logp, old_logp)
    best = np.argmax(verdict.scores, axis=1)
    assert np.isfinite(slope).all()
    assert (slope[np.arange(5), best] < 0).all()
    assert np.count_nonzero(slope.any(-1)) == 5


def test_method_refuses_what_is_out_of_bounds(lopsided):
    with pytest.raises(ValueError, match="rejected must be in"):
        lopsided(rejected=2.0)


def test_method_in_METHODS_is_known_to_the_trainers(lopsided, monkeypatch):
    control, alignment = (pytest.importorskip(f"pairgrpo_jax.{x}") for x in ("control", "lm.alignment"))
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, lopsided))
    monkeypatch.setattr(methods, "NAMES", (*methods.NAMES, "lopsided"))
    assert control.tuned("lopsided").method == lopsided()
    assert alignment.tuned("lopsided").online
    assert not alignment.tuned("lopsided", offline=True).online


def test_environment_trains(run):
    pytest.importorskip("pairgrpo_jax.control")
    module = run("CONTRIBUTING.md", "class Point(Env)")
    env, state = module.Point(), module.Point().reset(jax.random.key(0), 3)
    state = jax.lax.fori_loop(0, env.episode_length - 1, lambda _, s: env.step(s, jnp.ones((3, 1))), state)
    assert not np.any(state.done)
    assert np.all(env.step(state, jnp.ones((3, 1))).done)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(module.state.params))
    assert np.all(np.asarray(module.metrics["return"]) < 0)


def test_reward_function_judges(run):
    pytest.importorskip("pairgrpo_jax.lm")
    judgement = run("CONTRIBUTING.md", "reward_function(short").judgement
    np.testing.assert_array_equal(judgement.rewards, [[-4.0, -16.0]])
    assert not judgement.failed.any()


def test_readme_bandit_finds_the_optimum(run):
    centre = run("README.md", "TrainState.create").state.params["centre"]
    np.testing.assert_allclose(centre, np.ones(3), atol=0.1)


def test_methods_are_objects(run):
    pytest.importorskip("pairgrpo_jax.control")
    pytest.importorskip("pairgrpo_jax.lm")
    module = run("docs/methods.md", "control.tuned")
    assert module.online.online
    assert module.online.method.delta_0 == 0.05
    assert not module.offline.online
    assert module.cheetah.method.margin == 0.1


def gsm8k(folder):
    """The first rows of GSM8K where it is at hand, else rows like them."""
    real = Path(os.environ.get("PAIRGRPO_DATA", "nowhere")) / "gsm8k" / "train.jsonl.gz"
    answers = [f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i:,}" for i in range(9)]
    rows = [{"question": f"{i} + {i} = ?", "answer": answer} for i, answer in enumerate(answers)]
    lines = [json.dumps(row) + "\n" for row in rows]
    if real.exists():
        lines = gzip.open(real, "rt", encoding="utf-8").readlines()[:60]
    (folder / "gsm8k").mkdir()
    with gzip.open(folder / "gsm8k" / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(lines)


def test_readme_gsm8k_trains(run, monkeypatch, tmp_path):
    """With a tiny model in place of SmolLM2; the rest as it is printed."""
    pytest.importorskip("math_verify", reason="needs math-verify (extra: rewards)")
    lm = pytest.importorskip("pairgrpo_jax.lm")
    from byte_model import write_model

    gsm8k(tmp_path)
    write_model(tmp_path / "model", positions=512)
    monkeypatch.chdir(tmp_path)
    load = lm.load_model
    monkeypatch.setattr(lm, "load_model", lambda name: load("model"))
    module = run("README.md", "gsm8k")
    assert len(listing("README.md", "gsm8k").strip().splitlines()) <= 15
    assert 0 <= module.metrics["reward/verify:math"][0] <= 1 and int(module.state.step) >= 0
    assert all("####" in row.columns["answer"] for row in module.rows)


def test_reward_function_and_judge_agree(run):
    module = run("docs/rewards.md", "def judge")
    assert module.short([()], [["a", "bbb"]]) == [[-1.0, -3.0]]
    assert [module.judge((), *pair) for pair in (("a", "bbb"), ("bbb", "a"), ("a", "b"))] == [0, 1, None]


def test_the_judge_of_the_readme_asks_a_server(run, served, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="needs the extra judge")
    monkeypatch.chdir(tmp_path)
    state = served()
    found = run("README.md", "OpenAIJudge")
    assert len(listing("README.md", "OpenAIJudge").strip().splitlines()) <= 10
    assert 0 < len(state.requests) <= 10 and np.asarray(found.judgement.pairs.weight).sum() == pytest.approx(2)
    run("README.md", "OpenAIJudge")
    assert len(state.requests) <= 10, "the second time all is known"
