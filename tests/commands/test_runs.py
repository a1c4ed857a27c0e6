"""How long a run is, and when it is finished."""

import json

import pytest

from pairgrpo_jax.commands.align_settings import preset
from pairgrpo_jax.commands.runs import DONE, is_finished, require_length
from pairgrpo_jax.training import open_folder, settings


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
    with open_folder(made.output, settings(shorter), resume=True, free=shorter.free):
        with pytest.raises(ValueError, match=r"iterations: .* has made 4 iterations, and 2 are asked for"):
            require_length(shorter, 4, 2)
    assert json.loads((made.output / "config.json").read_text())["iterations"] == 4 and is_finished(made)
