"""Trains and evaluates a Bradley-Terry reward model on preference data.

pairgrpo reward-model --data tiny

pairgrpo reward-model --data path/to/helpful-base --split all --output runs/helpful

Cross-validated by first user turn; then one head on each half of the data, `a` and `b`, to train a policy on one and
judge it with the other. The trunk is frozen (its features are pooled once, the rest takes seconds), or trained with
low-rank adapters (`--mode lora`) or as a whole (`--mode full`). Writes heads, figures and a table.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from rich.console import Console
from safetensors.numpy import save_file

from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.commands.runs import (
    FREE,
    digest_of,
    make_console,
    open_log,
    reading,
    require_mesh,
    require_same_inputs,
    require_trackers,
)
from pairgrpo_jax.commands.text_baseline import longer_margins, tfidf_margins
from pairgrpo_jax.core.bounds import Above, AtLeast, Seed, Settings, field_types, require_idle
from pairgrpo_jax.core.statistics import mean_interval
from pairgrpo_jax.lm import Model, Policy, load_model, save_pretrained
from pairgrpo_jax.lm.alignment import Placement
from pairgrpo_jax.lm.data import (
    EncodedPair,
    Half,
    Preference,
    batch_indices,
    describe,
    encode_preferences,
    first_turn,
    fold_of,
    load_preferences,
    preference_accuracy,
    ranked_right,
)
from pairgrpo_jax.lm.files.tokenizer import with_chat
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.models.lora import LoraConfig
from pairgrpo_jax.lm.rewards import reward_model
from pairgrpo_jax.lm.rewards import reward_training as training
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, save_head
from pairgrpo_jax.training import (
    MetricLog,
    NoLog,
    TrainState,
    check_finite,
    make_update_step,
    open_folder,
    processes,
    require_free,
    settings,
)
from pairgrpo_jax.training.optimizer import clipped_adam
from pairgrpo_jax.training.placement import beside, put_rows
from pairgrpo_jax.training.run import renew_settings, without_nan
from pairgrpo_jax.training.services import Tracking


@dataclass(frozen=True)
class Run(Settings):
    """One reward model."""

    model: str = "smollm2"
    """Trunk: a folder, a .gguf file, a hub repository, or smollm2."""
    ignore_fields: tuple[str, ...] = ()
    """Fields of its config to load without, that are not implemented here."""
    end_of_turn: str | None = None
    """The token that ends a reply, if not what the chat template writes after one."""
    data: str = "tiny"
    """tiny, a file or folder (.jsonl, .json, also .gz; .parquet), or a hub data set."""
    split: str = "train"
    """Split of the data set; all: every file of a folder."""
    prompt_column: str | None = None
    """Column that holds the prompt, where it is not called prompt."""
    system: str | None = None
    """A system message, put before prompts that have none."""
    mode: Literal["frozen", "lora", "full"] = "frozen"
    """What is trained beside the head: nothing, low-rank adapters, or the whole trunk."""
    features: tuple[str, ...] = reward_model.DEFAULT
    """What the head sees of a reply: mean, last (hidden states), length."""
    prompt_tokens: Annotated[int, AtLeast(1)] = 384
    """Longer prompts lose their oldest turns."""
    reply_tokens: Annotated[int, AtLeast(1)] = 256
    """Longer replies are cut."""
    folds: int = 5
    """Of the cross-validation, by first user turn; 0 skips it."""
    seed: Seed = 0
    """Of the folds, the halves, and the order of training batches."""
    l2: tuple[float, ...] = training.L2_GRID
    """Penalties on the frozen trunk's head to choose from, by cross-validation inside the training part; lora and full
    start from that head, and are not penalised."""
    batch: Annotated[int, AtLeast(1)] = 8
    """Pairs at a time."""
    epochs: Annotated[float, Above(0)] = 1.0
    """Passes over the training pairs (lora and full)."""
    learning_rate: Annotated[float, Above(0)] = 1e-4
    """Of Adam, constant (lora and full)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters (lora)."""
    mesh: Literal["none", "data", "fsdp"] = "none"
    """Use all devices: parameters replicated (data) or fully sharded (fsdp)."""
    output: Path = Path("runs/reward_model")
    """Folder for everything the run leaves."""
    resume: bool = False
    """Go on with the run in `output`: pairs that were pooled are not pooled again."""
    tracker: tuple[Tracking, ...] = ()
    """Services that hear of the run besides its folder: wandb, mlflow, trackio; their own settings say where."""
    chat: Chat = field(default_factory=Chat)

    def __post_init__(self):
        super().__post_init__()
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 0 or at least 2, got {self.folds}")
        if not self.l2 or min(self.l2) <= 0:
            raise ValueError(f"l2 must hold positive numbers, got {self.l2}")
        reward_model.check_features(self.features)
        for name in ("epochs", "learning_rate") if self.mode == "frozen" else ():
            require_idle(self, name, "with mode='frozen', which makes no updates")
        for name in field_types(LoraConfig) if self.mode != "lora" else ():
            require_idle(self.lora, name, f"with mode={self.mode!r}, which has no adapters")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pairs:
    """The preferences that fit, their tokens, and an integer for each one's first turn."""

    rows: list[Preference]
    tokens: list[EncodedPair]

    def fold(self, folds: int, seed: int) -> np.ndarray:
        """The fold of each pair, `[N]`."""
        return np.array([fold_of(first_turn(row), folds, seed) for row in self.rows])


# Fits a reward model to the pairs of a mask, and returns the margins of all others and what to save.
Fit = Callable[[np.ndarray], tuple[np.ndarray, dict[str, Any]]]


def main(words: Sequence[str]) -> int:
    """Parses the command line, trains, and says where everything is."""
    return execute(parse(Run(), words, "pairgrpo reward-model", __doc__), make_console())


def execute(run: Run, console: Console) -> int:
    """Trains and reports; returns the exit code."""
    require_mesh(run)
    require_trackers(run)
    require_free(run.output, resume=run.resume)
    placement = Placement.over(run.mesh)
    if run.mode != "frozen" and (filled := placement.places(run.batch)) > run.batch:
        raise ValueError(
            f"batch={run.batch} must be a multiple of the {placement.splits} devices; try --batch {filled}"
        )
    options = {"ignore_fields": run.ignore_fields, "end_of_turn": run.end_of_turn, "shardings": placement.shardings}
    model, chat = with_chat(placement.model(load_model(run.model, **options)), run.chat)
    run = dataclasses.replace(run, chat=chat)
    if run.mode == "lora":
        lora.check(run.lora, model.config)
    pairs = read(run, model, console)
    with open_folder(run.output, settings(run), resume=run.resume, free=FREE):
        processes.on_lead(lambda: require_same_inputs(run, {"data": (run.data, digest_of(pairs.rows))}))
        renew_settings(run.output, settings(run))
        rows = measure(run, model, placement, pairs, console)
        text = table(rows)
        processes.on_lead(lambda: write(run.output, rows, text))
    console.print(f"\n{run.data}, {len(pairs.rows)} pairs, {run.mode} {run.model}", style="bold")
    console.print(text)
    console.print(f"\nheads: {run.output}/a.safetensors, {run.output}/b.safetensors")
    return 0


def write(output: Path, rows: list[dict[str, Any]], text: str) -> None:
    """The figures, and as a table."""
    (output / "figures.json").write_text(json.dumps(without_nan(rows), indent=2, allow_nan=False))
    (output / "table.md").write_text(text + "\n")


def measure(run: Run, model: Model, placement: Placement, pairs: Pairs, console: Console) -> list[dict[str, Any]]:
    """The figures of cross-validation and of both halves; a row a fold and one of all figures go into the log."""
    log, complete = open_log(run, console), False
    try:
        pooled = pool(run, model, placement, pairs, console)
        fit = make_fit(run, model, placement, pairs, pooled)
        rows = cross_validate(run, pairs, fit, console, log) if run.folds else []
        rows += halves(run, model, pairs, fit)
        last = {"iteration": run.folds + 1, "steps": len(pairs.rows), "score": rows[0]["accuracy"]}
        log.write(last | {f"{row['name']}/{key}": row[key] for row in rows for key in ("accuracy", "log_loss")})
        complete = True
    finally:
        log.close(complete)
    return rows


def read(run: Run, model: Model, console: Console) -> Pairs:
    """Loads, cleans and encodes the data, and says what was left out."""
    loaded = load_preferences(run.data, **reading(run))
    console.print(f"{run.data}: {describe(loaded)}")
    tokens = encode_preferences(model, loaded.rows, run.prompt_tokens, run.reply_tokens)
    kept = [(row, pair) for row, pair in zip(loaded.rows, tokens) if pair is not None]
    if len(kept) < len(tokens):
        console.print(f"{len(tokens) - len(kept)} more have a last turn longer than {run.prompt_tokens} tokens")
    if len(kept) < 10:
        raise ValueError(f"data: {len(kept)} usable pairs in {run.data} are too few; at least 10 are needed")
    rows, pairs = zip(*kept)
    return Pairs(list(rows), list(pairs))


def pool(run: Run, model: Model, placement: Placement, pairs: Pairs, console: Console) -> np.ndarray:
    """Features `[N, 2, F]` from the frozen trunk, kept in the run's folder as they come."""
    path, partial = run.output / "features.npy", run.output / "features.partial.npy"
    empty = training.empty_features(model, len(pairs.tokens), run.features)
    pooled = processes.on_lead(lambda: kept(path, partial, empty))
    known = processes.gather(None if pooled is None else np.isfinite(pooled).all((1, 2)).tolist())[0]
    if pooled is None:  # what another process has kept is not computed here, and comes at the end
        pooled = np.where(np.array(known)[:, None, None], np.float32(0), empty)
    total, started = len(pairs.tokens), time.monotonic()
    before = sum(known)

    def progress(done: int) -> None:
        if done > before and done * 10 // total > max(done - run.batch, before) * 10 // total:
            left = (time.monotonic() - started) * (total - done) / (done - before)
            console.print(f"pooled {done} of {total} pairs, {left:.0f} s left")

    policy = Policy(model, model.params)
    how = {"batch": run.batch, "progress": progress, "into": pooled, "rows": placement.rows}
    training.pair_features(policy, pairs.tokens, run.features, **how)
    processes.on_lead(lambda: partial.exists() and partial.rename(path))
    return np.load(path, allow_pickle=False)


def kept(path: Path, partial: Path, empty: np.ndarray) -> np.ndarray:
    """The features that the folder holds; a file of none yet is made where it holds none."""
    if path.exists():
        return np.load(path, allow_pickle=False)
    if not partial.exists():
        np.save(partial.with_name("features.new.npy"), empty)
        partial.with_name("features.new.npy").rename(partial)
    return np.lib.format.open_memmap(partial, mode="r+")


def make_fit(run: Run, model: Model, placement: Placement, pairs: Pairs, pooled: np.ndarray) -> Fit:
    """How a reward model is fitted to some of the pairs."""
    groups = pairs.fold(2**31 - 1, run.seed)  # odd, or all first turns of a half would be in half of the inner folds

    def fit_frozen(train: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        head, l2 = training.fit_head(pooled[train], groups[train], run.features, run.l2)
        both = (pooled[~train] @ np.asarray(head.weight)).astype(np.float64)
        return both[:, 0] - both[:, 1], {"head": head, "l2": l2}

    program = make_trunk_program(run, model)

    def fit_trunk(train: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        fitted = fit_frozen(train)[1]
        tokens = [pair for pair, used in zip(pairs.tokens, train) if used]
        trainable = train_trunk(run, model, placement, program, tokens, fitted["head"])
        held_out = [pair for pair, used in zip(pairs.tokens, train) if not used]
        margins = trunk_margins(run, model, placement, program, trainable, held_out)
        return margins, {**fitted, **trainable}

    return fit_frozen if run.mode == "frozen" else fit_trunk


class TrunkProgram(NamedTuple):
    """Compiled once for all folds: an update of head and trunk, and their rewards; both take the frozen parameters."""

    optimizer: optax.GradientTransformation
    update: Callable
    rewards: Callable


def make_trunk_program(run: Run, model: Model) -> TrunkProgram:
    """Adam at a constant rate, gradients clipped at norm 1."""
    optimizer = clipped_adam(1.0, run.learning_rate)

    @jax.jit
    def update(state, frozen, batch):
        loss = training.make_reward_loss(model, frozen, run.lora)
        return make_update_step(loss, optimizer, parallel=None)(state, batch)

    @jax.jit
    def rewards(trainable, frozen, batch):
        policy = training.trunk(trainable, model, frozen, run.lora)
        return reward_model.reward(policy, trainable["head"], *batch[:4])

    return TrunkProgram(optimizer, update, rewards)


def train_trunk(
    run: Run, model: Model, placement: Placement, program: TrunkProgram, tokens: list[EncodedPair], head: RewardHead
) -> dict[str, Any]:
    """Trains head and trunk together, from the head that fits the frozen trunk."""
    keys = jax.random.split(jax.random.key(run.seed))
    trainable = training.init_trainable(run.mode, model, head, run.lora, keys[0])
    state = TrainState.create(trainable, program.optimizer, keys[1])
    state = placement.state(beside(state, model.params))
    frozen = model.params if run.mode == "lora" else None
    for position in range(max(1, math.ceil(run.epochs * len(tokens) / run.batch))):
        batch = training.pad_pairs([tokens[i] for i in batch_indices(len(tokens), run.batch, position, run.seed)])
        if run.mode == "lora" and run.lora.dropout:
            batch = batch._replace(keys=jax.random.split(jax.random.fold_in(keys[1], position), run.batch))
        state, _ = program.update(state, frozen, put_rows(batch, placement.rows))
        check_finite(state)
    return state.params


def trunk_margins(
    run: Run, model: Model, placement: Placement, program: TrunkProgram, trainable: Any, tokens: list[EncodedPair]
) -> np.ndarray:
    """Reward of the chosen minus that of the rejected reply, `[N]`."""
    frozen, margins = model.params if run.mode == "lora" else None, np.zeros(len(tokens))
    for index in training.batches_by_length(tokens, run.batch):
        batch = put_rows(training.pad_pairs([tokens[i] for i in index], run.batch), placement.rows)
        both = processes.fetch(program.rewards(trainable, frozen, batch))[: len(index)]
        margins[index] = both[:, 0] - both[:, 1]
    return margins


def cross_validate(run: Run, pairs: Pairs, fit: Fit, console: Console, log: MetricLog | NoLog) -> list[dict[str, Any]]:
    """Margins of every pair from the model that did not see its fold, beside what needs no model."""
    folds, replies = pairs.fold(run.folds, run.seed), [(row.chosen, row.rejected) for row in pairs.rows]
    margins = {"reward model": np.zeros(len(folds)), "TF-IDF + length": np.zeros(len(folds))}
    tested = 0
    for fold in range(run.folds):
        test = folds == fold
        if not test.any() or test.all():
            continue
        margins["reward model"][test], fitted = fit(~test)
        margins["TF-IDF + length"][test] = tfidf_margins(replies, test)[test]
        score = preference_accuracy(margins["reward model"][test])
        about = f"{test.sum()} pairs, accuracy {100 * score:.1f}%, l2 {fitted['l2']:g}"
        console.print(f"fold {fold + 1} of {run.folds}: {about}")
        tested += int(test.sum())
        log.write({"iteration": fold + 1, "steps": tested, "accuracy": score, "l2": fitted["l2"]})
    margins["longer reply"] = longer_margins(replies)
    return [figures(name, values, margins["reward model"]) for name, values in margins.items()]


def halves(run: Run, model: Model, pairs: Pairs, fit: Fit) -> list[dict[str, Any]]:
    """Fits and saves one reward model on each half of the first turns; each is tested on the other half."""
    rows = []
    for number, name in enumerate("ab"):
        inside = np.array([Half(number, run.seed).holds(row) for row in pairs.rows])
        margins, fitted = fit(inside)
        row = figures(f"half {name}, tested on the other", margins)
        about = {
            "model": run.model,
            "data": Path(run.data).name if Path(run.data).exists() else run.data,
            "pairs": int(inside.sum()),
            "half": number,
            "seed": run.seed,
            "accuracy": row["accuracy"],
            "mode": run.mode,
            "lora": dataclasses.asdict(run.lora),
            "chat": dataclasses.asdict(run.chat),
            "end_of_turn": run.end_of_turn,
        }
        trained = processes.fetch({key: fitted[key] for key in ("head", "adapters", "params") if key in fitted})
        processes.on_lead(functools.partial(save, run.output, name, model, trained, about | {"l2": fitted["l2"]}))
        rows.append(row)
    return rows


def save(output: Path, name: str, model: Model, trained: dict[str, Any], about: dict[str, Any]) -> None:
    """A head with what is known of it, and what was trained beside it."""
    save_head(trained["head"], output / f"{name}.safetensors", **about)
    if "adapters" in trained:
        flat: dict[str, Any] = flatten_dict(trained["adapters"], sep="/")
        save_file(flat, output / f"{name}-adapters.safetensors")
    if "params" in trained:
        save_pretrained(model, trained["params"], output / f"{name}-trunk")


def figures(name: str, margins: np.ndarray, other: np.ndarray | None = None) -> dict[str, Any]:
    """Accuracy with a 95% bootstrap interval over pairs, mean margin, and how far the reward model is ahead."""
    right = ranked_right(margins)
    row = {"name": name, "accuracy": float(right.mean()), "interval": mean_interval(right)}
    row |= {"margin": float(margins.mean()), "log_loss": training.log_loss(margins)}
    if other is not None and other is not margins:
        ahead = ranked_right(other) - right
        row |= {"ahead": float(ahead.mean()), "ahead_interval": mean_interval(ahead)}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = ["| | pair accuracy, % [95% interval] | mean margin | reward model ahead by, points |", "|---|---|---|---|"]
    for row in rows:
        model = not row["name"].startswith(("TF-IDF", "longer"))
        margin = f"{row['margin']:.3f}" if model else "-"
        ahead = f"{100 * row['ahead']:.1f} {bounds(row['ahead_interval'])}" if "ahead" in row else "-"
        accuracy = f"{100 * row['accuracy']:.1f} {bounds(row['interval'])}"
        lines.append(f"| {row['name']} | {accuracy} | {margin} | {ahead} |")
    return "\n".join(lines)


def bounds(ends: tuple[float, float]) -> str:
    """An interval in percent."""
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
