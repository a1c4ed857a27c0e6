"""Scores at the same distance: read off a run's path, compared over seeds and prompts."""

import numpy as np
import pytest

from experiments.matched import Curve, curve_of, matched, score_at
from experiments.preferences import Preferences
from experiments.sums import Sums


def test_a_score_is_read_off_where_the_path_first_passes():
    curve = Curve(np.array([0.0, 2.0, 1.0, 4.0]), np.array([[0.0, 0.2], [1.0, 0.2], [0.5, 0.6], [0.5, 0.9]]))
    np.testing.assert_allclose(score_at(curve, 1.0), [0.5**0.5, 0.2])  # on the way out, not on the way back
    np.testing.assert_allclose(score_at(curve, 2.0), [1.0, 0.2])
    np.testing.assert_allclose(score_at(curve, 3.0), [0.5, 0.6 + 0.3 * (3**0.5 - 1)])
    assert score_at(curve, 4.1) is None
    assert score_at(curve, 0.99) is None  # the first evaluation is twice as far: nothing was measured there
    back = Curve(np.array([0.0, 0.5, -0.01, 2.0]), np.zeros((4, 1)))  # an estimate below 0
    assert score_at(back, 1.0) == 0


def test_differences_are_those_of_the_same_seed():
    def runs(levels):
        return {seed: Curve(np.array([0.0, 1.0]), np.full((2, 3), level)) for seed, level in levels.items()}

    table = matched({"grpo": runs({7: 0.1, 8: 0.9, 9: 0.5}), "hard": runs({9: 0.75, 8: 1.0})}, (1.0,))
    assert "+17.5 [" in table and "(2) |" in table  # 25 and 10
    assert "| +25.0 (1) |" in matched({"grpo": runs({9: 0.5}), "hard": runs({9: 0.75, 8: 1.0})}, (1.0,))


def test_a_curve_begins_at_the_start():
    rows = [{"reward": 1.0}, {"each": [1.0, 0.0], "kl_reference": 2.0, "rival": 0.25}]
    curve = curve_of(rows, "each", "rival")
    assert curve.kl.tolist() == [0, 2] and curve.scores.tolist() == [[0.25, 0.25], [1, 0]]
    assert curve_of(rows, "each", 0.5).scores[0].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="no evaluation with wins and kl_reference"):
        curve_of(rows, "wins", 0.5)


def paths(rise, seeds=5, prompts=40):
    """Runs whose score rises by so much a nat, each prompt at its own level, each seed a little off."""
    levels = np.random.default_rng(0).uniform(0.2, 0.5, prompts)
    noise = np.random.default_rng(int(1000 * rise) + 1).normal(0, 0.01, (seeds, prompts))
    kl = np.array([0.0, 1.0, 2.0])
    return {seed: Curve(kl, levels + rise * kl[:, None] + kl[:, None] * of) for seed, of in enumerate(noise)}


def test_what_a_method_gains_at_equal_distance_is_told_with_an_interval():
    table = matched({"grpo": paths(0.1), "soft": paths(0.1), "hard": paths(0.2)}, (1.5, 3.0)).splitlines()
    head, _, grpo, _, hard = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    assert head[1:3] == ["at 1.5 nats, % [95% interval] (seeds)", "less grpo [95% interval], P(more) (pairs)"]
    assert grpo[2] == "–" and grpo[1].endswith("(5)") and grpo[3] == hard[3] == hard[4] == "not measured"
    gained = 10 * (1 + (1.5**0.5 - 1) / (2**0.5 - 1))  # half way in roots
    assert abs(float(hard[2].split()[0]) - gained) < 1 and hard[2].endswith(", 1.00 (5)")
    low, high = (float(x) for x in hard[2].split("[")[1].split("]")[0].split(","))
    assert low < gained < high and high - low < 2, "prompts are alike for both, and their levels cancel"
    low, high = (float(x) for x in hard[1].split("[")[1].split("]")[0].split(","))
    assert high - low > 4, "a mean alone is as uncertain as the prompts are different"


@pytest.mark.parametrize("grid", [Sums, Preferences])
def test_distances_are_beyond_the_start(grid):
    with pytest.raises(ValueError, match=r"distances=\(0.0, 1.0\) must be above 0"):
        grid(distances=(0.0, 1.0))


def test_a_domain_trains_on_one_head_and_is_judged_by_the_other(tmp_path):
    grid = Preferences(domain="helpful", methods=("soft",), seeds=1, results=tmp_path, output=tmp_path)
    (cell,) = grid.cells()
    run = grid.run_of(cell)
    assert (run.reward, run.judge, run.seed, run.evaluations) == ("helpful-a", "helpful-b", 100, 6)
    assert grid.path_of(cell) == tmp_path / "helpful" / "24" / "soft" / "seed100.json"


def test_a_method_may_name_its_rate(tmp_path):
    grid = Preferences(methods=("hard", "hard@3e-4"), seeds=1, results=tmp_path, output=tmp_path)
    preset, slow = (grid.run_of(cell) for cell in grid.cells())
    assert slow.config == preset.config.replace(learning_rate=3e-4) != preset.config
    assert slow.output != preset.output and grid.path_of(grid.cells()[1]).parent.name == "hard@3e-4"
    for method, message in (
        ("hard@fast", "no number after @"),
        ("hard@", "no number"),
        ("hrad@1e-4", "did you mean hard"),
    ):
        with pytest.raises(ValueError, match=message):
            Preferences(methods=(method,))


def test_win_rates_are_compared_and_not_the_rewards_that_won():
    """A run's own score is its reward, of which the winner here has less."""
    row = {"kl_reference": 1.0, "reply_tokens": 9.0, "seconds": 60.0, "win_rate_length_controlled": 0.6}
    rows = {"grpo": row | {"score": 2.5, "wins": [0.5, 0.6]}, "hard": row | {"score": 1.5, "wins": [0.7, 0.8]}}
    table = Preferences().ends({method: [[row], [row]] for method, row in rows.items()}).splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]] for line in table[2:]}
    assert cells["grpo"][0].startswith("**55.0**") and cells["hard"][0].startswith("**75.0**")
    assert cells["hard"][1].startswith("1.00")
    assert [Sums().score({"held_out/verify:own/each": [0.0, 1.0]}), Preferences().score(rows["hard"])] == [0.5, 0.75]
