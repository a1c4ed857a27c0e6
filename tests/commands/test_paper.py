"""The page of many runs."""

import dataclasses
import json

import pytest

from pairgrpo_jax.commands import report, stored
from pairgrpo_jax.commands.paper import rows_of, table
from pairgrpo_jax.core.statistics import interquartile_interval, probability_of_improvement


def leave(folder, method, seed, scores, *, env="mujoco", done=True):
    folder.mkdir(parents=True)
    settings = {"env": env, "steps": 30, "seed": seed, "seeds": len(scores), "config": {"method": {"name": method}}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "versions.json").write_text(json.dumps({"jax": "0.10"}))
    rows = [{"iteration": i, "steps": 10 * i, "score": [x * i / 3 for x in scores]} for i in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / "done").touch()


def keep(path, method, seed, score):
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = [{"iteration": i, "steps": 10 * i, "score": score * i / 3} for i in (1, 2, 3)]
    about = {"method": method, "trial": "", "seed": seed, "commit": 40 * "a", "versions": {"jax": "0.9"}}
    settings = {"env": "brax:spring", "steps": 30, "seed": seed, "config": {"method": {"name": method}}}
    path.write_text(json.dumps(about | {"settings": settings, "metrics": metrics}))


@pytest.fixture
def folder(tmp_path):
    leave(tmp_path / "runs" / "a", "grpo", 0, [300.0, 400.0, 500.0])
    leave(tmp_path / "runs" / "b", "hard", 0, [450.0, 550.0, 650.0])
    leave(tmp_path / "runs" / "c", "soft", 0, [1.0], done=False)
    (tmp_path / "runs" / "seed9.json").write_text("[]")
    for seed in (100, 101):
        keep(tmp_path / "runs" / "kept" / "ppo-value" / f"seed{seed}.json", "ppo:value", seed, 10.0 + seed)
        keep(tmp_path / "runs" / "kept" / "<b>" / f"seed{seed}.json", "<b>", seed, 20.0 + seed)
    return tmp_path / "runs"


def test_a_page_of_all_that_is_finished_names_the_rest(folder, tmp_path, capsys):
    assert report.main(["--folder", str(folder), "--output", str(tmp_path / "new" / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "c: not finished; go on with --resume" in said and "seed9.json: cannot be read" in said
    assert "10 runs in" in said
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "<b>" not in page and "&lt;b&gt;" in page
    assert "Other settings than the first table" in page and "not finished" in page and 12 * "a" in page
    assert "src=" not in page and f"pairgrpo report --folder {folder}" in page


def test_other_settings_of_a_method_are_another_row(folder):
    found, _ = stored.read_stored(folder)
    hard = [run for run in found if run.method == "hard"]
    again = [dataclasses.replace(hard[0], settings=hard[0].settings | {"config": {"method": {"clip": 0.3}}})]
    assert {name: len(runs) for name, runs in rows_of(hard + again).items()} == {"hard": 3, "hard #2": 1}


def test_the_figures_are_those_of_the_runs(folder):
    found, _ = stored.read_stored(folder)
    own = [run for run in found if run.settings["env"] == "mujoco"]
    methods = {name: [run for run in own if run.method == name] for name in ("grpo", "hard")}
    head, grpo, hard = table(methods)
    low, high = interquartile_interval([450.0, 550.0, 650.0])
    assert hard[:3] == ["hard", "550", f"[{low:.0f}, {high:.0f}]"] and hard[5] == "3 (0, 1, 2)"
    assert hard[3] == f"{probability_of_improvement([450, 550, 650], [300, 400, 500]):.2f}" == "0.89"
    assert grpo[3] == "–" and head[3] == "P(beats grpo)"


@pytest.mark.parametrize(
    "make", [lambda p: None, lambda p: p.mkdir(), lambda p: leave(p / "x", "hard", 0, [1.0], done=False)]
)
def test_a_folder_without_a_finished_run_is_named(tmp_path, make):
    make(tmp_path / "none")
    with pytest.raises(ValueError, match=r"folder: .*none"):
        report.main(["--folder", str(tmp_path / "none"), "--output", str(tmp_path / "x.html")])
    assert not (tmp_path / "x.html").exists()
