"""What a policy scores that has learned nothing."""

import json

import numpy as np
import pytest

from experiments.benchmarks import random_policy
from experiments.compare import table_of
from experiments.plots import comparison
from pairgrpo_jax.commands.plots import SERIES


def test_the_simulators_return_is_gymnasiums():
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra control")
    from pairgrpo_jax.control import make_env

    env, theirs = gymnasium.make("HalfCheetah-v5"), []
    env.action_space.seed(0)
    for seed in range(4):
        env.reset(seed=seed)
        theirs.append(sum(env.step(env.action_space.sample())[1] for _ in range(1000)))
    ours = random_policy.returns(make_env("mujoco"), seeds=4, episodes=4)
    error = np.hypot(np.std(theirs, ddof=1) / 2, np.std(ours, ddof=1) / 2)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error < 200


def test_what_is_stored_says_how_and_stands_in_the_table():
    found = json.loads(random_policy.STORED.read_text())
    assert found["commit"] and found["versions"]["jax"] and found["episodes"] == 16
    assert set(found["returns"]) >= {"mujoco", "brax:generalized", "brax:spring", "brax:positional"}
    scores = random_policy.stored("mujoco")
    assert len(scores) == 10 and -310 < scores.mean() < -260  # gymnasium's is about -281
    assert random_policy.stored("brax:mjx") is None
    row = {"score": 1.0, "stochastic_score": 1.0, "realised_kl": 0.1, "grad_norm": 1.0}
    table = table_of({"ppo:value": [[row] * 3, [row] * 3]}, scores).splitlines()
    assert table[-1].startswith(f"| random policy | {random_policy.told(scores)} |") and table[-1].endswith("| 10 |")
    assert len({line.count("|") for line in table}) == 1


def test_what_is_kept_beside_a_new_measurement_was_measured_in_the_same_way(tmp_path):
    origin = {"commit": "a" * 40, "versions": {"jax": "1", "machine": "x"}}
    before = origin | {"episodes": 16, "returns": {"mujoco": [1.0, 2.0], "brax:spring": [3.0, 4.0]}}
    args = random_policy.Random(envs=("mujoco",), seeds=2, output=tmp_path / "random.json")
    assert random_policy.kept(args, origin) == {}
    args.output.write_text(json.dumps(before))
    assert random_policy.kept(args, origin) == {"brax:spring": [3.0, 4.0]}
    for other in (origin | {"commit": "b" * 40}, origin | {"versions": {"jax": "2"}}):
        with pytest.raises(ValueError, match=r"random.json holds brax:spring: .*(commits|versions).*--envs"):
            random_policy.kept(args, other)
        assert random_policy.kept(args.replace(envs=("mujoco", "brax:spring")), other) == {}
    for changed in ({"episodes": 8}, {"seeds": 3}):
        with pytest.raises(ValueError, match=r"random.json holds brax:spring, of other --episodes or --seeds"):
            random_policy.kept(args.replace(**changed), origin)


def test_a_panel_holds_six_series_each_named_at_its_end(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    rows = [
        {"steps": 10 * i, "seconds": i, "score": -i, "realised_kl": 0.1 * i, "stochastic_score": i} for i in (1, 2, 3)
    ]
    names = [f"hard:value clip={i}" for i in range(SERIES + 1)]
    comparison({name: [rows] for name in names}, tmp_path / "x.png", "all", learned_nothing=-5.0)
    monkeypatch.undo()
    (figure,) = kept
    assert len(figure.axes) == 4
    for axis in figure.axes[::2]:
        named = [text.get_text() for text in axis.texts]
        assert "random policy" in named and 1 < len(named) <= SERIES + 1 and len(axis.lines) == len(named)
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)
    assert min(np.diff(heights)) > 0.05 and heights[-1] <= 1
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colours)) == len(colours)
    plt.close(figure)
