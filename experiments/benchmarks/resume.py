"""Kills a run at random moments (SIGKILL), resumes it, and compares with an undisturbed one, bit for bit.

`python -m experiments.benchmarks.resume --kills 20` for HalfCheetah, `--task align --kills 10` for a language model,
`--task align --processes 2 --kills 20` for one whose processes are killed one at a time, and `--resume-on 1` beside it
for one that goes on in another number of processes, compared to 1e-5. Exits with 1 if any result differs.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.training import read_metrics

TINY = "--steps 12800 --groups 4 --candidates 4 --horizon 20 --epochs 2 --minibatches 4 --hidden 16 --evaluations 4"
TINY += " --episodes 2 --save-every 3 --video-steps 0"
ALIGN = "--prompts 2 --candidates 2 --completion-tokens 4 --lora-rank 2 --iterations 6 --save-every 2 --judge="
ALIGN += " --evaluation-prompts 2 --evaluation-samples 1 --shown 1 --no-export"
ALIGN += " --reward experiments.benchmarks.resume:letters"
ITERATIONS = {"halfcheetah": 40, "align": 6}


def letters(prompts, completions) -> list[list[float]]:
    """A reward for `--task align`: how many ASCII letters a reply has."""
    return [[float(sum(x.isascii() and x.isalpha() for x in text)) for text in group] for group in completions]


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
    model: str = "smollm2"
    """With --task align: a folder, a hub id, or smollm2."""
    processes: int = 1
    """With --task align: as many share two devices, and one of them, at random, is killed."""
    async_saves: bool = False
    """Kill runs that write checkpoints while they go on."""
    resume_on: int | None = None
    """Processes that go on; None: as many as began."""

    @property
    def regroups(self) -> bool:
        """Whether another number of processes goes on, which adds up floats in another order."""
        return self.resume_on not in (None, self.processes)


DEVICES = 2  # of a run in several processes


def main() -> int:
    """Runs all trials; returns the exit code."""
    args = tyro.cli(Resume, description=__doc__)
    identical, word = 0, "equal to 1e-5" if args.regroups else "identical"
    with tempfile.TemporaryDirectory() as folder:
        expected = undisturbed(args, Path(folder) / "reference")
        chance = random.Random(args.seed)
        for trial in range(args.kills):
            output = Path(folder) / f"trial{trial}"
            found, killed_at, resumed_from = disturbed(args, output, chance.uniform(0, 0.95))
            alike = near(output, Path(folder) / "reference") if args.regroups else found == expected
            identical += alike
            verdict = word if alike else "DIFFERENT"
            print(f"killed after iteration {killed_at}, resumed from {resumed_from}: {verdict}", flush=True)
    print(f"{identical} of {args.kills} {word}")
    return 0 if identical == args.kills else 1


def start(args: Resume, output: Path, processes: int) -> list[subprocess.Popen]:
    """The run in processes of its own; going on if it was begun."""
    words = (
        ["--env", args.env, *TINY.split()] if args.task == "halfcheetah" else [*ALIGN.split(), "--model", args.model]
    )
    words = [f"experiments.{args.task}", args.method, *words, "--resume", *["--async-saves"] * args.async_saves]
    if args.processes == 1:
        return launch(words, output, 1)
    return launch([*words, "--mesh", "data"], output, processes, DEVICES // processes)


def launch(
    words: list[str], output: Path, processes: int, devices: int | None = None, first_core: int | None = None
) -> list[subprocess.Popen]:
    """A module with its words, in so many processes.

    Args:
      words: the module's name, and what it is given.
      output: its folder.
      processes: how many.
      devices: of a CPU, of each process; None: as the environment says.
      first_core: each process on a core of its own, from this one; None: on all.
    """
    command = [sys.executable, "-m", *words, "--output", str(output)]
    if processes > 1:
        command += ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
    how: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    if devices is not None:
        how["env"] = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    pinned = [[] if first_core is None else ["taskset", "-c", str(first_core + i)] for i in range(processes)]
    who = [["--process", str(i)] if processes > 1 else [] for i in range(processes)]
    return [subprocess.Popen([*before, *command, *after], **how) for before, after in zip(pinned, who)]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def finish(running: list[subprocess.Popen]) -> None:
    """Waits for the end; raises RuntimeError with a process's words if it failed."""
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the run failed with exit code {process.returncode}: {errors[-2000:]}")


def result(output: Path):
    """Everything that must be alike: all metrics but the clock, and the hashes of the last checkpoint's arrays."""
    last = last_checkpoint(output)
    sha = hashlib.sha256()
    for path, leaf in arrays(last).items():
        sha.update(path.encode() + leaf.tobytes())
    return rows(output), last.name, sha.hexdigest()


def rows(output: Path) -> list[dict]:
    """All metrics but the clock."""
    return [
        {name: value for name, value in row.items() if name != "seconds" and not name.startswith("time/")}
        for row in read_metrics(output)
    ]


def last_checkpoint(output: Path) -> Path:
    """The newest of a run."""
    return max((output / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, in order, on one device."""
    import orbax.checkpoint as ocp

    here, reader = jax.sharding.SingleDeviceSharding(jax.devices()[0]), ocp.StandardCheckpointer()
    saved = reader.metadata(checkpoint / "state").item_metadata
    state = reader.restore(
        checkpoint / "state", jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
    )
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(leaf) if key else leaf)
    return found


def near(one: Path, other: Path, tolerance: float = 1e-5) -> bool:
    """Whether two runs have the same metrics and arrays, to a tolerance."""
    numbers = [[x for row in rows(output) for _, x in sorted(row.items())] for output in (one, other)]
    leaves = [list(arrays(last_checkpoint(output)).values()) for output in (one, other)]
    return all(
        len(x) == len(y) and all(np.allclose(a, b, tolerance, tolerance, equal_nan=True) for a, b in zip(x, y))
        for x, y in (numbers, leaves)
    )


def undisturbed(args: Resume, output: Path):
    """The result of a run that nothing stops."""
    finish(start(args, output, args.processes))
    return result(output)


def disturbed(args: Resume, output: Path, share: float):
    """Kills a run, or one of its processes, at a random moment after `share` of its iterations, and resumes it.

    Returns:
      The result, the last iteration logged before the kill, and the checkpoint that was resumed (0 for none).

    Raises:
      RuntimeError: if the run ended before the kill.
    """
    chance, running = random.Random(share), start(args, output, args.processes)
    process = running[chance.randrange(len(running))]
    while len(read_metrics(output)) < share * ITERATIONS[args.task] and process.poll() is None:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.2))  # anywhere: inside an iteration, an evaluation, a save
    process.kill()
    for one in running:  # the others end by themselves
        one.communicate(timeout=120)
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run ended with exit code {process.returncode} before it could be killed")
    steps = [int(path.name) for path in (output / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
    killed_at = len(read_metrics(output))
    finish(start(args, output, args.resume_on or args.processes))
    return result(output), killed_at, max(steps, default=0)


if __name__ == "__main__":
    run_main(main)
