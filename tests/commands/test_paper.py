"""The page of many runs."""

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path

import pytest

from pairgrpo_jax.commands import cheetah, paper, report, stored
from pairgrpo_jax.commands.paper import rows_of, table
from pairgrpo_jax.commands.plots import COLOURS, colours_of
from pairgrpo_jax.commands.runs import FREE
from pairgrpo_jax.core.bounds import to_values
from pairgrpo_jax.core.statistics import interquartile_interval, probability_of_improvement

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def leave(folder, method, seed, scores, *, env="mujoco", done=True):
    folder.mkdir(parents=True)
    settings = {"env": env, "steps": 30, "seed": seed, "seeds": len(scores), "config": {"method": {"name": method}}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "versions.json").write_text(json.dumps({"jax": "0.10"}))
    rows = [{"iteration": i, "steps": 10 * i, "score": [x * i / 3 for x in scores]} for i in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / "done").touch()


def keep(path, method, seed, score, **changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = [{"iteration": i, "steps": 10 * i, "score": score * i / 3} for i in (1, 2, 3)]
    about = {"method": method, "trial": "", "seed": seed, "commit": 40 * "a", "versions": {"jax": "0.9"}}
    settings = {"env": "brax:spring", "steps": 30, "seed": seed, "config": {"method": {"name": method}}}
    path.write_text(json.dumps(about | {"settings": settings, "metrics": metrics} | changed))


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


def test_each_method_has_the_command_of_its_first_run(tmp_path):
    """Where its settings are whole and of this version; else there is none."""
    for method, seed in (("hard", 100), ("hard", 101), ("ppo", 100)):
        run = cheetah.preset(method).replace(seed=seed, steps=5e5)
        kept = {name: value for name, value in to_values(run).items() if name not in FREE}
        keep(tmp_path / method / f"seed{seed}.json", method, seed, 10.0 + seed, settings=kept)
    keep(tmp_path / "old" / "seed100.json", "old", 100, 1.0)
    found, _ = stored.read_stored(tmp_path)
    commands = {(run.method, run.seed): run.command for run in found}
    assert commands["hard", 101] == "pairgrpo cheetah hard --steps 500000 --seed 101" and commands["old", 100] is None
    page = paper.page(found, [], "x")
    assert "<code>pairgrpo cheetah ppo --steps 500000 --seed 100</code>" in page
    assert "pairgrpo cheetah hard --steps 500000 --seed 100<" in page and "--seed 101" not in page


def test_a_run_that_is_stored_twice_is_counted_once(folder):
    before, left = stored.read_stored(folder)
    shutil.copytree(folder / "a", folder / "z")
    settings = json.loads((folder / "b" / "config.json").read_text())
    settings = {name: x for name, x in settings.items() if name != "seeds"} | {"seed": 1}
    keep(folder / "results" / "seed1.json", "hard:value", 1, 550.0, settings=settings | {"video_steps": 3})
    keep(folder / "results" / "seed2.json", "hard:value", 1, 550.0, settings=settings | {"steps": 31})
    after, more = stored.read_stored(folder)
    assert len(after) == len(before) + 1 and [run.seed for run in after if run.settings["steps"] == 31] == [1]
    twice = [line for line in more if line not in left]
    assert [f"seed {i} is the same run as {folder / 'a'}" in line for i, line in zip(range(3), twice[1:])] == 3 * [True]
    assert twice[0] == f"{folder / 'results' / 'seed1.json'}: seed 1 is the same run as {folder / 'b'}"


def test_a_finished_reward_model_is_no_unfinished_run(folder):
    leave(folder / "heads", "hard", 0, [1.0], done=False)
    (folder / "heads" / "config.json").write_text(json.dumps({"model": "tiny", "folds": 5, "seed": 0}))
    _, left = stored.read_stored(folder)
    assert f"{folder / 'heads'}: no run of a method" in left


BAD = {
    "no versions": lambda p: (leave(p, "hard", 7, [1.0]), (p / "versions.json").unlink()),
    "versions of a list": lambda p: (leave(p, "hard", 7, [1.0]), (p / "versions.json").write_text("[]")),
    "metrics of a folder": lambda p: (
        leave(p, "hard", 7, [1.0]),
        (p / "metrics.jsonl").unlink(),
        (p / "metrics.jsonl").mkdir(),
    ),
    "no seed": lambda p: leave(p, "hard", 7, []),
    "a broken link": lambda p: (p.mkdir(), (p / "seed1.json").symlink_to(p / "none")),
    "a folder": lambda p: (p / "seed1.json").mkdir(parents=True),
    "no end of brackets": lambda p: (p.mkdir(), (p / "seed1.json").write_text(100_000 * "[")),
    "no text": lambda p: (p.mkdir(), (p / "seed1.json").write_bytes(b"\xff\xfe")),
    "no config": lambda p: keep(p / "seed1.json", "x", 1, 1.0, settings={"env": "mujoco"}),
    "no commit": lambda p: keep(p / "seed1.json", "x", 1, 1.0, commit=None),
    "versions as text": lambda p: keep(p / "seed1.json", "x", 1, 1.0, versions="1"),
    "a seed as text": lambda p: keep(p / "seed1.json", "x", "1", 1.0),
    "no steps": lambda p: keep(p / "seed1.json", "x", 1, 1.0, metrics=[{"score": 1.0}]),
    "wins of nobody": lambda p: keep(
        p / "seed1.json", "x", 1, 1.0, settings={"judging": None, "config": {}}, metrics=[{"steps": 1, "wins": []}]
    ),
    "rows of numbers": lambda p: keep(p / "seed1.json", "x", 1, 1.0, metrics=[1.0]),
    "no float": lambda p: keep(p / "seed1.json", "x", 1, 1.0, metrics=[{"steps": 10**400, "score": 1.0}]),
    "half a surrogate pair": lambda p: keep(p / "seed1.json", "\ud800", 1, 1.0),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_and_stops_nothing(tmp_path, kind):
    keep(tmp_path / "good" / "seed0.json", "ppo", 0, 1.0)
    BAD[kind](tmp_path / "x")
    (run,), (line,) = stored.read_stored(tmp_path)
    assert run.seed == 0 and line.startswith(f"{tmp_path / 'x'}") and "cannot be read" in line


@pytest.mark.parametrize("name", ["$x$", r"$\frac{$", "a_b^{", "<b> & c"])
def test_any_name_stands_on_the_page(tmp_path, name):
    keep(tmp_path / "seed0.json", name, 0, 1.0)
    keep(tmp_path / "seed1.json", name, 1, 1.0, metrics=[{"steps": 11, "score": 2.0}])  # no step of the other's
    page = paper.page(*stored.read_stored(tmp_path), "pairgrpo report")
    assert f"<td>{html.escape(name)}</td>" in page and "<b>" not in page


def test_the_figures_are_those_of_the_runs(folder):
    found, _ = stored.read_stored(folder)
    own = [run for run in found if run.settings["env"] == "mujoco"]
    methods = {name: [run for run in own if run.method == name] for name in ("grpo", "hard")}
    head, grpo, hard = table(methods)
    low, high = interquartile_interval([450.0, 550.0, 650.0])
    assert hard[:2] == ("hard", f"550 [{low:.0f}, {high:.0f}]") and hard[3] == "3 (0, 1, 2)"
    assert probability_of_improvement([450, 550, 650], [300, 400, 500]) == pytest.approx(8 / 9)
    assert hard[2].startswith("0.89 [") and grpo[2] == "–" and head[2] == "P(beats grpo) [95% interval]"


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        ("harmless", {"grpo": (86.0, 74.7, 97.3), "soft": (85.5, 71.8, 99.3), "hard": (88.4, 64.3, 100)}),
        ("helpful", {"grpo": (72.7, 61.6, 83.9), "soft": (73.8, 64.5, 83.2), "hard": (72.2, 59.1, 85.3)}),
        ("ultrafeedback", {"grpo": (63.2, 58.1, 68.2), "soft": (64.2, 60.9, 67.5), "hard": (66.2, 61.5, 70.9)}),
    ],
)
def test_preferences_are_compared_by_what_their_experiment_compares(domain, told):
    """The win rates of docs/results/alignment.md, in percent there, and not the trained head's rewards."""
    found, left = stored.read_stored(RESULTS / "preferences" / domain)
    methods = {name: runs for name, runs in rows_of(found).items() if name in told}
    for name, score, _, _ in table(methods)[1:]:
        assert [100 * float(x) for x in re.findall(r"[\d.]+", score)] == pytest.approx(told[name], abs=0.1)
    assert not left and {run.quantity for run in found} == {stored.WIN_RATE}


WINS = {"steps": 1, "score": 5.0, "wins": [1.0, 0.5]}
MEASURED = {
    "a learned reward": ({"judging": {"reward": "harmless-a"}}, WINS, 0.75, "win rate over the start"),
    "pairs of a data set": ({"judging": None}, WINS, 0.75, "win rate over the start"),
    "a judge of pairs": ({"judging": {"reward": "judge:mine:f"}}, WINS, 0.75, "win rate over the start"),
    "a function": ({"judging": {"reward": "mine:f"}}, WINS, 5.0, "held-out mean reward by mine:f."),
    "functions": ({"judging": {"reward": "mine:f,mine:g"}}, WINS, 5.0, "mean reward by the first of mine:f,mine:g."),
    "no judge": (
        {"judging": {"reward": "mine.safetensors"}},
        {"steps": 1, "score": 5.0},
        5.0,
        "mean reward by mine.safetensors.",
    ),
    "a verifier": ({"judging": {"reward": "verify:own"}}, {"steps": 1, "score": 0.5}, 0.5, "pass@1 by verify:own."),
    "margins": ({"judging": None}, {"steps": 1, "score": 0.5, "implicit_accuracy": 0.5}, 0.5, "implicit rewards"),
    "a simulator": ({"env": "mujoco"}, {"steps": 1, "score": 5.0}, 5.0, "return of the deterministic policy."),
}


@pytest.mark.parametrize("kind", MEASURED)
def test_the_page_says_what_its_score_is(tmp_path, kind):
    settings, row, score, words = MEASURED[kind]
    settings = settings | {"seed": 0, "config": {"method": {"name": "soft"}}}
    keep(tmp_path / "seed0.json", "soft", 0, 0.0, settings=settings, metrics=[{"steps": 0}, row])
    (run,), _ = stored.read_stored(tmp_path)
    assert [row.get("score") for row in run.rows] == [None, score]
    page = paper.page([run], [], "x")
    assert (
        re.search(rf"<p>Score: [^<]*{re.escape(words)}", page) and "Line: interquartile mean over seeds; band:" in page
    )


def test_what_was_not_measured_is_no_number(tmp_path):
    """A judge of pairs alone; runs of before have 0 for a score."""
    settings = {"judging": {"reward": "judge:mine:f"}, "config": {"method": {"name": "soft"}}}
    for seed, score in enumerate((0.0, None, 0.0)):
        rows = [{"steps": 1, "score": score}]
        name = "hard" if seed else "soft"
        keep(tmp_path / f"seed{seed}.json", name, seed, 0.0, settings=settings | {"seed": seed}, metrics=rows)
    found, left = stored.read_stored(tmp_path)
    assert not left and [line[:3] for line in table(rows_of(found))[1:]] == [
        ("soft", "not measured", "–"),
        ("hard", "not measured", "–"),
    ]
    page = paper.page(found, [], "x")
    assert "Score: not measured, as a judge of pairs" in page and "<svg" not in page and "0.000" not in page


def test_runs_of_another_score_are_in_another_table(tmp_path):
    """Where one of them has kept no wins."""
    settings = {"judging": {"reward": "harmless-a"}, "config": {"method": {"name": "soft"}}}
    keep(tmp_path / "a" / "seed0.json", "soft", 0, 0.0, settings=settings, metrics=[WINS])
    keep(tmp_path / "b" / "seed1.json", "soft", 1, 0.0, settings=settings, metrics=[{"steps": 1, "score": 5.0}])
    first, other = stored.read_stored(tmp_path)[0]
    assert first.setting != other.setting
    (line,) = stored.differences(first, other)
    assert line.startswith("score: 'held-out win rate") and "mean reward by harmless-a" in line


def test_an_interval_of_shares_ends_at_0_and_1(tmp_path):
    for seed, share in enumerate((0.0, 1.0, 0.5)):
        settings = {"judging": {"reward": "verify:own"}, "config": {"method": {"name": "soft"}}}
        keep(tmp_path / f"seed{seed}.json", "soft", seed, share, settings=settings)
    found, _ = stored.read_stored(tmp_path)
    assert table(rows_of(found))[1][1] == "0.500 [0.000, 1.000]"


def test_methods_of_ones_own_can_be_told_apart():
    colours = colours_of(["ppo:value", "mine", "yours x=1", "hard"])
    assert len(set(colours.values())) == 4 and colours["hard"] == COLOURS["hard"] and colours["ppo:value"] == "#000000"
    assert len(set(colours_of([f"hard clip={i}" for i in range(12)]).values())) == 12


@pytest.mark.parametrize(
    "make", [lambda p: None, lambda p: p.mkdir(), lambda p: leave(p / "x", "hard", 0, [1.0], done=False)]
)
def test_a_folder_without_a_finished_run_is_named(tmp_path, make):
    make(tmp_path / "none")
    with pytest.raises(ValueError, match=r"folder: .*none"):
        report.main(["--folder", str(tmp_path / "none"), "--output", str(tmp_path / "x.html")])
    assert not (tmp_path / "x.html").exists()
