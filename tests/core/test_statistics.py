"""The statistics against their published definitions."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from pairgrpo_jax.core.statistics import (
    crossed_interval,
    crossed_probability,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    length_controlled_interval,
    length_controlled_rate,
    mean_interval,
    noise_variance,
    pass_at_k,
    probability_of_improvement,
    relative_noise_variance,
)


def test_interquartile_mean_drops_a_quarter_at_each_end():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == np.mean([2, 3, 4, 5])


def test_probability_of_improvement_counts_pairs_and_half_ties():
    ours, other = np.array([1.0, 5.0, 7.0]), np.array([5.0, 2.0])
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(ours, other)]
    assert probability_of_improvement(ours, other) == pytest.approx(np.mean(wins))


SCORES = {  # draws, interquartile mean
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "lognormal": (lambda rng, n: rng.lognormal(sigma=0.5, size=n), stats.lognorm(0.5).expect(lb=0.7137, ub=1.4011) * 2),
}


@pytest.mark.parametrize("runs", [5, 10])
@pytest.mark.parametrize("name", SCORES)
def test_intervals_of_few_runs_cover_the_truth_as_often_as_they_say(name, runs):
    """With -s, prints the figures of docs/results/halfcheetah.md."""
    (draw, middle), rng = SCORES[name], np.random.default_rng(0)
    found = [interquartile_interval(draw(rng, runs)) for _ in range(4000)]
    covered = {"interquartile mean": np.mean([low < middle < high for low, high in found])}
    for shift in (0.0, 1.0):
        truth = np.mean(draw(rng, 10**6) + shift > draw(rng, 10**6))
        found = [improvement_interval(draw(rng, runs) + shift, draw(rng, runs)) for _ in range(2000)]
        covered[f"P(improvement) = {truth:.2f}"] = np.mean([low <= truth <= high for low, high in found])
    print(f"{name}, {runs} runs: ", ", ".join(f"{what} {share:.1%}" for what, share in covered.items()))
    assert all(0.925 < share < 0.975 for share in covered.values())


def test_an_interval_of_a_mean_covers_over_prompts_and_one_value_has_none():
    rng = np.random.default_rng(0)
    for prompts in (32, 128):
        found = [mean_interval(rng.binomial(8, 0.9, prompts) / 8, seed=i) for i in range(200)]
        assert 0.9 < np.mean([low < 0.9 < high for low, high in found]) < 0.99
    assert mean_interval(np.full(32, 0.5)) == (0.5, 0.5)
    one, two = np.array([3.0]), np.array([3.0, 4.0])
    for none in (mean_interval(one), interquartile_interval(one), improvement_interval(one, two)):
        assert np.isnan(none).all()
    assert np.isnan(improvement_interval(two, one)).all()


def test_intervals_against_their_definitions():
    scores = np.array([7.0, 1.0, 3.0, 2.0, 100.0])  # winsorised 2, 2, 3, 7, 7: variance 6.7; h = 3
    half = stats.t.ppf(0.975, 2) * np.sqrt(4 * 6.7 / 6)
    np.testing.assert_allclose(interquartile_interval(scores), [4 - half, 4 + half])
    apart = np.arange(5.0)
    low, high = improvement_interval(apart + 10, apart)  # all runs win: still not certain
    np.testing.assert_allclose([high, low], [1, 1 - improvement_interval(apart, apart + 10)[1]])
    inside = lambda p: (1 - p) ** 2 - 1.96**2 * p * (1 - p) / 25 * (1 + 4 * (1 - p) / (2 - p) + 4 * p / (1 + p))  # noqa: E731
    assert low == pytest.approx(optimize.brentq(inside, 0.3, 0.9), abs=2e-4)


def test_a_rate_at_equal_length_is_not_drawn_to_a_half():
    rng = np.random.default_rng(0)
    difference = rng.normal(size=(32, 8))
    assert length_controlled_rate(np.ones((32, 8)), difference) == 1.0
    assert length_controlled_rate(np.zeros((32, 8)), difference) == 0.0
    wins = np.r_[np.ones(99), 0.0]
    assert length_controlled_rate(wins, np.zeros(100)) == pytest.approx(0.99, abs=1e-12)
    longer_wins = length_controlled_rate(np.sign(difference) / 2 + 0.5, difference)  # separable by length
    assert abs(longer_wins - 0.5) < 0.05
    wins = (rng.random((32, 8)) < 1 / (1 + np.exp(-1.5 - difference))).astype(float)
    x = np.tanh(difference / difference.std())

    def loss(weights):
        z = weights[0] + weights[1] * x
        return np.mean(np.logaddexp(0, z) - wins * z) + 1e-3 * weights[1] ** 2

    intercept = optimize.minimize(loss, np.zeros(2), tol=1e-10).x[0]
    assert length_controlled_rate(wins, difference) == pytest.approx(1 / (1 + np.exp(-intercept)), abs=1e-6)


def test_the_interval_at_equal_length_is_over_prompts():
    rng = np.random.default_rng(0)

    def covered(split) -> bool:  # replies to one prompt are alike; at equal length neither side is better
        chance = 1 / (1 + np.exp(-2 * rng.normal(size=(32, 1)) - (difference := rng.normal(size=(32, 8)))))
        wins = (rng.random((32, 8)) < chance).astype(float)
        low, high = length_controlled_interval(wins.reshape(split), difference.reshape(split), resamples=100)
        return low < 0.5 < high

    assert np.mean([covered((32, 8)) for _ in range(100)]) > 0.9
    assert np.mean([covered((256, 1)) for _ in range(50)]) < 0.85
    assert np.isnan(length_controlled_interval(np.ones((1, 8)), np.ones((1, 8)))).all()
    assert length_controlled_interval(np.ones((4, 8)), np.ones((4, 8))) == (1.0, 1.0)


def test_noise_is_told_from_drift():
    rng, steps = np.random.default_rng(0), np.arange(160)
    drifts = np.stack([0.1 * steps, 10 * np.exp(-steps / 40), 5 * np.sin(steps / 50)])
    series = 10 + drifts[:, None] + 0.3 * rng.normal(size=(3, 500, 160))
    assert (series.var(-1).mean(-1) > 25 * 0.09).all()  # the plain variance is that of the drift
    found = noise_variance(series)
    assert found.shape == (3, 500)
    np.testing.assert_allclose(found.mean(-1), 0.09, rtol=0.05)
    np.testing.assert_allclose(relative_noise_variance(series), found / series.mean(-1) ** 2)
    short = 3 * steps[:8] + rng.normal(size=(40_000, 8))  # a window of few updates on a steep line
    assert noise_variance(short).mean() == pytest.approx(1, abs=0.04)
    assert np.isnan(noise_variance(series[..., :2])).all()


def test_pass_at_k_is_the_mean_over_all_choices_of_k_replies():
    right = np.random.default_rng(0).random((7, 6)) < 0.3
    right[0], right[1] = False, True
    for k in range(1, 7):
        exact = [np.mean([any(row[list(chosen)]) for chosen in itertools.combinations(range(6), k)]) for row in right]
        np.testing.assert_allclose(pass_at_k(right, k), exact, atol=1e-12)
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k={k} must be in"):
            pass_at_k(right, k)


@pytest.mark.parametrize(("runs", "prompts"), [(0.0, 0.3), (0.1, 0.0), (0.05, 0.1)])
def test_crossed_intervals_hold_the_truth_as_often_as_they_say(runs, prompts):
    """Five runs of 32 prompts, each run and each prompt off by its own, 1,000 times."""
    rng, held, sure = np.random.default_rng(0), 0, []
    for _ in range(1000):
        values = rng.normal(0, runs, (5, 1)) + rng.normal(0, prompts, (1, 32)) + rng.normal(0, 0.3, (5, 32))
        low, high = crossed_interval(values)
        held += low <= 0 <= high
        sure.append(crossed_probability(values))
    assert 0.93 < held / 1000 < 0.98
    assert 0.03 < np.mean(np.array(sure) > 0.95) < 0.07, "P(more) is as sure as it says"


def test_one_run_has_no_crossed_interval():
    assert np.isnan(crossed_interval(np.ones((1, 4)))).all() and np.isnan(crossed_interval(np.ones((4, 1)))).all()
    assert np.isnan(crossed_probability(np.ones((1, 4)))) and np.isnan(crossed_probability(np.ones((4, 1))))
    assert crossed_interval(np.ones((2, 3))) == (1, 1) and crossed_probability(np.zeros((2, 3))) == 0.5
