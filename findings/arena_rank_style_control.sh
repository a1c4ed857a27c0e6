#!/usr/bin/env bash
# arena-rank's style control, with default settings, takes off a tenth of the style, however many votes there are.
# Guess: `ContextualBradleyTerry` fits ratings and style coefficients together "via maximum likelihood" (its notebook). reg=1.0 is a ridge
#   on a handful of coefficients: nothing against 20,000 votes.
# Truth (arena-rank 0.1.1): the likelihood is a mean over votes and the penalty is not divided by their number, so that it weighs as much
#   as all the votes do. A vote's curvature is at most 1/4, so one standardised feature keeps a fifth of its coefficient at the very
#   most. Here: six equally good models, where replies win by being longer. Length alone makes 294 points between the first and the
#   last; controlled for length they are still 268 points apart, with intervals of +-9, and at 80,000 votes 271 with +-4. With
#   reg=1/votes the six are equal, as they are. A coefficient that should be 1.5 is 0.11.
# Who: leaderboards, judges' verdicts and reward models that are ranked "with style control": the ranking is nearly the uncontrolled
#   one, and the coefficients say that style hardly matters. Pass reg=1/len(votes), or 0.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile jax==0.8.1 jaxlib==0.8.1 numpy==2.3.3 pandas==3.0.5 optax==0.2.8 jaxtyping==0.3.9
"$tmp/v/bin/pip" install -q --no-compile --no-deps arena-rank==0.1.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import numpy as np
import pandas as pd
from arena_rank.models.bradley_terry import BradleyTerry
from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
from arena_rank.utils.data_utils import ContextualPairDataset, PairDataset
print("arena-rank", version("arena-rank"), "jax", version("jax"))
MODELS, HABIT = 6, np.linspace(-1.0, 1.0, 6)  # all equally good; some write longer

def votes(count):
    """A reply wins with probability sigmoid(its length - the other's length); who wrote it plays no part."""
    random = np.random.default_rng(0)
    a = random.integers(MODELS, size=count)
    b = (a + random.integers(1, MODELS, size=count)) % MODELS
    longer = HABIT[a] - HABIT[b] + random.normal(size=count)
    a_wins = random.random(count) < 1 / (1 + np.exp(-longer))
    return pd.DataFrame({"model_a": [f"m{i}" for i in a], "model_b": [f"m{i}" for i in b],
                         "winner": np.where(a_wins, "model_a", "model_b"), "longer": longer})

def show(title, fitted):
    ratings = np.asarray(fitted["ratings"])
    half = float(np.mean(fitted["rating_upper"] - ratings))
    style = float(fitted["coeffs"][0]) if "coeffs" in fitted else float("nan")
    print(f"{title:42s} ratings {ratings.round(0).astype(int).tolist()} +-{half:.0f}, spread {np.ptp(ratings):.0f}, style {style:.2f}")
    return np.ptp(ratings), style

for count in (20_000, 80_000):
    data = votes(count)
    plain, _ = show(f"{count} votes, no control", BradleyTerry(MODELS).compute_ratings_and_cis(PairDataset.from_pandas(data)))
    styled = ContextualPairDataset.from_pandas(data, feature_cols=["longer"])
    controlled, small = show(f"{count} votes, controlled, defaults", ContextualBradleyTerry(MODELS, 1).compute_ratings_and_cis(styled))
    free, large = show(f"{count} votes, controlled, reg=1/votes",
                       ContextualBradleyTerry(MODELS, 1, reg=1 / count).compute_ratings_and_cis(styled))
    assert 0.85 < controlled / plain < 0.95 and free < 25 and small < 0.2 * large / 1.3
    true = data["longer"].std()  # the coefficient of the standardised feature
    assert abs(large - true) < 0.05 * true
EOP
