"""How long a run is, and when it is finished."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

from pairgrpo_jax.commands.align_settings import preset
from pairgrpo_jax.commands.runs import (
    DONE,
    digest_of,
    is_finished,
    require_length,
    require_same_inputs,
    train_in_folder,
)
from pairgrpo_jax.training import RunFolderError, Schedule, TrainState, open_folder, settings


@pytest.fixture
def made(tmp_path):
    """A finished run of four batches, which could go on."""
    run = preset("hard").replace(output=tmp_path / "run", iterations=4, evaluations=1, anneal=False)
    with open_folder(run.output, settings(run), resume=False):
        (run.output / DONE).touch()
    return run


def test_a_run_that_is_made_longer_is_finished_no_more(made):
    longer = made.replace(iterations=9)
    assert is_finished(made) and not is_finished(longer)
    require_length(longer, 4, 9)
    assert not (made.output / DONE).exists()


def test_a_run_cannot_be_made_shorter_and_keeps_its_settings(made):
    shorter = made.replace(iterations=2)
    with pytest.raises(RunFolderError, match=r"output: .* made with other settings \(seed: 0 -> 3\); move it away"):
        is_finished(made.replace(seed=3))
    with open_folder(made.output, settings(shorter), resume=True, free=shorter.free):
        with pytest.raises(ValueError, match=r"iterations: .* has made 4 iterations, and 2 are asked for"):
            require_length(shorter, 4, 2)
    assert json.loads((made.output / "config.json").read_text())["iterations"] == 4 and is_finished(made)


def test_a_run_does_not_go_on_with_other_rows(made):
    """Whose order is another from there on."""
    rows = [(("a",), [1, 2]), (("b",), [3])]
    require_same_inputs(made, {"data": ("rows.jsonl", digest_of(rows))})
    again = made.replace(resume=True)
    require_same_inputs(again, {"data": ("rows.jsonl", digest_of(rows[:1], rows[1:])), "judge": ("b", "0")})
    for changed in (rows[:1], rows[::-1], [*rows, (("c",), [4])]):
        with pytest.raises(RunFolderError, match=r"data: rows\.jsonl holds something else than when"):
            require_same_inputs(again, {"data": ("rows.jsonl", digest_of(changed))})
    with pytest.raises(RunFolderError, match="judge: b holds"):
        require_same_inputs(again, {"judge": ("b", "1")})
    require_same_inputs(made, {"data": ("rows.jsonl", digest_of(rows[:1]))})  # begun anew


def test_a_run_without_a_checkpoint_yet_goes_on_with_the_settings_that_it_is_given(made):
    """Finished once, its checkpoints gone: it is made anew, and is not finished while it is."""
    longer, open_still = made.replace(iterations=9, resume=True), []

    def evaluate(state, iteration):
        open_still.append(not (made.output / DONE).exists())
        return {"score": 0.0}

    with open_folder(made.output, settings(longer), resume=True, free=longer.free):
        _, done, _ = train_in_folder(
            longer,
            lambda state, count: (state, {"reward": jnp.zeros(count)}),
            TrainState.create({"w": jnp.zeros(())}, optax.sgd(0.1), jax.random.key(0)),
            Schedule(9, 1, 9, 9, 1),
            evaluate=evaluate,
            shown={},
            console=Console(quiet=True),
        )
    stored = json.loads((made.output / "config.json").read_text())
    assert done == 9 and open_still == [True] and stored["iterations"] == 9
