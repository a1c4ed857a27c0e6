"""Statistics of a few runs per method, after Agarwal et al. (arXiv 2108.13264)."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special, stats


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half: a quarter is trimmed at each end."""
    return stats.trim_mean(scores, 0.25, axis=axis)


def bootstrap_interval(
    scores: np.ndarray,
    statistic=interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile-bootstrap interval of a statistic, by default of one task's runs `[N]`; `(low, high)`."""
    scores = np.asarray(scores, float)
    if np.ptp(scores) == 0:
        return float(scores[0]), float(scores[0])
    result = stats.bootstrap(
        (scores,),
        statistic,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=500,  # of resamples held at once
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def probability_of_improvement(scores: np.ndarray, other: np.ndarray) -> float:
    """P(a run of the first method beats a run of the second), ties counting half: the Mann-Whitney U over N x M."""
    statistic = stats.mannwhitneyu(scores, other).statistic
    return float(statistic) / (len(scores) * len(other))


def mean_interval(values: np.ndarray, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile-bootstrap interval of a mean over prompts or pairs `[N]`; `(low, high)`."""
    return bootstrap_interval(values, np.mean, confidence, seed=seed)


def length_controlled_rate(wins: np.ndarray, difference: np.ndarray) -> float:
    """Win rate at equal lengths: a logistic regression of wins on the difference of lengths, read off at 0.

    After AlpacaEval 2 (arXiv 2404.04475), with the length term alone: `P(win) = sigmoid(a + b tanh(d / std d))`.

    Args:
      wins: `[N]`, 1, 0, or 0.5 for a tie.
      difference: `[N]`, length of the reply less that of its rival.
    """
    wins, difference = np.asarray(wins, float), np.asarray(difference, float)
    spread = difference.std()
    x = np.stack([np.ones_like(wins), np.tanh(difference / spread) if spread else np.zeros_like(wins)], axis=1)

    def loss(weights):  # a little ridge keeps separable cases finite
        z = x @ weights
        return np.mean(np.logaddexp(0, z) - wins * z) + 1e-3 * np.sum(weights**2)

    return float(special.expit(optimize.minimize(loss, np.zeros(2)).x[0]))
