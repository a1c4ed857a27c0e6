"""Statistics of a few runs per method, after Agarwal et al. (arXiv 2108.13264), and of many prompts."""

from __future__ import annotations

import numpy as np
import scipy

_NONE = (float("nan"), float("nan"))  # the interval of one value


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half: a quarter, rounded down, is trimmed at each end."""
    return scipy.stats.trim_mean(scores, 0.25, axis=axis)


def interquartile_interval(scores: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Student-t interval of the interquartile mean of a task's runs `[N]`, `(low, high)`; NaN for one run.

    Tukey and McLaughlin (Sankhya A 25, 1963): the standard error is that of the winsorised runs, and the h runs
    that are not trimmed leave h - 1 degrees of freedom.
    """
    scores = np.sort(np.asarray(scores, float))
    count, cut = len(scores), len(scores) // 4
    kept = count - 2 * cut
    if count < 2:
        return _NONE
    winsorised = np.clip(scores, scores[cut], scores[count - cut - 1])
    error = np.sqrt((count - 1) * winsorised.var(ddof=1) / (kept * (kept - 1)))
    half = scipy.special.stdtrit(kept - 1, (1 + confidence) / 2) * error
    middle = scores[cut : count - cut].mean()
    return float(middle - half), float(middle + half)


def probability_of_improvement(scores: np.ndarray, other: np.ndarray) -> float:
    """P(a run of the first method beats a run of the second), ties counting half: the Mann-Whitney U over N x M."""
    return float(np.mean(np.sign(np.subtract.outer(scores, other))) / 2 + 0.5)


def improvement_interval(scores: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of `probability_of_improvement` for independent runs `[N]` and `[M]`, `(low, high)`; NaN for one run.

    Newcombe (Statistics in Medicine 25, 2006, 559-573), method 5: every probability that the estimate does not
    contradict, with the variance at that probability; so it has a width even where all runs of one method win.
    """
    n, m = len(scores), len(other)
    if min(n, m) < 2:
        return _NONE
    p = np.linspace(0, 1, 4001)
    variance = p * (1 - p) / (n * m) * (1 + ((n + m) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p)))
    away = np.abs(p - probability_of_improvement(scores, other))
    plausible = p[away <= scipy.special.ndtri((1 + confidence) / 2) * np.sqrt(variance) + 1e-9]
    return float(plausible[0]), float(plausible[-1])


def noise_variance(series: np.ndarray) -> np.ndarray:
    """Variance `[...]` of a series `[..., T]` about its drift: half the variance of its successive differences.

    After von Neumann et al. (Annals of Mathematical Statistics 12, 1941, 153-162), less the mean difference: exact up
    to 1 / T^2 for independent noise on a straight line; NaN below three values, which say nothing of both.
    """
    series = np.asarray(series, float)
    if series.shape[-1] < 3:
        return np.full(series.shape[:-1], np.nan)
    return np.diff(series).var(axis=-1) / 2


def relative_noise_variance(series: np.ndarray) -> np.ndarray:
    """`noise_variance` `[...]` relative to the squared mean, for a positive series `[..., T]`."""
    return noise_variance(series) / np.square(np.mean(series, axis=-1))


def mean_interval(values: np.ndarray, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile-bootstrap interval of a mean over many prompts or pairs `[N]`, `(low, high)`; NaN for one."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return _NONE
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    options = {"n_resamples": 10_000, "batch": 500, "method": "percentile", "rng": rng}
    interval = scipy.stats.bootstrap((values,), np.mean, confidence_level=confidence, **options).confidence_interval
    return float(interval.low), float(interval.high)


def crossed_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Student-t interval of the mean over runs and prompts of `[N,M]`, `(low, high)`; NaN for one run or one prompt."""
    mean, error, freedom = _crossed(values)
    half = scipy.special.stdtrit(freedom, (1 + confidence) / 2) * error
    return float(mean - half), float(mean + half)


def crossed_probability(values: np.ndarray) -> float:
    """P(the mean over runs and prompts is above 0), by the same t, under a flat prior; of differences, say. NaN for one
    run or one prompt."""
    mean, error, freedom = _crossed(values)
    return float(np.sign(mean) / 2 + 0.5) if error == 0 else float(scipy.special.stdtr(freedom, mean / error))


def _crossed(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of `[N,M]`, its standard error where both runs and prompts are a sample, and the degrees of freedom.

    Two-way random effects without replication: `(MS_runs + MS_prompts - MS_rest) / (N M)`, at least the larger of the
    first two; freedom by Satterthwaite (Biometrics Bulletin 2, 1946, 110-114).
    """
    values = np.asarray(values, float)
    n, m = values.shape
    if min(n, m) < 2:
        return values.mean(), np.nan, np.nan
    runs, prompts, mean = values.mean(1), values.mean(0), values.mean()
    rest = values - runs[:, None] - prompts + mean
    squares = np.array([m * runs.var(ddof=1), n * prompts.var(ddof=1), (rest**2).sum() / ((n - 1) * (m - 1))])
    total = max(squares @ (1, 1, -1), squares[0], squares[1])
    spread = (squares**2 / ((n - 1), (m - 1), (n - 1) * (m - 1))).sum()
    return mean, np.sqrt(total / (n * m)), total**2 / spread if spread > 0 else n - 1


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
    """Chance `[N]` that one of k replies is right, from S replies to each prompt, `right` `[N,S]` of 0 and 1; k <= S.

    Unbiased (arXiv 2107.03374, eq. 1): 1 - C(S - c, k) / C(S, k), with c of S right.
    """
    right = np.asarray(right)
    samples = right.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} must be in [1, {samples}], the replies to each prompt")
    wrong = samples - right.sum(-1)
    return 1 - scipy.special.binom(wrong, k) / scipy.special.binom(samples, k)


def length_controlled_rate(wins: np.ndarray, difference: np.ndarray) -> float:
    """Win rate at equal lengths: a logistic regression of wins on the difference of lengths, read off at 0.

    After AlpacaEval 2 (arXiv 2404.04475), with the length term alone: `P(win) = sigmoid(a + b tanh(d / std d))`, and a
    little ridge on b, which separable wins would make infinite.

    Args:
      wins: `[N]` or `[N,S]`, 1, 0, or 0.5 for a tie.
      difference: alike, length of the reply less that of its rival.
    """
    wins, x = _wins_and_lengths(wins, difference)
    return float(_rates_at_equal_length(wins, x, np.ones((1, len(wins))))[0])


def length_controlled_interval(
    wins: np.ndarray, difference: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap interval of `length_controlled_rate` over the N prompts of `[N,S]`; NaN for one prompt.

    Whole prompts are drawn, as replies to one prompt are alike; the scale of the lengths stays that of all of them.
    """
    wins, x = _wins_and_lengths(wins, difference)
    count = len(wins)
    if count < 2:
        return _NONE
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    rates = [_rates_at_equal_length(wins, x, part) for part in np.array_split(draws, 20)]  # 20: for memory
    low, high = np.quantile(np.concatenate(rates), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _wins_and_lengths(wins: np.ndarray, difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as `[N,S]`, the difference of lengths scaled and bounded."""
    wins, difference = (np.asarray(x, float).reshape(len(x), -1) for x in (wins, difference))
    return wins, np.tanh(difference / (difference.std() or 1.0))


def _rates_at_equal_length(wins: np.ndarray, x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`sigmoid(a)` `[R]` of fits to wins and lengths `[N,S]`, each prompt counted `[R,N]` times, by Newton's method.

    A step is damped as for generalised self-concordant losses (arXiv 1703.04599, with nu = 2), so that it never fails.
    Where all replies win, or none does, a is infinite and the rate exactly 1 or 0.
    """
    rates = counts @ wins.mean(-1) / counts.sum(-1)
    mixed = np.flatnonzero((counts @ wins.min(-1) < counts.sum(-1)) & (counts @ wins.max(-1) > 0))
    weights = np.repeat(counts[mixed], wins.shape[1], axis=1) / counts[mixed].sum(-1, keepdims=True) / wins.shape[1]
    wins, x = wins.ravel(), x.ravel()
    a, b = np.zeros((2, len(mixed)))
    for _ in range(100):
        p = scipy.special.expit(a[:, None] + b[:, None] * x)
        slope_a, slope_b = (weights * (p - wins)).sum(-1), (weights * (p - wins)) @ x + 2e-3 * b
        curve = weights * p * (1 - p)
        aa, ab, bb = curve.sum(-1), curve @ x, curve @ x**2 + 2e-3
        step = np.stack([bb * slope_a - ab * slope_b, aa * slope_b - ab * slope_a]) / (aa * bb - ab**2)
        size = np.sqrt(2) * np.hypot(*step) + 1e-300  # sqrt 2 bounds |(1, x)|
        a, b = np.stack([a, b]) - step * np.log1p(size) / size
        if size.max(initial=0) < 1e-9:
            break
    rates[mixed] = scipy.special.expit(a)
    return rates
