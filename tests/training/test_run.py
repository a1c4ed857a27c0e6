"""The run folder and its metrics."""

import json

import jax
import pytest

from pairgrpo_jax.training import MetricLog, RunFolderError, open_folder, read_metrics

CONFIG = {"seed": 0, "output": "a", "config": {"algo": "hard", "clip": 0.2}}


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunFolderError, match="not empty"):
        open_folder(tmp_path, CONFIG, resume=False)
    run = tmp_path / "run"
    open_folder(run, CONFIG, resume=False)
    before = (run / "config.json").read_text()
    with pytest.raises(RunFolderError, match="holds another run: add --resume"):
        open_folder(run, CONFIG | {"seed": 1}, resume=False)
    assert (run / "config.json").read_text() == before


def test_resume_names_the_settings_that_differ(tmp_path):
    open_folder(tmp_path / "run", CONFIG, resume=False)
    changed = CONFIG | {"output": "b", "config": {"algo": "soft", "clip": 0.2}}
    with pytest.raises(RunFolderError, match=r"config\.algo: 'hard' -> 'soft'") as error:
        open_folder(tmp_path / "run", changed, resume=True, free=("output",))
    assert "clip" not in str(error.value) and "output:" not in str(error.value)
    open_folder(tmp_path / "run", CONFIG | {"output": "b"}, resume=True, free=("output",))


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    log = MetricLog(tmp_path)
    for i in range(1, 5):
        log.write({"iteration": i, "steps": 10 * i, "return": [1.0, 2.0]})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "ste')  # torn by a kill
    assert len(read_metrics(tmp_path)) == 4
    MetricLog(tmp_path, after=2).close()
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_folder_may_be_a_string_and_is_made(tmp_path):
    log = MetricLog(f"{tmp_path}/runs/x")
    log.write({"iteration": 1, "steps": 10})
    log.close()
    assert read_metrics(f"{tmp_path}/runs/x") == [{"iteration": 1, "steps": 10}]
    open_folder(f"{tmp_path}/runs/y", CONFIG, resume=False).close()


def test_two_processes_do_not_write_one_run(tmp_path):
    with open_folder(tmp_path / "run", CONFIG, resume=False):
        with pytest.raises(RunFolderError, match="another process"):
            open_folder(tmp_path / "run", CONFIG, resume=True)
    open_folder(tmp_path / "run", CONFIG, resume=True).close()


def test_a_log_makes_its_folder_and_takes_a_name(tmp_path):
    log = MetricLog(str(tmp_path / "runs" / "x"))
    log.write({"iteration": 1, "steps": 2, "loss": 0.5})
    log.close()
    assert read_metrics(str(tmp_path / "runs" / "x")) == [{"iteration": 1, "steps": 2, "loss": 0.5}]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("jax_enable_x64", True), ("jax_threefry_partitionable", False), ("jax_default_matmul_precision", "highest")],
)
def test_a_run_under_other_numeric_flags_is_told(tmp_path, caplog, flag, value):
    open_folder(tmp_path / "run", CONFIG, resume=False).close()
    before = getattr(jax.config, flag)
    open_folder(tmp_path / "run", CONFIG, resume=True).close()
    assert not caplog.text
    jax.config.update(flag, value)
    try:
        open_folder(tmp_path / "run", CONFIG, resume=True).close()
    finally:
        jax.config.update(flag, before)
    assert f"{flag} ({before} -> {value}) differ" in caplog.text and "not bit for bit" in caplog.text


def test_another_kind_of_random_keys_is_refused_by_its_name(tmp_path):
    open_folder(tmp_path / "run", CONFIG, resume=False).close()
    with jax.default_prng_impl("rbg"), pytest.raises(RunFolderError, match="JAX_DEFAULT_PRNG_IMPL=threefry2x32"):
        open_folder(tmp_path / "run", CONFIG, resume=True)
    versions = tmp_path / "run" / "versions.json"  # of a run of before the flags were kept
    kept = {name: value for name, value in json.loads(versions.read_text()).items() if not name.startswith("jax_")}
    versions.write_text(json.dumps(kept))
    open_folder(tmp_path / "run", CONFIG, resume=True).close()
