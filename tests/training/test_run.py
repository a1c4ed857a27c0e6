"""The run folder and its metrics."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
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
    with pytest.raises(RunFolderError, match=r"algo: 'hard' -> 'soft'") as error:
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


def test_a_row_is_amended_or_as_it_was_wherever_a_kill_comes(tmp_path):
    """After every line of code that runs."""
    log, whole, tracing = MetricLog(tmp_path), [], sys.gettrace()

    def look(*_):
        whole.append([row["iteration"] for row in read_metrics(tmp_path)] == [1, 2])
        return look

    for i in (1, 2):
        log.write({"iteration": i, "steps": 10 * i, "r": [1.0, math.nan]})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="score must be a number"):
        log.amend({"iteration": 2, "steps": 20, "score": None})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    sys.settrace(look)
    log.amend({"iteration": 2, "steps": 20, "score": 0.5})
    sys.settrace(tracing)
    assert len(whole) > 5 and all(whole)
    log.write({"iteration": 3, "steps": 30})
    log.amend({"iteration": 4, "steps": 40, "score": 1.5})
    log.close()
    scores = [(row["iteration"], row.get("score")) for row in read_metrics(tmp_path)]
    assert scores == [(1, None), (2, 0.5), (3, None), (4, 1.5)]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before[:-2])


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"r": 1.0}, "must have a number iteration, got none"),
        ({"iteration": 3, "r": 1.0}, "must have a number steps, got none"),
        ({"iteration": [3], "steps": 1}, r"must have a number iteration, got \[3\]"),
        ({"iteration": math.nan, "steps": 1}, "must have a number iteration, got nan"),
        ({"iteration": 3, "steps": 3, "r": [1.0, None]}, r"r must be a number or a list of numbers, got \[1.0, None\]"),
        ({"iteration": 3, "steps": 3, "r": None}, "r must be a number"),
        (
            {"iteration": 3, "steps": 3, "note": "half way"},
            "note must be a number or a list of numbers, got 'half way'",
        ),
        ({"iteration": 3, "steps": 3, "deep": {"r": 1.0}}, "deep must be a number"),
        ({"iteration": 3, "steps": 3, "ragged": [[1.0], [1.0, 2.0]]}, "ragged must be a number"),
        ({"iteration": 3, "steps": 3, "wave": 1j}, "wave must be a number"),
    ],
)
def test_a_row_that_is_none_is_named_and_not_written(tmp_path, row, message):
    log = MetricLog(tmp_path)
    log.write({"iteration": 1, "steps": 1, "r": 1.0})
    with pytest.raises(ValueError, match=f"metrics: .*{message}"):
        log.write(row)
    log.write({"iteration": 2, "steps": 2, "r": 2.0})
    log.close()
    assert [row["r"] for row in read_metrics(tmp_path)] == [1, 2]
    MetricLog(tmp_path, after=1).close()
    MetricLog(tmp_path).close()


def test_numbers_of_numpy_and_jax_are_logged_as_they_are(tmp_path):
    numbers = {
        "a": np.float32(0.1),
        "b": jnp.float32(0.1),
        "c": jnp.bfloat16(1.5),
        "d": np.int64(7),
        "e": jnp.arange(2),
    }
    lists = {"f": [np.float32(1), jnp.float32(2)], "g": np.ones((2, 1)), "h": True, "i": [], "j": 3, "k": 0.1}
    log = MetricLog(tmp_path)
    log.write({"iteration": np.int32(1), "steps": jnp.int32(10)} | numbers | lists)
    log.close()
    tenth = float(np.float32(0.1))
    expected = {"a": tenth, "b": tenth, "c": 1.5, "d": 7, "e": [0, 1]}
    expected |= {"f": [1, 2], "g": [[1], [1]], "h": True, "i": [], "j": 3, "k": 0.1}
    assert read_metrics(tmp_path) == [{"iteration": 1, "steps": 10} | expected]


def test_what_is_not_finite_is_null_in_strict_json_and_read_as_nan(tmp_path):
    def refuse(constant):
        raise ValueError(constant)

    log = MetricLog(tmp_path)
    log.write({"iteration": 1, "steps": 1, "r": math.nan, "each": [1.0, math.inf], "x": jnp.float32(jnp.nan)})
    log.close()
    for after in (1, 1):  # what is kept is written anew
        line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
        assert line == {"iteration": 1, "steps": 1, "r": None, "each": [1.0, None], "x": None}
        row = read_metrics(tmp_path)[0]
        assert math.isnan(row["r"]) and math.isnan(row["each"][1]) and math.isnan(row["x"]) and row["each"][0] == 1
        MetricLog(tmp_path, after=after).close()


def test_files_of_before_with_nan_in_them_are_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "steps": 1, "r": NaN, "each": [-Infinity, NaN]}\n')
    row = read_metrics(tmp_path)[0]
    assert math.isnan(row["r"]) and row["each"][0] == -math.inf and math.isnan(row["each"][1])
