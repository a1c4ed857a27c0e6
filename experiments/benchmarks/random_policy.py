"""What a policy scores that has learned nothing: `python -m experiments.benchmarks.random_policy --help`.

Uniform actions in the very simulators that training uses. Writes the returns of each seed, from which the tables and
curves of `experiments.compare` take their lowest line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import results
from pairgrpo_jax.commands.cli import parse, run_main
from pairgrpo_jax.commands.comparison import interval
from pairgrpo_jax.control import Env, make_env
from pairgrpo_jax.core.bounds import AtLeast, Settings
from pairgrpo_jax.core.statistics import interquartile_interval, interquartile_mean

STORED = results.PACKAGE.parent / "docs" / "results" / "random.json"


@dataclass(frozen=True)
class Random(Settings):
    """What to measure."""

    envs: tuple[str, ...] = ("mujoco", "brax:generalized", "brax:spring", "brax:positional")
    """Simulators, as in pairgrpo cheetah."""
    seeds: Annotated[int, AtLeast(2)] = 10
    """Seeds 0, 1, ... of each."""
    episodes: Annotated[int, AtLeast(1)] = 16
    """Episodes of each seed, as in an evaluation while training."""
    output: Path = STORED
    """The file to write; simulators that are in it and are not named stay, if they were measured in the same way."""


def returns(env: Env, seeds: int, episodes: int) -> np.ndarray:
    """Mean return of each seed's episodes, `[seeds]`."""

    def step(carry, key):
        state, total = carry
        action = jax.random.uniform(key, (episodes, env.action_size), minval=-1)
        state = env.step(state, action)
        return (state, total + state.reward), None

    @jax.jit
    def play(key):
        start, actions = jax.random.split(key)
        keys = jax.random.split(actions, env.episode_length)
        (_, total), _ = jax.lax.scan(step, (env.reset(start, episodes), jnp.zeros(episodes)), keys)
        return total.mean()

    return np.array([float(play(jax.random.key(seed))) for seed in range(seeds)])


def stored(env: str, path: Path = STORED) -> np.ndarray | None:
    """The returns `[seeds]` of a random policy in a simulator; None where they were not measured."""
    found = json.loads(path.read_text())["returns"] if path.exists() else {}
    return np.array(found[env]) if env in found else None


def told(scores: np.ndarray) -> str:
    """The interquartile mean over seeds with its interval."""
    return f"{interquartile_mean(scores):.0f}" + interval(*interquartile_interval(scores), ".0f")


def kept(args: Random, made_by: dict[str, Any]) -> dict[str, list[float]]:
    """The returns of the simulators that are not measured again.

    Raises:
      ValueError: where they are of another commit, other versions, or of another number of episodes or seeds.
    """
    if not args.output.exists():
        return {}
    before = json.loads(args.output.read_text())
    found = {name: returns for name, returns in before["returns"].items() if name not in args.envs}
    if not found:
        return {}
    where = f"{args.output} holds {', '.join(found)}"
    try:
        results.require_one_origin([before], made_by)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; or measure them too, with --envs") from error
    if before["episodes"] != args.episodes or {len(x) for x in found.values()} != {args.seeds}:
        raise ValueError(f"{where}, of other --episodes or --seeds; measure them too, or choose another --output")
    return found


def main() -> None:
    """Measures, prints and writes."""
    args = parse(Random(), sys.argv[1:], "python -m experiments.benchmarks.random_policy", __doc__)
    made_by = results.origin()
    found = kept(args, made_by)
    for name in args.envs:
        scores = returns(make_env(name), args.seeds, args.episodes)
        found[name] = [round(x, 2) for x in scores.tolist()]
        print(f"{name:18} {told(scores)}, {args.seeds} seeds of {args.episodes} episodes")
    results.write(args.output, made_by | {"episodes": args.episodes, "returns": found})


if __name__ == "__main__":
    run_main(main, "python -m experiments.benchmarks.random_policy")
