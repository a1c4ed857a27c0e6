"""Kills a run at random moments (SIGKILL), resumes it, and compares with an undisturbed one, bit for bit.

`python -m experiments.benchmarks.resume --kills 20` for HalfCheetah, `--task align --kills 10` for a language model;
exits with 1 if any result differs.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.training import read_metrics

TINY = "--steps 12800 --groups 4 --candidates 4 --horizon 20 --epochs 2 --minibatches 4 --hidden 16 --evaluations 4"
TINY += " --episodes 2 --save-every 3 --video-steps 0"
ALIGN = "--prompts 2 --candidates 2 --completion-tokens 4 --lora-rank 2 --iterations 6 --save-every 2 --judge="
ALIGN += (
    " --evaluation-prompts 2 --evaluation-samples 1 --shown 1 --no-export --reward experiments.benchmarks.resume:length"
)
ITERATIONS = {"halfcheetah": 40, "align": 6}


def length(prompts, completions) -> list[list[float]]:
    """A reward for `--task align`: how many characters a reply has."""
    return [[float(len(text)) for text in group] for group in completions]


@dataclass(frozen=True)
class Resume:
    """How often to kill."""

    kills: int = 20
    """Runs that are killed once each."""
    task: Literal["halfcheetah", "align"] = "halfcheetah"
    """Which command line."""
    env: str = "mujoco"
    """Simulator, as in pairgrpo cheetah."""
    method: str = "hard"
    """Method."""
    seed: int = 0
    """Seed of the moments."""


def main() -> int:
    """Runs all trials; returns the exit code."""
    args = tyro.cli(Resume, description=__doc__)
    identical = 0
    with tempfile.TemporaryDirectory() as folder:
        expected = undisturbed(args, Path(folder) / "reference")
        chance = random.Random(args.seed)
        for trial in range(args.kills):
            found, killed_at, resumed_from = disturbed(args, Path(folder) / f"trial{trial}", chance.uniform(0, 0.95))
            identical += found == expected
            verdict = "identical" if found == expected else "DIFFERENT"
            print(f"killed after iteration {killed_at}, resumed from {resumed_from}: {verdict}", flush=True)
    print(f"{identical} of {args.kills} identical")
    return 0 if identical == args.kills else 1


def start(args: Resume, output: Path) -> subprocess.Popen:
    """The run as a process of its own; going on if it was begun."""
    words = ["--env", args.env, *TINY.split()] if args.task == "halfcheetah" else ALIGN.split()
    command = [sys.executable, "-m", f"experiments.{args.task}", args.method, *words]
    return subprocess.Popen(
        [*command, "--output", str(output), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for the end; raises RuntimeError with the process's words if it failed."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run failed with exit code {process.returncode}: {errors[-2000:]}")


def result(output: Path):
    """Everything that must be alike: all metrics but the clock, and the hashes of the last checkpoint's arrays."""
    rows = [
        {name: value for name, value in row.items() if name != "seconds" and not name.startswith("time/")}
        for row in read_metrics(output)
    ]
    last = max((output / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    return rows, last.name, parameters_digest(last)


def parameters_digest(checkpoint: Path) -> str:
    """SHA-256 of all arrays of a checkpoint, in order."""
    import hashlib

    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(ocp.StandardCheckpointer().restore(checkpoint / "state")):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        sha.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return sha.hexdigest()


def undisturbed(args: Resume, output: Path):
    """The result of a run that nothing stops."""
    finish(start(args, output))
    return result(output)


def disturbed(args: Resume, output: Path, share: float):
    """Kills a run at a random moment after `share` of its iterations, and resumes it.

    Returns:
      The result, the last iteration logged before the kill, and the checkpoint that was resumed (0 for none).

    Raises:
      RuntimeError: if the run ended before the kill.
    """
    process = start(args, output)
    while len(read_metrics(output)) < share * ITERATIONS[args.task] and process.poll() is None:
        time.sleep(0.005)
    time.sleep(random.Random(share).uniform(0, 0.2))  # anywhere: inside an iteration, an evaluation, a save
    process.kill()
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run ended with exit code {process.returncode} before it could be killed")
    steps = [int(path.name) for path in (output / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
    killed_at = len(read_metrics(output))
    finish(start(args, output))
    return result(output), killed_at, max(steps, default=0)


if __name__ == "__main__":
    run_main(main)
