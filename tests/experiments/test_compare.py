"""A comparison: which runs it makes, what each leaves, and what the table counts."""

import json
import subprocess
import sys

import pytest

from experiments import compare, results, sums, sweeps
from experiments.compare import Comparison, parse
from experiments.grid import Cell
from pairgrpo_jax.commands.runs import DONE
from pairgrpo_jax.training import NonFiniteError, settings
from pairgrpo_jax.training.run import versions

SCORES = {"ppo": 0, "hard": 50}


def leave(run, rows):
    """What a finished run leaves that is read; its exit code."""
    run.output.mkdir(parents=True, exist_ok=True)
    (run.output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.output / "config.json").write_text(json.dumps(settings(run)))
    (run.output / DONE).touch()
    return 0


@pytest.fixture
def stub(monkeypatch):
    """Runs that cost nothing: two rows of metrics, or the error that `fails` holds for (method, seed)."""
    made, fails = [], {}

    def execute(run, console):
        name = run.config.method.name
        made.append((name, run.seed))
        if (name, run.seed) in fails:
            raise fails[name, run.seed]
        score = [100.0 * (run.seed % 100) + SCORES[name] + 1e4 * run.config.optimizer.learning_rate]
        row = {"iteration": 1, "steps": 10, "seconds": 2.0, "score": score, "stochastic_score": score}
        rows = [row | {"realised_kl": [0.01 if run.seed % 100 else 1.0], "grad_norm": [1.0]}] * 3
        return leave(run, rows)

    monkeypatch.setattr(compare.cheetah, "execute", execute)
    monkeypatch.setattr(results, "commit", lambda: "a" * 40)
    return made, fails


@pytest.fixture
def go(monkeypatch, tmp_path, stub):
    def run(*words):
        where = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
        monkeypatch.setattr(sys, "argv", ["compare", *words, *where, "--methods", "ppo:value", "hard:value"])
        return compare.main()

    return run


def test_each_run_leaves_a_file_and_the_table_is_made_from_files(go, stub, tmp_path, monkeypatch, capsys):
    assert go("--seeds", "3") == 0
    assert stub[0] == [(name, seed) for seed in (100, 101, 102) for name in ("ppo", "hard")]
    (tmp_path / "runs").rename(tmp_path / "gone")
    monkeypatch.setattr(results, "commit", lambda: "b" * 40)
    assert go("--seeds", "3") == 0 and len(stub[0]) == 6  # none is made again, by a later commit either
    found = tmp_path / "results" / "mujoco" / "3000000"
    one = json.loads((found / "hard-value" / "seed101.json").read_text())
    assert one["commit"] == "a" * 40 and one["versions"]["jax"] and one["settings"]["config"]["method"]["alpha"] == 2.0
    assert one["metrics"][-1]["score"] == 175
    hard = next(x for x in (found / "compare.md").read_text().splitlines() if x.startswith("| hard:value"))
    ppo = next(x for x in (found / "compare.md").read_text().splitlines() if x.startswith("| ppo:value"))
    assert "**175**" in hard and "67%" in hard and f"{6 / 9:.2f} [" in hard and "| – |" in ppo
    before = (found / "compare.md").read_text()
    assert go("--seeds", "3", "--at", "1") == 0 and (found / "compare.md").read_text() == before
    assert (found / "compare-at-1.md").exists()
    (found / "compare.png").write_text("of all")
    capsys.readouterr()
    assert go("--seeds", "2", "--report-only") == 0 and (found / "compare.md").read_text() == before
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "| 2 |" in told
        and "nothing written, as 2 more results are there (hard-value/seed102, ppo-value/seed102)" in told
    )
    assert (found / "compare.png").read_text() == "of all"
    assert hard.count("|") == ppo.count("|") and (found / "compare.png").exists()


def test_a_run_that_cannot_be_finished_is_named_and_the_others_are_made(go, stub, tmp_path, capsys):
    made, fails = stub
    fails["ppo", 101] = NonFiniteError("20 updates in a row")
    fails["hard", 100] = RuntimeError("training failed")
    assert go("--seeds", "3") == 1 and len(made) == 6
    said = " ".join(capsys.readouterr().out.split())
    assert "not finished: ppo:value, seed 101: NonFiniteError: 20 updates in a row" in said
    assert "Not finished, and not counted: hard:value, seed 100; ppo:value, seed 101." in said
    fails.clear()
    assert go("--seeds", "3") == 0 and made[6:] == [("hard", 100), ("ppo", 101)]


def test_reasons_are_told_where_no_run_could_be_finished(go, stub, capsys):
    stub[1].update({(name, 100): ValueError("no split 'test'") for name in ("ppo", "hard")})
    assert go("--seeds", "1") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("seed 100: ValueError: no split 'test'") == 2 and "--report-only" not in said


def test_other_commits_versions_and_settings_are_refused_before_anything_runs(go, stub, tmp_path, monkeypatch):
    go("--seeds", "1")
    monkeypatch.setattr(results, "commit", lambda: "b" * 40)
    with pytest.raises(ValueError, match="different commits, aaaaaaaaaaaa and bbbbbbbbbbbb"):
        go("--seeds", "2")
    monkeypatch.setattr(results, "commit", lambda: "a" * 40)
    path = tmp_path / "results" / "mujoco" / "3000000" / "ppo-value" / "seed100.json"
    whole = path.read_text()
    for change, message in (
        (lambda x: x["versions"].update(jax="0.1"), "different versions: jax 0.1 and"),
        (
            lambda x: x["settings"]["config"]["collection"].update(gamma=0.5),
            r"other settings \(config.collection.gamma",
        ),
        (lambda x: x.pop("settings"), "is no result of a run"),
    ):
        change(result := json.loads(whole))
        path.write_text(json.dumps(result))
        with pytest.raises(ValueError, match=message):
            go("--seeds", "2")
    path.write_text(whole[:100])
    with pytest.raises(ValueError, match=f"{path.name} is no result of a run"):
        go("--seeds", "2")
    assert len(stub[0]) == 2


def test_a_run_that_other_versions_began_is_not_gone_on_with(go, stub, tmp_path):
    cell = tmp_path / "runs" / ("a" * 12) / "mujoco" / "3000000" / "ppo-value" / "seed100"
    cell.mkdir(parents=True)
    (cell / "versions.json").write_text(json.dumps(versions() | {"jax": "0.1", "machine": "another"}))
    with pytest.raises(
        ValueError, match=r"was begun with other versions: jax 0\.1 and .*; install those, or remove it"
    ):
        go("--seeds", "1")
    (cell / "versions.json").write_text(json.dumps(versions() | {"machine": "another"}))
    assert go("--seeds", "1") == 0 and len(stub[0]) == 2


def test_a_commit_is_that_of_the_package_and_its_files(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(results, "PACKAGE", tmp_path / "package")
    (tmp_path / "package").mkdir()
    with pytest.raises(ValueError, match="no git clone"):
        results.commit()
    (tmp_path / "package" / "a.py").write_text("1\n")
    git("init", "-q"), git("config", "user.email", "a@b.c"), git("config", "user.name", "a")
    git("add", "."), git("commit", "-qm", "first")
    first = git("rev-parse", "HEAD").strip()
    (tmp_path / "table.md").write_text("a result\n")
    git("add", "."), git("commit", "-qm", "results do not count")
    assert results.commit() == first
    for name in ("a.py", "b.py"):
        (tmp_path / "package" / name).write_text("2\n")
        with pytest.raises(ValueError, match=rf"{name} differ from what is committed"):
            results.commit()
        git("stash", "-u")


def test_a_sweep_has_as_many_trials_for_each_method_and_seeds_of_its_own(go, stub, tmp_path):
    assert {len(sweeps.trials(name)) for name in sweeps.LEVERS} == {9}
    for method in Comparison().methods:
        args = Comparison("tune", methods=(method,), seeds=2)
        runs = [args.run_of(cell) for cell in args.cells()]
        assert len({json.dumps(settings(run.config)) for run in runs}) == 9 and {run.seed for run in runs} == {0, 1}
        assert any(run.config == parse(method) for run in runs)  # the presets are among them
    assert go("tune", "--seeds", "1", "--steps", "10") == 0 and len(stub[0]) == 18
    table = (tmp_path / "results" / "mujoco" / "10" / "tune.md").read_text()
    assert table.count("| hard:value learning_rate=") == 9
    args = Comparison(methods=("ppo:value", "hard:value"), tuned_at=10, seeds=2, results=tmp_path / "results")
    assert args.best_trial("hard:value").startswith("learning_rate=0.005,")
    run = args.run_of(args.cells()[0])
    assert run.config.optimizer.learning_rate == 0.005 and run.seed == 100 and run.steps == 3e6
    tune = Comparison("tune", steps=10, results=args.results)
    tune.path_of(Cell("hard:value", args.cells()[1].trial, 0)).unlink()
    with pytest.raises(ValueError, match="the sweep of hard:value at 10 steps is not whole"):
        args.cells()


@pytest.mark.parametrize(
    "changes",
    [{"first_seed": 0}, {"first_seed": 99}, {"step": "tune", "seeds": 101}, {"step": "tune", "first_seed": 100}],
)
def test_tuning_seeds_are_never_counted(changes):
    with pytest.raises(ValueError, match="seeds 0 to 99 are for tuning alone"):
        Comparison(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"methods": (m,)}
            for m in ("hard", "sarsa:value", "hard:q", "soft:value:none", "ppo:value:all", "ppo:segment")
        ),
        {"methods": ("hard:value:",)},
        {"methods": ()},
        {"methods": ("ppo:value", "ppo:value")},
        {"seeds": 0},
        {"steps": float("inf")},
        {"step": "tune", "tuned_at": 1e6},
    ],
)
def test_bad_input_is_named(changes):
    with pytest.raises(ValueError, match=r"methods|seeds|steps|tuned_at"):
        Comparison(**changes)


def test_a_scheme_is_named_after_the_advantage():
    config = parse("soft:value:margin_weighted")
    method, plain = config.method, parse("soft:value").method
    assert (method.scheme, method.margin) == ("margin_weighted", 0.0) and plain.margin > 0


def test_a_report_without_results_says_so(tmp_path):
    with pytest.raises(ValueError, match="results: no finished run in"):
        Comparison(results=tmp_path).finished()


@pytest.mark.parametrize("method", ["dpo", "soft-offline", "hart", "hard:value"])
def test_sums_are_for_methods_that_sample(method):
    with pytest.raises(ValueError, match="methods"):
        sums.Sums(methods=(method,))


def test_sums_compare_the_default_job(monkeypatch, tmp_path):
    """pass@1 at the end, when 90% was reached, and a sweep of as many rates for each method."""

    def execute(run, console):
        end = (0.8 if run.config.method.name == "grpo" else 0.95) + 0.01 * (run.seed % 100)
        found = {"reply_tokens": 2.0, "seconds": 90.0, "held_out/verify:own/rival": 0.1}
        scores = ((1, 0.1), (2, 0.92 if end > 0.9 else 0.5), (3, end))
        rows = [
            {"iteration": i, "score": s, "kl_reference": 1.5 * i, "held_out/verify:own/each": [s, s - 0.02], **found}
            for i, s in scores
        ]
        return leave(run, rows)

    monkeypatch.setattr(sums.Sums.program, "execute", execute)
    monkeypatch.setattr(results, "commit", lambda: "a" * 40)
    where = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--methods", "grpo", "hard"]
    monkeypatch.setattr(sys, "argv", ["sums", *where, "--seeds", "3", "--iterations", "24"])
    assert sums.main() == 0
    grpo, hard = (tmp_path / "results" / "24" / "compare.md").read_text().splitlines()[2:4]
    assert "| **80.0** [" in grpo and "| 0 of 3 |" in grpo and "| – |" in grpo
    assert "| **95.0** [" in hard and "| 3 of 3, 2 |" in hard and "| 1.00 [" in hard and "| 1.5 | 3 |" in hard
    assert (tmp_path / "results" / "24" / "compare.png").exists()
    grpo, hard = (tmp_path / "results" / "24" / "compare.md").read_text().splitlines()[-2:]
    assert grpo.startswith("| grpo | **9.2** [") and "| **23.9** [" in grpo and grpo.endswith("not measured | – |")
    share = (2**0.5 - 1.5**0.5) / (3**0.5 - 1.5**0.5)  # of 92 less 50
    assert f"| +{42 * share:.1f} [" in hard and hard.endswith(", 1.00 (3) | not measured | not measured |")
    asked = sums.Sums("tune", methods=("grpo", "hard"), seeds=1)
    assert [cell.method for cell in asked.cells()].count("hard") == len(sums.Sums.rates) == len(asked.cells()) / 2
    assert {asked.run_of(cell).data for cell in asked.cells()} == {sums.align_settings.SUMS}


def test_a_table_at_an_earlier_step_counts_the_first_evaluation_after_it():
    run = [{"steps": 10, "score": 1.0}, {"steps": 20}, {"steps": 30, "score": 3.0}, {"steps": 40, "score": 4.0}]
    assert compare.until({"ppo": [run]}, 20) == {"ppo": [run[:3]]}
    assert compare.until({"ppo": [run]}, 30) == {"ppo": [run[:3]]}
    assert compare.until({"ppo": [run]}, None) == {"ppo": [run]}
    with pytest.raises(ValueError, match="at=5000000 must be at most steps=3000000"):
        Comparison(at=5e6)
