#!/usr/bin/env bash
# arena-rank's 95% interval for a model that has won all of its few votes has no width at all, and everyone else falls by hundreds of points.
# Guess: a newcomer with 5 wins and no loss gets a high rating with a very wide interval, or an error, since no finite rating is the most
#   likely one; the others keep theirs.
# Truth (arena-rank 0.1.1): its rating is where the optimiser happened to stop, 3,000 points and more above the others, and the interval is +-0.0,
#   at 5 votes as at 100: both the gradients and the curvature of its votes are nearly 0 there, and the 1e-5 that is added to the
#   curvature decides 0/0 for 0. Ratings are kept at a mean of 1000, so that the others drop by 800 points, and their intervals stay
#   as narrow as without it. With one loss beside the wins the newcomer has +-260 or more, and the others +-85 or more.
# Who: new checkpoints in a small arena, or judged a few times each: the model that is known least is first, and surely so. Compare
#   differences between models, and ask for a loss and a win of each before its interval is believed.
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
from arena_rank.utils.data_utils import PairDataset
print("arena-rank", version("arena-rank"), "jax", version("jax"))

def battles(a, b, wins, losses):
    return [(a, b, "model_a")] * wins + [(a, b, "model_b")] * losses

def rank(title, wins, losses):
    rows = battles("a", "b", 60, 40) + battles("b", "c", 60, 40) + battles("newcomer", "a", wins, losses)
    data = PairDataset.from_pandas(pd.DataFrame(rows, columns=["model_a", "model_b", "winner"]))
    fitted = BradleyTerry(len(data.competitors)).compute_ratings_and_cis(data)
    rating = np.asarray(fitted["ratings"])
    half = np.asarray(fitted["rating_upper"]) - rating
    print(f"{title:22s}", ", ".join(f"{name} {r:.0f} +-{h:.1f}" for name, r, h in zip(data.competitors, rating, half)))
    return dict(zip(data.competitors, rating)), dict(zip(data.competitors, half))

without = rank("no newcomer", 0, 0)
for wins in (5, 20, 100):
    ratings, halves = rank(f"{wins} wins", wins, 0)
    assert halves["newcomer"] < 0.05 and ratings["newcomer"] - ratings["a"] > 2000 and ratings["a"] < without[0]["a"] - 600
    beaten, known = rank(f"{wins} wins, 1 loss", wins, 1)
    assert known["newcomer"] > 200 and halves["a"] < 0.7 * known["a"]
EOP
