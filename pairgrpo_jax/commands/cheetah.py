"""Trains HalfCheetah with any method of the family: `pairgrpo cheetah METHOD --help`.

Writes metrics, pictures, a video of the trained cheetah and checkpoints; `--resume` goes on where a run stopped.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from pairgrpo_jax.commands.cli import parse_run
from pairgrpo_jax.commands.plots import colour_of, learning_curves
from pairgrpo_jax.commands.run_page import REPORT, write_report
from pairgrpo_jax.commands.runs import (
    DONE,
    FREE,
    checkpoints_of,
    make_console,
    print_files,
    require_checkpoints,
    require_mesh,
    require_trackers,
    stopped_code,
    train_in_folder,
)
from pairgrpo_jax.commands.spelled import command_of
from pairgrpo_jax.commands.words import peek
from pairgrpo_jax.control import ControlConfig, Env, Trainer, make_env, make_trainer, tuned
from pairgrpo_jax.control.render import write_video
from pairgrpo_jax.core.bounds import LAST_SEED, AtLeast, Seed, Settings
from pairgrpo_jax.methods import ONLINE, HardPair
from pairgrpo_jax.training import Schedule, TrainState, open_folder, processes, read_metrics, settings
from pairgrpo_jax.training.placement import filled_up, mesh_of_all
from pairgrpo_jax.training.services import Tracking

# On the progress line; the score is the deterministic return.
SHOWN = {"score": "return", "stochastic_score": "stochastic", "return": "in training", "realised_kl": "KL"}
SHOWN |= {"delta": "delta"}
DRAWN = {"score": "return, deterministic", "stochastic_score": "return, stochastic", "return": "return in training"}
DRAWN |= {"realised_kl": "KL(new, old), nats a step", "std": "action std", "delta": "delta"}
DECIDING = ("advantage", "trust_region")
"""Options on which the preset depends."""


@dataclass(frozen=True)
class Run(Settings):
    """One run of one method on HalfCheetah."""

    env: str = "mujoco"
    """mujoco (exact HalfCheetah-v4, CPU) | brax:spring | brax:positional | brax:generalized | brax:mjx (any device)."""
    steps: Annotated[float, AtLeast(1)] = 3e6
    """Budget, environment steps per seed; every branch step counts. Rounded up to whole iterations."""
    seed: Seed = 0
    """First random seed."""
    seeds: Annotated[int, AtLeast(1)] = 1
    """Number of seeds, trained side by side in one compiled program."""
    output: Path = Path("runs/halfcheetah")
    """Folder for everything the run leaves."""
    resume: bool = False
    """Go on with the run in `output`, bit for bit as if it had not stopped; start it if there is none."""
    evaluations: Annotated[int, AtLeast(1)] = 20
    """Evaluations over the run."""
    episodes: Annotated[int, AtLeast(1)] = 16
    """Episodes of 1000 steps per evaluation, deterministic and stochastic each. Where a simulator's return is no number
    the episode is left out of the means, and counted in the metric `failed`."""
    save_every: Annotated[int, AtLeast(1)] = 5
    """Iterations between checkpoints; every evaluation makes one too."""
    keep: Annotated[int, AtLeast(1)] = 3
    """Newest checkpoints kept, besides the best."""
    async_saves: bool = False
    """Write them while the run goes on; it waits only until its state is copied, and for the one before."""
    checkpoints: str | None = None
    """Where they are: a folder, or `gs://bucket/folder` (extra `gcs`); None: `checkpoints` in `output`."""
    video_steps: Annotated[int, AtLeast(0)] = 400
    """Control steps of 0.05 s in the video; 0: no video."""
    tracker: tuple[Tracking, ...] = ()
    """Services that hear of the run besides its folder: wandb, mlflow, trackio; their own settings say where."""
    mesh: Literal["none", "data"] = "none"
    """Use all devices: environments spread over them, parameters replicated (brax)."""
    config: ControlConfig = field(default_factory=tuned)

    length: ClassVar[str] = "steps"  # the setting that says how long a run is

    def __post_init__(self):
        super().__post_init__()
        if self.seed + self.seeds > LAST_SEED + 1:
            raise ValueError(f"seed={self.seed}, seeds={self.seeds}: the last seed must be at most {LAST_SEED}")

    @property
    def label(self) -> str:
        """The method, as the command line has it."""
        return self.config.method.name

    @property
    def command(self) -> str | None:
        """The command line that makes it again; None where no words give its settings."""
        return command_of(self, "pairgrpo cheetah", preset, DECIDING)

    @property
    def free(self) -> tuple[str, ...]:
        """Settings that may differ on resume; without annealing, a run can be given more steps."""
        return FREE if self.config.optimizer.anneal else (*FREE, self.length)


def preset(method: str, words: Sequence[str] = ()) -> Run:
    """The run of a method, as it is tuned for the advantages that the words name, and Hard's trust region."""
    config = tuned(method, peek(words, "advantage", "value"))
    if method == HardPair.name and peek(words, "trust-region", "hinge") == "lagrangian":
        config = config.replace(trust_region="lagrangian", alpha=HardPair.alpha, hinge=HardPair.hinge)
    return Run(config=config)


def main(words: Sequence[str]) -> int:
    """Parses the command line, trains, and says where everything is."""
    return execute(parse_run(words, ONLINE, preset, "pairgrpo cheetah"), make_console())


def execute(run: Run, console: Console) -> int:
    """Trains and reports; returns the exit code, 0 or 128 + the signal that stopped it."""
    require_mesh(run)
    require_trackers(run)
    require_checkpoints(run)
    env = make_env(run.env)
    run.config.check(env.episode_length)
    schedule = make_schedule(run, env)
    everywhere = make_everywhere(run, env)
    trainer = make_trainer(run.config, env, schedule.iterations, everywhere)
    places = everywhere and make_places(everywhere, trainer)
    # Metrics come out as [iterations, seeds].
    program = jax.jit(
        jax.vmap(trainer.iterate, (0, None), (0, 1)),
        static_argnums=1,
        donate_argnums=0,
        out_shardings=places and (places, everywhere),
    )
    with open_folder(run.output, settings(run), resume=run.resume, free=run.free):
        state, done, stopped = train_in_folder(
            run,
            program,
            initial_state(run, trainer, places),
            schedule,
            evaluate=make_evaluation(trainer, run.episodes),
            shown=SHOWN,
            console=console,
        )
    if stopped is not None:
        return stopped_code(stopped, done, console)
    state = processes.fetch(state)
    processes.on_lead(lambda: report(run, env, trainer, state, console))
    return 0


def make_schedule(run: Run, env: Env) -> Schedule:
    """A chunk is what lies between two checkpoints on brax, one iteration on mujoco, whose steps cost more."""
    per_iteration = run.config.collection.steps
    iterations = math.ceil(run.steps / per_iteration)
    between = math.ceil(iterations / run.evaluations)
    chunk = 1 if env.name == "mujoco" else math.ceil(between / math.ceil(between / run.save_every))
    return Schedule(iterations, chunk, between, run.save_every, per_iteration, run.seeds, run.evaluations)


def make_everywhere(run: Run, env: Env) -> NamedSharding | None:
    """On each of all devices; None where one does all.

    Raises:
      ValueError: for a simulator on the host, or environments that the devices do not divide.
    """
    if run.mesh == "none":
        return None
    if env.name == "mujoco":
        raise ValueError("mesh: mujoco runs on the host; spread env brax:spring, or leave out --mesh data")
    mesh = mesh_of_all("data")
    if (groups := run.config.collection.groups) % mesh.size:
        enough = filled_up(groups, mesh.size)
        raise ValueError(f"groups={groups} must be a multiple of the {mesh.size} devices; try --groups {enough}")
    return NamedSharding(mesh, PartitionSpec())


def make_places(everywhere: NamedSharding, trainer: Trainer) -> Any:
    """A tree like the state, of where each array lives: environments over all devices, the rest on each."""
    spread = NamedSharding(everywhere.mesh, PartitionSpec(None, "data"))
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    places = jax.tree.map(lambda _: everywhere, state)
    return places.replace(env_state=jax.tree.map(lambda _: spread, state.env_state))


def initial_state(run: Run, trainer: Trainer, places: Any = None) -> TrainState:
    """States of all seeds, with a leading axis over them."""
    keys = jax.vmap(jax.random.key)(jnp.arange(run.seed, run.seed + run.seeds))
    if places is not None:
        keys = processes.put(keys, places.step)
    return jax.jit(jax.vmap(trainer.init), out_shardings=places)(keys)


def make_evaluation(trainer: Trainer, episodes: int):
    """`(state, iteration) -> row` of fresh episodes, per seed: mean deterministic (`score`) and stochastic returns, and
    how many episodes of both `failed`: their return is no number, and the means leave them out."""
    compiled = jax.jit(jax.vmap(trainer.evaluate, (0, None, None, None)), static_argnums=(2, 3))

    def evaluate(state, iteration):
        key = jax.random.fold_in(jax.random.key(0x5EED), iteration)
        returns = [processes.fetch(compiled(state, key, episodes, how)) for how in (True, False)]
        score, stochastic = (finite_mean(x).tolist() for x in returns)
        failed = sum((~np.isfinite(x)).sum(1) for x in returns)
        return {"score": score, "stochastic_score": stochastic, "failed": failed.tolist()}

    return evaluate


def finite_mean(returns: np.ndarray) -> np.ndarray:
    """The mean `[N]` of the finite numbers in each row of `[N,E]`; nan where a row has none."""
    finite = np.isfinite(returns)
    with np.errstate(invalid="ignore"):
        return np.where(finite, returns, 0).sum(1) / finite.sum(1, dtype=returns.dtype)


def another_seed(run: Run) -> list[str]:
    """The command of the seeds after these, in folders beside the run's; none where no words give its settings."""
    beside = "{}-another-seed".format
    checkpoints = run.checkpoints and beside(run.checkpoints)
    try:
        command = run.replace(seed=run.seed + run.seeds, checkpoints=checkpoints).command
    except ValueError:  # beyond the last seed
        return []
    return [] if command is None else [f"{command} --output {shlex.quote(beside(run.output))}"]


def report(run: Run, env: Env, trainer: Trainer, state: TrainState, console: Console) -> None:
    """Draws the curve and the video, prints the summary, and marks the run as finished."""
    rows = read_metrics(run.output)
    last = [row for row in rows if "score" in row][-1]
    seeds = f"{run.seeds} seed{'s' if run.seeds > 1 else ''}"
    title = f"{run.label}, {run.config.collection.advantage}, {run.env}, {seeds}"
    learning_curves(rows, run.output / "learning_curve.png", title, colour_of(run.label))
    files = {
        "metrics": "metrics.jsonl, tensorboard/",
        "curve": "learning_curve.png",
        "settings": "config.json, versions.json",
        "checkpoints": checkpoints_of(run),
    }
    if run.video_steps:
        poses, rewards = trainer.episode(jax.tree.map(lambda x: x[0], state), jax.random.key(run.seed), run.video_steps)
        write_video(run.output / "cheetah.mp4", np.asarray(poses), np.asarray(rewards), env.dt)
        files["video"] = "cheetah.mp4"
    took = f"{last['steps']:,} steps in {last['seconds']:.0f} s"
    returns = f"return {np.mean(last['score']):z.0f} deterministic, {np.mean(last['stochastic_score']):z.0f} stochastic"
    if failed := np.sum(last.get("failed", 0)):
        returns += f"; {failed:.0f} of {2 * run.episodes * run.seeds} episodes failed and are left out"
    console.print(f"\n[bold]{title}[/bold]: {took}\n{returns}")
    after = [f"tensorboard --logdir {shlex.quote(str(run.output))}", *another_seed(run)]
    colour = colour_of(run.label)
    lines = [took, returns]
    write_report(run.output, title, lines, DRAWN, axis="iterations", command=run.command, after=after, colour=colour)
    files = {"page": REPORT} | files
    print_files(run.output, files, console)
    (run.output / DONE).touch()
