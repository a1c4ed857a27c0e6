"""Verdicts of several processes become one."""

import numpy as np
import pytest

from pairgrpo_jax.lm.rewards import shares
from pairgrpo_jax.lm.rewards.sources import Judgement


def test_alone_all_prompts_are_judged_at_once():
    seen = []

    def judge(mine):
        seen.append(mine)
        return Judgement(np.zeros((3, 2)), None, np.zeros(3, bool)), {}

    judgement, each = shares.by_share(3, judge)
    assert seen == [slice(3)] and np.shape(judgement.rewards) == (3, 2) and each == {}


def test_a_judges_figures_are_summed_but_for_times():
    metrics = [
        {"judge_questions": 3.0, "judge_latency": 1.0, "judge_seconds": 4.0, "judge_cost": 0.5},
        {"judge_questions": 1.0, "judge_latency": 5.0, "judge_seconds": 7.0, "judge_cost": 0.25},
    ]
    found = shares.total(metrics)
    assert found == pytest.approx(
        {"judge_questions": 4.0, "judge_latency": 2.0, "judge_seconds": 7.0, "judge_cost": 0.75}
    )
    assert shares.total([{}, {}]) == {}
