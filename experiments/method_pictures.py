"""The pictures of docs/methods.md, drawn by the functions that train: `python -m experiments.method_pictures`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pairgrpo_jax import core
from pairgrpo_jax.commands.plots import COLOURS
from pairgrpo_jax.core import simpo_loss

REWARDS = jnp.array([[2.5, 1.2, 1.0, 0.6, 0.3, 0.0, -0.2, -0.3]])


def group(figure) -> None:
    """What each method makes of one group's rewards."""
    every, matched = (core.pair_rewards(core.pairs_from_rewards(REWARDS, scheme=s), 8) for s in ("all", "matched"))
    panels = [("GRPO: rewards, standardised", "grpo", core.group_advantages(REWARDS))]
    panels += [("rank-GRPO: centred mid-ranks", "rank", core.rank_advantages(REWARDS))]
    panels += [("Soft, all pairs: wins less losses", "soft", every), ("Soft, matched pairs: +1 or -1", "soft", matched)]
    for axes, (title, name, values) in zip(figure.subplots(1, 4, sharey=True), panels):
        axes.bar(range(1, 9), values[0], color=COLOURS[name])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(1, 9), [f"{x:.1f}" for x in REWARDS[0]], fontsize=8)
        axes.set_xlabel("reward of each candidate")


def hard(figure) -> None:
    """The target of one group."""
    p0, pairs = jnp.full((1, 8), 1 / 8), core.pairs_from_rewards(REWARDS, scheme="all")
    axes = figure.subplots()
    axes.bar(range(1, 9), core.hard_pair_target(p0, pairs, 0.08)[0], color=COLOURS["hard"], label="target q")
    axes.axhline(1 / 8, color="black", linestyle="--", linewidth=1, label="p0 = 1/K")
    axes.set_xticks(range(1, 9), [f"{x:.1f}" for x in REWARDS[0]])
    axes.set(xlabel="reward of each candidate", ylabel="probability among the candidates")
    axes.legend(frameon=False)


def clip(figure) -> None:
    """The clipped surrogate for a good and a bad candidate."""
    ratios = jnp.linspace(0.4, 1.8, 141)
    losses = jax.vmap(
        lambda r, a: core.grpo_loss(jnp.log(r)[None, None], jnp.zeros((1, 1)), a[None, None])[0], (0, None)
    )
    for axes, advantage in zip(figure.subplots(1, 2), (1.0, -1.0)):
        axes.plot(ratios, losses(ratios, jnp.array(advantage)), color=COLOURS["ppo"])
        axes.axvspan(0.8, 1.2, color="0.92")
        axes.set(xlabel="ratio of new to old probability", ylabel="loss", title=f"advantage {advantage:+.0f}")


def offline(figure) -> None:
    """Losses against the margin between the chosen and the rejected sequence."""
    margins = jnp.linspace(-10, 20, 151)

    def each(loss, **options):
        return jax.vmap(lambda m: loss(m[None] / 2, -m[None] / 2, jnp.zeros(1), jnp.zeros(1), **options)[0])(margins)

    left, right = figure.subplots(1, 2)
    left.plot(margins, each(core.dpo_loss, beta=0.1), color=COLOURS["dpo"], label="DPO, beta 0.1")
    left.plot(margins, each(core.ipo_loss, beta=0.1) / 100, color=COLOURS["ipo"], label="IPO, beta 0.1, over 100")
    left.set(xlabel="margin of summed log-ratios to the reference, nats", ylabel="loss")
    means = jnp.linspace(-1, 2, 151)

    def of_means(loss, name):
        return jax.vmap(lambda m: loss(-1.5 + m[None] / 2, -1.5 - m[None] / 2)[1][name])(means)

    right.plot(means, of_means(simpo_loss, "simpo"), color=COLOURS["simpo"], label="SimPO, beta 2, gamma 1")
    right.plot(means, of_means(core.orpo_loss, "odds_ratio"), color=COLOURS["orpo"], label="ORPO's odds ratio")
    right.set(xlabel="margin of mean log-probabilities, nats a token")
    for axes in (left, right):
        axes.legend(frameon=False)


def draw(folder: Path) -> None:
    """Writes the pictures as SVG into a folder."""
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "methods",
        "svg.fonttype": "none",
        "font.size": 9,
    }
    for picture in (group, hard, clip, offline):
        with plt.rc_context(style):
            figure = plt.figure(figsize=(11 if picture is group else 8, 2.7), layout="constrained")
            picture(figure)
            figure.savefig(folder / f"{picture.__name__}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    draw(Path(*sys.argv[1:2]) if sys.argv[1:] else Path(__file__).parents[1] / "docs" / "methods")
