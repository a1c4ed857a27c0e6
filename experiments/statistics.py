"""Statistics of a few runs per method (Agarwal et al., "Deep RL at the edge of the statistical precipice", 2108.13264)."""

from __future__ import annotations

import numpy as np
from scipy import stats


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half: a quarter is trimmed at each end."""
    return stats.trim_mean(scores, 0.25, axis=axis)


def bootstrap_interval(scores: np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0):
    """Percentile-bootstrap interval of the interquartile mean of one task's runs `[N]`; `(low, high)`."""
    if len(scores) < 2:
        return float(scores[0]), float(scores[0])
    result = stats.bootstrap(
        (np.asarray(scores),),
        interquartile_mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def probability_of_improvement(scores: np.ndarray, other: np.ndarray) -> float:
    """P(a run of the first method beats a run of the second), ties counting half: the Mann-Whitney U over N x M."""
    statistic = stats.mannwhitneyu(scores, other).statistic
    return float(statistic) / (len(scores) * len(other))
