"""The results in the repository are read by the code of today: a referee makes the tables from them."""

from pathlib import Path

import pytest

from experiments.compare import Comparison
from experiments.preferences import Preferences
from experiments.sums import Sums

RESULTS = Path(__file__).parents[2] / "docs" / "results"
AT_1M = {"methods": ("ppo:value", "grpo:value", "soft:value", "hard:value"), "steps": 1e6, "seeds": 5}
AT_15M = {"methods": ("hard:value",), "steps": 1.5e7, "seeds": 5}
AT_30M = {"methods": ("ppo:value", "hard:value", "soft:value"), "steps": 3e7, "seeds": 3}
SUMS = {"operands": "bfloat16", "first_seed": 102, "results": RESULTS / "sums"}
PREFERENCES = {"methods": ("grpo", "soft", "hard"), "operands": "bfloat16", "results": RESULTS / "preferences"}
HARMLESS = {"data": "data/hh-rlhf-harmless-base", "split": "test"}
OTHERS = {"methods": ("rank", "ppo", "hard@3e-4")}
HELPFUL = {"domain": "helpful", "data": "data/hh-rlhf-helpful-base", "split": "test", "seeds": 3}
SLOWER = {"methods": ("hard@3e-4",)}
ULTRAFEEDBACK = {"domain": "ultrafeedback", "data": "data/ultrafeedback-binarized-1200", "split": "all", "seeds": 3}


@pytest.mark.parametrize(
    ("grid", "runs"),
    [
        (Comparison(results=RESULTS / "halfcheetah"), 50),
        (Comparison(results=RESULTS / "halfcheetah", **AT_1M), 20),
        (Comparison(results=RESULTS / "halfcheetah", **AT_15M), 5),
        (Comparison(results=RESULTS / "halfcheetah", **AT_30M), 9),
        (Sums(**SUMS), 20),
        (Preferences(**PREFERENCES, **HARMLESS), 15),
        (Preferences(**PREFERENCES | OTHERS, **HARMLESS), 15),
        (Preferences(**PREFERENCES, **HELPFUL), 9),
        (Preferences(**PREFERENCES | SLOWER, **HELPFUL), 3),
        (Preferences(**PREFERENCES, **ULTRAFEEDBACK), 9),
        (Preferences(**PREFERENCES | SLOWER, **ULTRAFEEDBACK), 3),
    ],
    ids=[
        "cheetah, 3M",
        "cheetah, 1M",
        "cheetah, 15M",
        "cheetah, 30M",
        "sums",
        "harmless",
        "harmless, others",
        "helpful",
        "helpful, Hard's smaller rate",
        "UltraFeedback",
        "UltraFeedback, Hard's smaller rate",
    ],
)
def test_stored_runs_are_those_of_todays_settings(grid, runs):
    assert len(grid.finished()) == runs


def test_data_may_lie_elsewhere():
    grid = Preferences(**PREFERENCES, **HARMLESS | {"data": "/somewhere/else/hh-rlhf-harmless-base"})
    assert len(grid.finished()) == 15
    with pytest.raises(ValueError, match="made with other settings"):
        Preferences(**PREFERENCES, **HARMLESS | {"data": "data/hh-rlhf-helpful-base"}).finished()
