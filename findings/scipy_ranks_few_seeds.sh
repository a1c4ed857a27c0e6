#!/usr/bin/env bash
# scipy's rank tests on a handful of seeds: a tie makes a result significant that no data could make so, and a perfect ranking has p = 0.
# Guess: three seeds against three can be ranked in 20 ways, so no two-sided test of ranks goes below p = 0.1, and ties, which carry less
#   information, can only raise p. Four models that a judge ranks like the truth have p = 2/24.
# Truth (scipy 1.17.1): mannwhitneyu counts exactly only where no two values are equal (method="auto"); one tie, and the normal approximation
#   with its smaller, tie-corrected variance takes over, at any size. [1, 1, 1] against [0, 0, 0] has p = 0.047, four against four 0.013
#   (0.029 by counting). With method="exact", or a PermutationMethod, it is 0.1 again. spearmanr has Student's t at every size: for a perfect
#   ranking that is p = 0.0 exactly, at 3 models as at 4; kendalltau of the same numbers counts, 1/3 and 1/12. No warning in either.
# Who: tables of success rates, pass@k or win rates over 3 to 5 seeds, where all-or-nothing results are equal (0 and 1), and judges or
#   reward models that are validated by how they rank a few policies: "p < 0.05" there says nothing about chance.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q scipy==1.17.1 numpy==2.4.6
"$tmp/v/bin/python" -W error - <<'EOP'
import numpy as np, scipy
from scipy import stats
print("scipy", scipy.__version__)
counted = stats.PermutationMethod()

def p_values(x, y):
    """By default, by exact=..., by permutation, and by permutation of the difference of means."""
    means = stats.permutation_test((x, y), lambda a, b: np.mean(a) - np.mean(b)).pvalue
    found = [stats.mannwhitneyu(x, y, **how).pvalue for how in ({}, {"method": "exact"}, {"method": counted})]
    print(f"{x} against {y}: default {found[0]:.4f}, exact {found[1]:.4f}, permutation {found[2]:.4f}, of means {means:.4f}")
    return np.array([*found, means])

assert np.allclose(p_values([1, 1.1, 1.2], [0, 0.1, 0.2]), 0.1)  # nothing is equal: the smallest p that there is
for n, least in ((3, 2 / 20), (4, 2 / 70)):
    default, *others = p_values([1] * n, [0] * n)
    assert default < 0.05 and default < least / 2 and np.allclose(others, least)
for n, least in ((3, 2 / 6), (4, 2 / 24)):
    ranks = np.arange(n)
    spearman, kendall = stats.spearmanr(ranks, ranks).pvalue, stats.kendalltau(ranks, ranks).pvalue
    print(f"{n} models in the right order: spearmanr p = {spearman}, kendalltau p = {kendall:.4f}")
    assert spearman == 0 and np.isclose(kendall, least)
EOP
