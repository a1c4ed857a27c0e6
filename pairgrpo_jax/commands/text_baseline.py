"""What preferences give away without a language model: reply length, and a logistic model of words and length."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
from scipy import sparse
from scipy.optimize import minimize

_WORD = re.compile(r"\w\w+")


def longer_margins(replies: list[tuple[str, str]]) -> np.ndarray:
    """Characters by which the chosen reply is longer, `[N]`."""
    return np.array([len(chosen) - len(rejected) for chosen, rejected in replies], float)


def tfidf_margins(
    replies: list[tuple[str, str]], test: np.ndarray, *, least: int = 2, penalty: float = 1.0
) -> np.ndarray:
    """Margins of the test pairs under a logistic model of TF-IDF and log-length differences, fitted to the others.

    Words and word pairs, counted on a log scale, times log inverse frequency among the training replies; each reply's
    vector has norm 1.

    Args:
      replies: chosen and rejected texts.
      test: `[N]` bool, the pairs to leave out of the fit.
      least: training replies that a word must occur in.
      penalty: `penalty / 2 |weight|^2` beside the summed loss.
    """
    counts = [Counter(_terms(text)) for pair in replies for text in pair]
    training = np.repeat(~test, 2)
    frequency = Counter(term for count, used in zip(counts, training) if used for term in count)
    kept = {term: n for term, n in frequency.items() if n >= least}
    column = {term: i for i, term in enumerate(kept)}
    idf = np.log((1 + training.sum()) / (1 + np.array(list(kept.values())))) + 1
    entries = [(r, column[t], 1 + np.log(n)) for r, count in enumerate(counts) for t, n in count.items() if t in column]
    r, c, n = np.array(entries).reshape(-1, 3).T
    r, c = r.astype(int), c.astype(int)
    words = sparse.csr_array((n * idf[c], (r, c)), shape=(len(counts), len(column)))
    norms = np.sqrt(np.asarray(words.multiply(words).sum(1)).ravel())
    words = sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ words
    lengths = np.log1p([len(text) for pair in replies for text in pair])
    lengths = sparse.csr_array(((lengths - lengths.mean()) / lengths.std())[:, None])
    both = sparse.hstack([words, lengths]).tocsr()
    differences = both[::2] - both[1::2]
    return differences @ _fit(differences[~test], len(column) + 1, penalty)


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def _fit(x: sparse.csr_array, features: int, penalty: float) -> np.ndarray:
    def loss(weight: np.ndarray):
        margin = x @ weight
        gradient = penalty * weight - x.T @ np.exp(-np.logaddexp(0, margin))
        return np.logaddexp(0, -margin).sum() + penalty / 2 * weight @ weight, gradient

    return minimize(loss, np.zeros(features), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
