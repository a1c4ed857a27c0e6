"""The host's loop, with a counter as the program."""

import contextlib
import dataclasses
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from pairgrpo_jax.training import (
    Checkpoints,
    MetricLog,
    NonFiniteError,
    Relay,
    Schedule,
    TrainState,
    read_metrics,
    train,
)
from pairgrpo_jax.training.console import LineConsole

EVERY = {"save_every": 6, "steps_per_iteration": 10}
SCHEDULE = Schedule(iterations=12, chunk=2, evaluate_every=4, save_every=6, steps_per_iteration=10)


def make_state():
    return TrainState.create({"w": jnp.zeros(())}, optax.sgd(0.1), jax.random.key(0))


def program(state, count):
    """Counts iterations in the parameter, and reports them."""
    values = state.params["w"] + 1 + jnp.arange(count)
    return state.replace(params={"w": values[-1]}), {"count": values}


def evaluate(state, iteration):
    assert state.params["w"] == iteration
    return {"score": -abs(iteration - 8.0)}  # best at 8


def run(
    folder, start=0, state=None, step=program, schedule=SCHEDULE, judge=evaluate, console=None, trackers=(), **options
):
    checkpoints, log = Checkpoints(folder / "checkpoints", keep=1), MetricLog(folder, start, trackers)
    complete = False
    try:
        ended = train(
            step,
            state or make_state(),
            schedule,
            start=start,
            checkpoints=checkpoints,
            log=log,
            evaluate=judge,
            console=console or Console(quiet=True),
            **options,
        )
        complete = True
        return ended
    finally:
        log.close(complete)


def resume(folder, **options):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        start, state = checkpoints.restore(make_state())
    return run(folder, start, state, **options)


def unavailable(state, iteration):
    raise ConnectionError("no answer")


def test_logs_every_iteration_and_keeps_the_newest_and_the_best(tmp_path):
    state, done, stopped = run(tmp_path)
    rows = read_metrics(tmp_path)
    assert (float(state.params["w"]), done, stopped) == (12, 12, None)
    assert [(row["iteration"], row["steps"], row["count"]) for row in rows] == [(i, 10 * i, i) for i in range(1, 13)]
    assert [row["iteration"] for row in rows if "score" in row] == [4, 8, 12]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [8, 12]
    assert checkpoints.restore(make_state())[1].params["w"] == 12


def test_goes_on_from_a_checkpoint_with_its_clock(tmp_path):
    run(tmp_path)
    before = read_metrics(tmp_path)
    _, done, _ = run(tmp_path, start=8, state=make_state().replace(params={"w": jnp.float32(8)}))
    after = read_metrics(tmp_path)
    assert done == 12 and [row["count"] for row in after] == [row["count"] for row in before]
    seconds = [row["seconds"] for row in after if "seconds" in row]
    assert seconds == sorted(seconds)


def test_a_signal_saves_and_stops_after_the_chunk(tmp_path):
    def step(state, count):
        if state.params["w"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return program(state, count)

    _, done, stopped = run(tmp_path, step=step)
    assert (done, stopped) == (4, signal.SIGTERM)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]


def test_a_reader_that_leaves_saves_and_stops_too(tmp_path, monkeypatch):
    """As of `pairgrpo ... | head`: the first line that nobody reads is the one before the first chunk."""
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as nobody:  # closing it writes what was left
        monkeypatch.setattr(sys, "stdout", nobody)
        _, done, stopped = run(tmp_path, console=LineConsole())
        monkeypatch.undo()
    assert (done, stopped) == (2, signal.SIGPIPE)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]


@pytest.mark.parametrize(
    ("schedule", "evaluated", "calls"),
    [
        (Schedule(10, 4, 4, **EVERY), [4, 8, 10], [4, 4, 2]),
        (Schedule(10, 4, 5, **EVERY), [5, 10], [4, 1, 4, 1]),
        (Schedule(10, 3, 99, **EVERY, evaluations=6), [2, 4, 5, 7, 9, 10], [1] * 10),
        (Schedule(10, 2, 99, **EVERY, evaluations=6), [2, 4, 5, 7, 9, 10], [2, 2, 1, 2, 2, 1]),
        (Schedule(99, 50, 99, **EVERY, evaluations=2), [50, 99], [50, 49]),
        (Schedule(3, 2, 99, **EVERY, evaluations=6), [1, 2, 3], [1, 1, 1]),
        (Schedule(10, 1, 99, **EVERY, evaluations=1), [10], [1] * 10),
        (SCHEDULE, [4, 8, 12], [2] * 6),
    ],
)
def test_iterations_and_evaluations_are_as_many_as_asked_for(tmp_path, schedule, evaluated, calls):
    lengths, saved = [], []

    def step(state, count):
        lengths.append(count)
        return program(state, count)

    state, done, _ = run(tmp_path, step=step, schedule=schedule)
    assert lengths == calls and done == state.params["w"] == schedule.iterations == sum(calls)
    rows = read_metrics(tmp_path)
    assert [row["iteration"] for row in rows if "score" in row] == evaluated and len(rows) == done
    for start in range(1, done):  # resumed anywhere: a second length at most, and from a checkpoint the same calls
        rest = list(schedule.chunks(start))
        assert sum(rest) == done - start and len({*rest} - {schedule.chunk}) <= 1
        for i in range(len(calls)):
            saved += [sum(calls[:i]) != start or rest == calls[i:]]
    assert all(saved)


def test_checkpoints_fall_due_inside_of_a_chunk(tmp_path):
    saved = []
    schedule = Schedule(20, 4, 20, save_every=6, steps_per_iteration=1)

    def step(state, count):
        saved.append(Checkpoints(tmp_path / "checkpoints").steps())
        return program(state, count)

    run(tmp_path, step=step, schedule=schedule)
    assert saved == [[], [], [8], [12], [12]]


@pytest.mark.parametrize("field", ["chunk", "evaluate_every", "save_every", "seeds", "evaluations"])
def test_a_schedule_without_sense_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be >"):
        dataclasses.replace(SCHEDULE, **{field: 0})


def test_one_diverged_seed_does_not_end_the_run(tmp_path, caplog):
    def step(state, count):
        state, metrics = program(state.replace(params={"w": state.params["w"][0]}), count)
        alone = state.params["w"] > 3
        state = state.replace(params={"w": jnp.stack([state.params["w"]] * 2)})
        return state.replace(skipped_in_row=jnp.array([0, 99]) * alone), metrics

    state = make_state().replace(params={"w": jnp.zeros(2)}, skipped_in_row=jnp.zeros(2, jnp.int32))
    _, done, _ = run(tmp_path, step=step, state=state, judge=lambda state, iteration: {"score": [1.0, jnp.nan]})
    assert done == 12 and caplog.text.count("seed 1 has diverged") == 1
    assert Checkpoints(tmp_path / "checkpoints").best() is None  # the mean over seeds is no number


def test_non_finite_updates_end_the_run_and_spare_the_last_good_checkpoint(tmp_path):
    def step(state, count):
        state, metrics = program(state, count)
        return state.replace(skipped_in_row=jnp.where(state.params["w"] > 7, 99, 0)), metrics

    with pytest.raises(NonFiniteError, match="99 updates in a row"):
        run(tmp_path, step=step)
    saved, state = Checkpoints(tmp_path / "checkpoints").restore(make_state())
    assert saved == 6 and state.params["w"] == 6


def test_a_line_of_progress_is_one_line_names_what_it_shows_and_has_no_minus_0(tmp_path, capsys):
    def step(state, count):
        state, metrics = program(state, count)
        return state, metrics | {"kl_ref": -1e-9 * jnp.ones(count), "tokens": 100 * jnp.ones(count)}

    shown = {"score": "return", "kl_ref": "KL to the reference, of which the name is long", "count": "so many of these"}
    for folder, made in (("steps", program), ("tokens", step)):
        console = Console(soft_wrap=True, highlight=False, width=40)
        run(tmp_path / folder, step=made, judge=lambda *_: {"score": -0.00000001}, shown=shown, console=console)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("compiling; progress is told at each evaluation (3 to come)") == 2
    lines = [line for line in lines if not line.startswith("compiling")]
    assert len(lines) == 6 and all(line.endswith(" s left") for line in lines)
    assert lines[0].startswith("40 steps  ") and " steps/s  return -1e-08  " in lines[0]
    assert lines[5].startswith("batch 12 of 12  ") and " tokens/s  return " in lines[5]


def test_speed_is_the_programs_without_compiling_and_evaluations(tmp_path, capsys):
    calls = []

    def step(state, count):
        calls.append(count)
        time.sleep(0.6 if len(calls) == 1 else 0.01 * count)
        return program(state, count)

    def judge(*_):
        time.sleep(0.3)
        return {"score": 1.0}

    run(tmp_path, step=step, judge=judge, console=Console(soft_wrap=True, highlight=False, width=40))
    first, *_, last = [line for line in capsys.readouterr().out.splitlines() if "steps/s" in line]
    speeds = [float(line.split("  ")[1].removesuffix(" steps/s").replace(",", "")) for line in (first, last)]
    assert speeds[1] == pytest.approx(10 / 0.01, rel=0.5)  # 10 steps an iteration
    assert all(speed > 200 for speed in speeds)  # 40 steps a line, in 0.9 s with what is left out


def test_zero_has_no_sign_and_what_is_not_measured_is_told(tmp_path, capsys):
    console = Console(soft_wrap=True)
    run(tmp_path / "zero", judge=lambda *_: {"score": -0.0}, console=console)
    assert "score 0  " in capsys.readouterr().out
    run(tmp_path / "none", judge=lambda *_: {"score": float("nan")}, console=console)
    assert "  no score  " in (said := capsys.readouterr().out) and "nan" not in said


@pytest.mark.parametrize(("failing", "lost"), [(8, False), (12, False), (8, True)])
def test_an_evaluation_that_fails_costs_nothing_and_is_made_again(tmp_path, failing, lost):
    """An outage of who judges, on the way or at the very end."""

    def judge(state, iteration):
        return (unavailable if iteration == failing else evaluate)(state, iteration)

    with pytest.raises(ConnectionError):
        run(tmp_path, judge=judge, schedule=dataclasses.replace(SCHEDULE, save_every=100))
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [*range(1, failing + 1)]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        start, state = checkpoints.restore(make_state())
        assert start == failing and not checkpoints.scored(start)
    if lost:  # with the machine, but for the checkpoints
        (tmp_path / "metrics.jsonl").unlink()
    _, done, _ = run(tmp_path, start=start, state=state)
    run(tmp_path / "whole")
    rows, whole = read_metrics(tmp_path), read_metrics(tmp_path / "whole")
    if lost:
        assert [(row["iteration"], row["score"]) for row in rows if "score" in row] == [(8, 0), (12, -4)]
        rows, whole = rows[1:], whole[8:]
    assert done == 12 and [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in whole]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.best() == 8


def test_trackers_hear_of_an_evaluation_that_is_made_up_for_in_its_row(tmp_path):
    """Once, as services take a step once: wandb drops a second row of it, and MLflow keeps both."""

    heard = []

    class Service:
        name, id, where = "told", "7", "nowhere"

        def log(self, values, step):
            heard.append((step, values["count"], values.get("score")))

        def finish(self, summary, complete):
            """Nothing is open."""

    class Board(list):
        """Is shown all that is kept anew at each opening, as TensorBoard."""

        log = list.append

        def finish(self, summary):
            """Nothing is open."""

    boards = []
    for go, judge in ((run, unavailable), (resume, unavailable), (resume, evaluate), (resume, evaluate)):
        boards.append(Board())
        with contextlib.suppress(ConnectionError):
            go(tmp_path, judge=judge, trackers=[Relay(Service(), tmp_path), boards[-1]])
    scores = {4: -4, 8: 0, 12: -4}
    assert heard == [(i, i, scores.get(i)) for i in range(1, 13)]
    assert [len(board) for board in boards] == [3, 3, 12, 12]
    for board in boards[2:]:
        assert [(row["iteration"], row.get("score")) for row in board] == [(i, scores.get(i)) for i in range(1, 13)]


@pytest.mark.parametrize("score", [-1.0, float("nan"), [1.0, float("nan")]])
@pytest.mark.parametrize("lost", [False, True])
def test_a_run_at_its_end_is_evaluated_again_only_where_its_log_is_lost(tmp_path, score, lost, caplog):
    """A score of null is one too: of seeds that have diverged, or a reward that failed for all prompts."""
    judged = []

    def judge(state, iteration):
        judged.append(iteration)
        return {"score": score}

    run(tmp_path, judge=judge)
    best = Checkpoints(tmp_path / "checkpoints").best()
    for _ in range(2):
        if lost:
            (tmp_path / "metrics.jsonl").unlink()
        resume(tmp_path, judge=judge)
    assert judged == [4, 8, 12] + [12, 12] * lost and "checkpoint" not in caplog.text
    (last,) = read_metrics(tmp_path)[-1:]
    np.testing.assert_equal(last["score"], score)
    assert Checkpoints(tmp_path / "checkpoints").best() == best


def test_a_score_that_a_kill_kept_from_its_checkpoint_is_in_the_log(tmp_path, monkeypatch):
    short = {"schedule": dataclasses.replace(SCHEDULE, iterations=4)}
    with pytest.raises(ConnectionError):
        run(tmp_path, judge=unavailable, **short)
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoints, "add_score", lambda *_: None)
        resume(tmp_path, **short)
    assert Checkpoints(tmp_path / "checkpoints").best() is None
    resume(tmp_path, judge=unavailable, **short)
    assert Checkpoints(tmp_path / "checkpoints").best() == 4
    assert [row.get("score") for row in read_metrics(tmp_path)] == [None, None, None, -4]


def test_what_fails_while_its_metrics_are_fetched_costs_a_chunk(tmp_path):
    """As programs do that run on by themselves: their errors come with their results."""

    class Failed:
        def __array__(self, *_, **__):
            raise RuntimeError("out of memory")

    def step(state, count):
        state, metrics = program(state, count)
        return state, metrics | ({"late": Failed()} if metrics["count"][0] > 6 else {})

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, step=step, schedule=dataclasses.replace(SCHEDULE, save_every=100))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 6]


def test_a_whole_run_and_one_that_is_at_its_end_save_nothing_twice(tmp_path, caplog):
    run(tmp_path)
    run(tmp_path, start=12, state=make_state().replace(params={"w": jnp.float32(12)}))
    assert not caplog.messages
