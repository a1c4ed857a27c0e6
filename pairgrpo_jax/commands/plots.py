"""The picture of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# One for each method, in every picture; they can be told apart without seeing red or green (Okabe and Ito).
COLOURS = {"ppo": "#000000", "grpo": "#0072B2", "rank": "#56B4E9", "soft": "#E69F00", "hard": "#D55E00"}
COLOURS |= {"dpo": "#009E73", "ipo": "#CC79A7", "orpo": "#8C6D31", "simpo": "#7F7F7F"}


def learning_curves(rows: list[dict], path: Path, title: str) -> None:
    """Draws return, realised KL and policy std of one run against environment steps.

    Args:
      rows: of `metrics.jsonl`; values may be lists, one number per seed.
      path: the PNG to write.
      title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    panels = {"return": "return", "realised_kl": "KL(new || old) per iteration, nats", "std": "action std"}
    for axis, (name, label) in zip(axes, panels.items()):
        steps = np.array([row["steps"] for row in rows]) / 1e6
        values = np.array([np.atleast_1d(row[name]) for row in rows])
        axis.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=1)
        axis.plot(steps, values.mean(axis=1), color="tab:blue", label="while training (stochastic)")
        axis.set(xlabel="environment steps, millions", ylabel=label)
        axis.grid(alpha=0.3)
    scored = [row for row in rows if "score" in row]
    axes[0].plot(
        [row["steps"] / 1e6 for row in scored],
        [np.mean(row["score"]) for row in scored],
        "o-",
        color="tab:red",
        markersize=3,
        label="evaluation (deterministic)",
    )
    axes[0].legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
