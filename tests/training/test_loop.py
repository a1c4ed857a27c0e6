"""The host's loop, with a counter as the program."""

import os
import signal

import jax
import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

from pairgrpo_jax.training import (
    Checkpoints,
    MetricLog,
    NonFiniteError,
    Schedule,
    TrainState,
    read_metrics,
    train,
)

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


def run(folder, start=0, state=None, step=program, **options):
    checkpoints, log = Checkpoints(folder / "checkpoints", keep=1), MetricLog(folder, after=start)
    try:
        return train(
            step,
            state or make_state(),
            SCHEDULE,
            start=start,
            checkpoints=checkpoints,
            log=log,
            evaluate=evaluate,
            console=Console(quiet=True),
            **options,
        )
    finally:
        log.close()


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


def test_non_finite_updates_end_the_run_and_spare_the_last_good_checkpoint(tmp_path):
    def step(state, count):
        state, metrics = program(state, count)
        return state.replace(skipped_in_row=jnp.where(state.params["w"] > 7, 99, 0)), metrics

    with pytest.raises(NonFiniteError, match="99 updates in a row"):
        run(tmp_path, step=step)
    step, state = Checkpoints(tmp_path / "checkpoints").restore(make_state())
    assert step == 6 and state.params["w"] == 6
