"""Aligns a language model with any method of the family: `pairgrpo align METHOD --help`.

The defaults train SmolLM2-135M with Hard-Pair-GRPO on sums of one digit and measure it on sums that it never meets.
With data or a reward of your own, and offline, they are those of preferences: the tiny set and a reward head. Leaves
metrics, a page of replies before and after, checkpoints, and the trained model for `transformers`;
`--resume` goes on.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import parse_run
from pairgrpo_jax.commands.evaluate import Judges, dialogues, figures, head_accuracy, tell_other_model
from pairgrpo_jax.commands.judging import OPENAI, VERDICTS, Asking, Comparing, make_judge
from pairgrpo_jax.commands.plots import colour_of
from pairgrpo_jax.commands.report import REPORT, write_report
from pairgrpo_jax.commands.rewards import gym_of, named_rewards, source_of
from pairgrpo_jax.commands.runs import (
    DONE,
    FREE,
    checkpoints_of,
    make_console,
    open_checkpoints,
    print_files,
    reading,
    require_checkpoints,
    require_mesh,
    require_trackers,
    stopped_code,
    train_in_folder,
)
from pairgrpo_jax.commands.words import peek
from pairgrpo_jax.core.bounds import Above, AtLeast, Settings, require_idle
from pairgrpo_jax.core.comparisons import check_comparisons
from pairgrpo_jax.lm import Model, Policy, load_model, save_pretrained
from pairgrpo_jax.lm.alignment import (
    AlignConfig,
    Data,
    EncodedPair,
    EncodedPrompt,
    Placement,
    PromptStream,
    Trainer,
    encode_pairs,
    encode_prompts,
    make_trainer,
    merged,
    tuned,
    tuned_for_sums,
)
from pairgrpo_jax.lm.alignment.evaluation import implicit_margins
from pairgrpo_jax.lm.alignment.laps import PARTS
from pairgrpo_jax.lm.data import (
    Loaded,
    describe,
    has_preferences,
    load_preferences,
    load_prompts,
    preference_accuracy,
    split_by_first_turn,
    spread,
    unseen,
)
from pairgrpo_jax.lm.data.gym import Gym
from pairgrpo_jax.lm.files.peft import save_peft
from pairgrpo_jax.lm.files.tokenizer import with_chat
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.rewards.asking import Memory
from pairgrpo_jax.lm.rewards.reward_model import SHIPPED, RewardHead, fitted_on, load_head, load_reward_model
from pairgrpo_jax.lm.rewards.sources import Source, SourceError, columns_of, compares, head_source, readable
from pairgrpo_jax.methods import METHODS
from pairgrpo_jax.training import Schedule, TrainState, open_folder, processes, read_metrics, settings
from pairgrpo_jax.training.services import Tracking

LABELS = tuple(m.name for m in METHODS) + tuple(f"{m.name}-offline" for m in METHODS if m.online and m.offline)
SUMS = "reasoning-gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
SUMS_SYSTEM = "You calculate. The answer may be negative, such as -3."
# On the progress line.
_WATCHED = {"score": "score", "reward": "reward", "kl_ref": "KL to the reference", "pair_accuracy": "pair accuracy"}
_WATCHED |= {"delta": "delta"}
_TIMES = {f"time/{part}": f"time/{part}" for part in (*PARTS, "evaluation")}


@dataclass(frozen=True)
class Judging(Settings):
    """Who judges samples while training."""

    reward: str = "harmless-a"
    """A reward model (a shipped name, or a .safetensors of pairgrpo reward-model); verify:math, verify:number or
    verify:choice against the column answer, verify:format=REGEX, verify:own with reasoning-gym; module:function of
    yours (several as module:f=0.7,verify:math=0.3); judge:module:function that compares two replies, or
    judge:openai:MODEL, one behind OPENAI_BASE_URL with OPENAI_API_KEY."""
    reward_timeout: Annotated[float | None, Above(0)] = None
    """Seconds that your reward function may take for a batch, or a judge for a question."""
    reward_retries: Annotated[int, AtLeast(0)] = 0
    """More tries after it fails."""
    reward_on_error: Literal["raise", "skip"] = "raise"
    """Then: stop with a checkpoint, or skip the groups concerned and count them. A judge's verdicts are kept."""
    comparing: Comparing | None = None
    asking: Asking | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.reward.startswith("judge:") != (self.comparing is not None):
            raise ValueError("comparing: a judge compares replies, and a reward does not")
        if self.reward.startswith(OPENAI) != (self.asking is not None):
            raise ValueError(f"asking: for {OPENAI}MODEL alone")


@dataclass(frozen=True)
class Run(Settings):
    """One run of one method on one model."""

    model: str = "smollm2"
    """A folder, a .gguf file, a hub id, or smollm2."""
    ignore_fields: tuple[str, ...] = ()
    """Fields of the model's config to load without, that are not implemented here."""
    end_of_turn: str | None = None
    """The token that ends a reply, if not what the chat template writes after one."""
    data: str = "tiny"
    """Prompts or preferences: tiny (ships with the package), a .jsonl[.gz], .json[.gz] or .parquet file, a hub id; or
    endless problems, reasoning-gym:NAME?option=value&option=value."""
    split: str = "train"
    """Split of the data; in a folder, the files with this word in their name, or all. Rows of the half that the judge
    was fitted on are left out; of the others a fifth, by first turn, is held out."""
    prompt_column: str | None = None
    """Column of the data that holds the prompt, where it is not called prompt. The others reach your reward function or
    judge, if it has a parameter of their name."""
    system: str | None = None
    """A system message, put before prompts that have none."""
    judge: str = "other"
    """Held-out reward head for the win rate, another than the reward; other: the head of the other half of the reward's
    data (NAME-b for NAME-a, b for a), for functions harmless-b with smollm2, none with other models or with verifiers;
    empty: none."""
    iterations: Annotated[int, AtLeast(1)] = 24
    """Batches."""
    seed: int = 0
    """Of sampling, adapters and the order of data."""
    output: Path = Path("runs/align")
    """Folder for everything the run leaves."""
    resume: bool = False
    """Go on with the run in `output`, bit for bit as if it had not stopped; start it if there is none."""
    evaluations: Annotated[int, AtLeast(1)] = 1
    """Evaluations over the run."""
    evaluation_prompts: Annotated[int, AtLeast(1)] = 32
    """Held-out prompts of each."""
    evaluation_samples: Annotated[int, AtLeast(1)] = 8
    """Replies to each prompt."""
    evaluation_pairs: Annotated[int, AtLeast(1)] = 64
    """Held-out preference pairs of each (offline), and labelled pairs that the judge's own accuracy is measured on."""
    save_every: Annotated[int, AtLeast(1)] = 4
    """Iterations between checkpoints; every evaluation makes one too."""
    keep: Annotated[int, AtLeast(1)] = 2
    """Newest checkpoints kept, besides the best."""
    async_saves: bool = False
    """Write them while the run goes on; it waits only until its state is copied, and for the one before."""
    checkpoints: str | None = None
    """Where they are: a folder, or `gs://bucket/folder` (extra `gcs`); None: `checkpoints` in `output`."""
    shown: Annotated[int, AtLeast(1)] = 8
    """Replies on the page, first samples of the evaluation."""
    show_times: bool = False
    """Where the seconds of a batch went, on the progress line; every row of metrics.jsonl has them, as time/PART."""
    export: bool = True
    """Write the trained model, adapters merged, as safetensors; adapters also on their own, for PEFT."""
    exported: Literal["last", "best"] = "last"
    """The state that is written: at the end, or the checkpoint with the best score. A finished run, too, with
    --resume --exported best."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters and optimizer are float32."""
    operands: Literal["bfloat16"] | None = None
    """Rounds the operands of products with the parameters, whose sums stay float32; None: as dtype. For accelerators
    and processors with avx512_bf16 or amx_bf16."""
    remat: bool = False
    """Recompute layers in the backward pass, for memory."""
    tracker: tuple[Tracking, ...] = ()
    """Services that hear of the run besides its folder: wandb, mlflow, trackio; their own settings say where."""
    mesh: Literal["none", "data", "fsdp"] = "none"
    """Use all devices: parameters replicated (data) or fully sharded (fsdp)."""
    chat: Chat = field(default_factory=Chat)
    judging: Judging | None = field(default_factory=Judging)
    config: AlignConfig = field(default_factory=tuned)

    def __post_init__(self):
        super().__post_init__()
        if self.evaluations > self.iterations:
            raise ValueError(f"evaluations={self.evaluations} must be at most iterations={self.iterations}")
        if self.exported != "last" and not self.export:
            raise ValueError(f"exported={self.exported!r} has no effect with --no-export")
        if self.config.online != (self.judging is not None):
            raise ValueError("judging: samples are judged, and a data set's pairs are not")
        if self.dtype == "bfloat16":
            require_idle(self, "operands", "with dtype='bfloat16', of which operands are then")
        if self.reward and judge_of(self) == self.reward:
            raise ValueError(f"judge={self.judge!r} is the reward itself, and nothing would be held out")

    @property
    def reward(self) -> str:
        """Who judges samples; nobody offline."""
        return "" if self.judging is None else self.judging.reward

    @property
    def label(self) -> str:
        """The method, as the command line has it."""
        method = self.config.method
        return f"{method.name}-offline" if method.online and not self.config.online else method.name

    @property
    def free(self) -> tuple[str, ...]:
        """Settings that may differ on resume; without annealing, a run can be given more batches."""
        return FREE if self.config.optimizer.anneal else (*FREE, "iterations")


def preset(label: str, words: Sequence[str] = ()) -> Run:
    """The run of a method, `NAME` or `NAME-offline`, as it is tuned: sums, unless words name data or a reward."""
    name, _, offline = label.partition("-")
    config = tuned(name, bool(offline))
    if not config.online:
        return Run(config=config, judging=None)
    if peek(words, "data", "") or peek(words, "reward", ""):
        judging = judging_of(peek(words, "reward", Judging.reward))
        return Run(config=config, judging=judging, judge=peek(words, "judge", Run.judge))
    judging = Judging("verify:own")
    run = Run(data=SUMS, system=SUMS_SYSTEM, judging=judging, config=tuned_for_sums(name))
    return run.replace(iterations=48, evaluations=6, evaluation_samples=4)


def judging_of(reward: str) -> Judging:
    """The settings that a reward of this name has; servers are asked again, as they can be busy."""
    if reward.startswith(OPENAI):
        return Judging(reward, 60.0, 5, comparing=Comparing(), asking=Asking())
    return Judging(reward, comparing=Comparing() if reward.startswith("judge:") else None)


def main(words: Sequence[str]) -> int:
    """Parses the command line, trains, and says where everything is."""
    run = parse_run(words, LABELS, preset, "pairgrpo align")
    try:
        return execute(run, make_console())
    except SourceError as error:  # the user's own function
        print(f"pairgrpo align: error: {error}", file=sys.stderr)
        return 1


def execute(run: Run, console: Console) -> int:
    """Trains and reports; returns the exit code, 0 or 128 + the signal that stopped it."""
    require_mesh(run)
    require_trackers(run)
    require_checkpoints(run)
    if run.operands is not None:
        processor.require_bfloat16("operands")
    placement = Placement.over(run.mesh)
    model, chat = with_chat(load(run, placement), run.chat)
    run = run.replace(chat=chat)
    held_out = prepare(run, model, placement, console)
    if told := placement.told(run.config):
        console.print(told)
    trainer = held_out.trainer
    judges = make_judges(run, held_out, placement)
    accuracy = judge_accuracy(run, judges, console)
    with open_folder(run.output, settings(run), resume=run.resume, free=run.free):
        state, done, stopped = train_in_folder(
            run,
            trainer.iterate,
            trainer.init(jax.random.key(run.seed)),
            make_schedule(run),
            evaluate=make_evaluation(run, trainer, judges, held_out.pairs, accuracy),
            shown=_WATCHED | (_TIMES if run.show_times else {}),
            console=console,
        )
        if stopped is not None:
            return stopped_code(stopped, done, console)
        files = export(run, trainer, state, console) if run.export else {}
        processes.on_lead(lambda: report(run, files, console))
    return 0


def judge_of(run: Run) -> str:
    """The name of the held-out head; empty for none. ValueError for a reward head without another half beside it."""
    if run.judge != "other":
        return run.judge
    if run.reward in SHIPPED or run.reward.endswith(".safetensors"):
        return other_half(run.reward)
    return "harmless-b" if run.model == "smollm2" and "verify:" not in run.reward else ""


def other_half(reward: str) -> str:
    """The head that `pairgrpo reward-model` made beside this one, on the other half of the same data.

    Raises:
      ValueError: for a file whose name says no half, or that lies alone.
    """
    path = Path(reward)
    rest, half = path.stem[:-1], path.stem[-1:]
    if half not in ("a", "b") or rest[-1:].isalnum():
        raise ValueError(f"judge: {reward} is no half a or b of its data by its name; name a judge, or '' for none")
    sibling = path.with_name(f"{rest}{'b' if half == 'a' else 'a'}{path.suffix}")
    if path.is_file() and not sibling.is_file():
        raise ValueError(f"judge: {sibling}, the other half of {reward}, does not exist; name a judge, or '' for none")
    return str(sibling)


def load(run: Run, placement: Placement) -> Model:
    """The model, in the precision of the run, each device's part of a parameter read on its own."""
    options = {"compute_dtype": jnp.dtype(run.dtype), "operands": run.operands, "remat": run.remat}
    options |= {"shardings": placement.shardings, "ignore_fields": run.ignore_fields, "end_of_turn": run.end_of_turn}
    options |= {"quantize": run.config.adapters.quantize}
    model = load_model(run.model, **options)
    if model.tokenizer is None:
        raise ValueError(f"model: {run.model} has no tokenizer, so no text can be encoded")
    return model


class Prepared(NamedTuple):
    """Held-out prompts and pairs, who judges samples, and the trainer on the rest of the data."""

    prompts: Sequence[EncodedPrompt]
    pairs: Sequence[EncodedPair]
    source: Source | RewardHead | None
    trainer: Trainer


def prepare(run: Run, model: Model, placement: Placement, console: Console) -> Prepared:
    """Everything that is there before the first batch."""
    config, gym = run.config, gym_of(run.data, run.system)
    source = make_source(run, model, gym) if config.online else None
    limits = (config.texts.prompt_tokens, config.texts.completion_tokens)
    if gym is not None:
        if not config.online or config.sft_iterations:
            raise ValueError(f"data: {run.data} holds no preference pairs, which {run.label} or sft_iterations needs")
        prompts = PromptStream(model, functools.partial(gym.training, run.seed), limits[0])
        held_out = encode_prompts(model, gym.held_out(run.evaluation_prompts), limits[0])
        console.print(f"{run.data}: endless, {len(held_out)} problems held out")
        data, held_out_pairs = Data(prompts), []
    else:
        data, held_out, held_out_pairs = read_data(run, model, source, console)
    options = {"iterations": run.iterations, "seed": run.seed, "placement": placement}
    return Prepared(held_out, held_out_pairs, source, make_trainer(config, model, data, source, **options))


def read_data(
    run: Run, model: Model, source: Source | RewardHead | None, console: Console
) -> tuple[Data, list[EncodedPrompt], list[EncodedPair]]:
    """The rows of a data set to train on, and the prompts and pairs that are held out."""
    config = run.config
    limits = (config.texts.prompt_tokens, config.texts.completion_tokens)
    name = judge_of(run)
    half = fitted_on(name, run.data) if name else None
    pairs, held_out_pairs = [], []
    if not config.online or config.sft_iterations:
        loaded = load_preferences(run.data, **reading(run))
        rows = split_by_first_turn(unseen(loaded.rows, half))
        pairs, held_out_pairs = (encode_pairs(model, part, *limits) for part in rows)
        held_out_pairs = spread(held_out_pairs, run.evaluation_pairs)
        tell(run, loaded, rows, (pairs, held_out_pairs), "too long or alike when cut", console)
    loaded = with_readable_answers(run, load_prompts(run.data, columns=columns_of(source), **reading(run)), source)
    rows = split_by_first_turn(unseen(loaded.rows, half))
    if half is not None:
        console.print(f"{len(loaded.rows) - len(rows[0]) - len(rows[1])} left out: {name} was fitted on that half")
    prompts, held_out = (encode_prompts(model, part, limits[0]) for part in rows)
    held_out = spread(held_out, run.evaluation_prompts)
    tell(run, loaded, rows, (prompts, held_out), "too long", console)
    return Data(prompts, pairs), held_out, held_out_pairs


def with_readable_answers(run: Run, loaded: Loaded, source: Source | RewardHead | None) -> Loaded:
    """The rows whose answers the verifiers can read; the others are dropped and counted."""
    kept = [row for row in loaded.rows if readable(source, row.columns)]
    lost = len(loaded.rows) - len(kept)
    if not kept:
        raise ValueError(f"{run.data}: no answer that {run.reward} can read, such as {loaded.rows[0].columns}")
    return Loaded(kept, loaded.dropped | ({"unreadable answer": lost} if lost else {}))


def tell(run: Run, loaded: Loaded, rows: Sequence[Sequence], used: Sequence[Sequence], lost: str, console: Console):
    """Says what became of the data: `rows` to train on and held out, and what of them is `used`."""
    parts = f"{len(used[0])} to train on ({len(rows[0]) - len(used[0])} {lost}), {len(rows[1])} held out"
    console.print(f"{run.data}: {describe(loaded)}; {parts}, {len(used[1])} of them to evaluate on")


def make_source(run: Run, model: Model, gym: Gym | None) -> Source | RewardHead:
    """A reward model, verifiers and the user's functions: rewards, or comparisons after `judge:`."""
    judging = run.judging
    assert judging is not None
    if ":" not in run.reward:
        return reward_model_of(run, model)
    policy = {"timeout": judging.reward_timeout, "retries": judging.reward_retries, "on_error": judging.reward_on_error}
    if not run.reward.startswith("judge:"):
        return source_of(named_rewards(run.reward, gym), **policy)
    if not run.config.method.comparisons:
        raise ValueError(f"reward: a judge gives pairs, and {run.label} needs rewards: use soft or hard")
    assert judging.comparing is not None
    check_comparisons(judging.comparing.comparisons, run.config.group_size)
    memory = Memory(run.output / VERDICTS)
    known = run.resume and memory.path.exists()
    if known:
        memory.open()
    return make_judge(run.reward, judging.comparing, judging.asking, memory=memory, check=not known, **policy)


def reward_model_of(run: Run, model: Model) -> Source | RewardHead:
    """A head on the model that training starts from, shared with the reference; or one with a trunk of its own."""
    tell_other_model(run.model, run.reward)
    policy, head = load_reward_model(run.reward, model, ignore_fields=run.ignore_fields)
    if policy.lora is None and policy.model is model:
        return head
    texts = run.config.texts
    limits = {"prompt_tokens": texts.prompt_tokens, "reply_tokens": texts.completion_tokens}
    return head_source(policy, head, **limits)


def make_judges(run: Run, held_out: Prepared, placement: Placement) -> Judges:
    """The rewards and the held-out head, on the model that training starts from. They hear samples that are not cut.

    Where nobody judges, only the replies that are shown are made.
    """
    config, head, model, source = run.config, judge_of(run), held_out.trainer.model, held_out.source
    silent = not head and (source is None or compares(source))
    if head:
        tell_other_model(run.model, head)
    return Judges(
        Policy(model, model.params),
        load_head(head) if head else None,
        held_out.prompts[: run.shown] if silent else held_out.prompts,
        prompt_tokens=config.texts.prompt_tokens,
        completion_tokens=config.texts.completion_tokens,
        sampling=config.scored,
        source=source,
        source_name=run.reward,
        samples=1 if silent else run.evaluation_samples,
        seed=run.seed,
        rows=placement.rows,
    )


def judge_accuracy(run: Run, judges: Judges, console: Console) -> dict[str, float]:
    """How well the judge orders labelled pairs at this run's token limits, of rows that it was not fitted on.

    It is made on longer texts, as a rule, and is better there. Nothing without a judge, or for data of prompts alone.
    """
    name, texts = judge_of(run), run.config.texts
    if judges.head is None or gym_of(run.data, run.system) or not has_preferences(run.data, split=run.split):
        return {}
    loaded = load_preferences(run.data, **reading(run))
    rows = spread(unseen(loaded.rows, fitted_on(name, run.data)), run.evaluation_pairs)
    pairs = encode_pairs(judges.reference.model, rows, texts.prompt_tokens, texts.completion_tokens)
    row = head_accuracy(judges.reference, judges.head, pairs, judges.rows)
    console.print("\n".join(told_accuracy(row)))
    return row


def told_accuracy(row: dict) -> list[str]:
    """The judge's accuracy in words."""
    if "head_accuracy" not in row:
        return []
    interval = f"[{row['head_accuracy_low']:.1%}, {row['head_accuracy_high']:.1%}]"
    what = f"of {row['head_pairs']:.0f} labelled pairs rightly, cut to this run's token limits"
    return [f"the judge orders {row['head_accuracy']:.1%} {interval} {what}"]


def make_schedule(run: Run) -> Schedule:
    """One iteration at a time; `steps` counts completion tokens at their longest."""
    config = run.config
    tokens = config.texts.prompts * config.group_size * config.texts.completion_tokens
    return Schedule(run.iterations, 1, run.iterations, run.save_every, tokens, evaluations=run.evaluations)


def make_evaluation(
    run: Run, trainer: Trainer, judges: Judges, pairs: Sequence[EncodedPair], accuracy: dict[str, float]
):
    """`(state, iteration) -> row`: rewards on held-out prompts, win rate over the start, accuracy on held-out pairs.

    `score` is the first of these that there is: the mean of the first reward, the win rate, the accuracy, or 0.
    `accuracy` of the judge goes into every row. Writes the page of replies too.
    """
    before = []  # the start's replies, made once

    def evaluate(state: TrainState, iteration: int) -> dict[str, Any]:
        row, began = dict[str, Any](accuracy), time.perf_counter()
        policy = trainer.policy(state)
        before[:] = before or [judges.hear(judges.reference)]
        after = judges.hear(policy)
        row |= figures(after, before[0])
        if pairs:
            texts = run.config.texts
            limits = {"prompt_tokens": texts.prompt_tokens, "completion_tokens": texts.completion_tokens}
            margins = implicit_margins(
                policy, trainer.reference(state), pairs, method=run.config.method, rows=judges.rows, **limits
            )
            row |= {"implicit_accuracy": preference_accuracy(margins), "implicit_margins": margins.tolist()}
        replies = dialogues(judges.prompts[: run.shown], before=before[0], after=after)
        processes.on_lead(lambda: (run.output / "replies.md").write_text(page(run, iteration, row, replies)))
        scores = [*(row.get(f"held_out/{name}") for name in after.rewards), row.get("win_rate")]
        known = [x for x in (*scores, row.get("implicit_accuracy")) if x is not None]
        return row | {"score": known[0] if known else 0.0, "time/evaluation": time.perf_counter() - began}

    return evaluate


def report(run: Run, exported: dict[str, str], console: Console) -> None:
    """Prints the summary and marks the run as finished."""
    rows = read_metrics(run.output)
    last = [row for row in rows if "score" in row][-1]
    files = {"page": REPORT, "metrics": "metrics.jsonl, tensorboard/", "settings": "config.json, versions.json"}
    files |= {"checkpoints": checkpoints_of(run), "replies": "replies.md"}
    files |= exported
    after = [f"pairgrpo generate --model {run.output}"] if run.export else []
    after += [f"tensorboard --logdir {run.output}"]
    lines = [f"{run.iterations} batches in {last['seconds']:.0f} s", *summary(last)]
    console.print(f"\n[bold]{title(run)}[/bold]: " + "\n".join(lines))
    colour = colour_of(run.config.method.name)
    write_report(run.output, title(run), lines, _WATCHED, axis="batches", after=after, colour=colour)
    if failed := int(sum(row["failed_groups"] for row in rows if np.isfinite(row.get("failed_groups", np.nan)))):
        total = sum(1 + int(row.get("resampled", 0)) for row in rows) * run.config.texts.prompts
        console.print(f"[bold]{failed} of {total} groups had no usable verdict and were left out[/bold]")
    print_files(run.output, files, console)
    (run.output / DONE).touch()


def export(run: Run, trainer: Trainer, state: TrainState, console: Console) -> dict[str, str]:
    """Writes the model and its adapters, of this state or of the best checkpoint; what they are and where."""
    if run.exported == "best":
        checkpoints = open_checkpoints(run)
        step, state = checkpoints.restore(state, "best")
        checkpoints.close()
        console.print(f"exporting the best checkpoint, after {step} of {run.iterations} batches")
    params = processes.local(merged(run.config, trainer.model, state.params))
    processes.on_lead(lambda: save_pretrained(trainer.model, params, run.output / "model"))
    if (adapters := run.config.adapters.lora) is None:
        return {"model": "model/"}
    lora = processes.local(state.params["lora"])
    processes.on_lead(lambda: save_peft(run.output / "adapter", trainer.model.config, adapters, lora, base=run.model))
    return {"model": "model/", "adapters for PEFT": "adapter/"}


def title(run: Run) -> str:
    """What the run was, in a line."""
    how = "online" if run.config.online else "offline"
    return f"{run.config.method.name} ({how}), {run.model}, {run.data}" + (
        f", reward {run.reward}" if run.config.online else ""
    )


def summary(row: dict) -> list[str]:
    """The last evaluation in words."""
    lines = [reward_line(row, key.removesuffix("/rival")) for key in row if key.endswith("/rival")]
    if "win_rate" in row:
        interval = f"[{row['win_rate_low']:.1%}, {row['win_rate_high']:.1%}]"
        lines.append(
            f"held-out proxy-RM win rate over the start {row['win_rate']:.1%} {interval}, "
            f"{row['win_rate_length_controlled']:.1%} at equal length"
        )
        lines += told_accuracy(row)
    by_chance = " (an estimate from samples, below 0 by chance)" if round(row["kl_reference"], 2) < 0 else ""
    lines.append(
        f"reply length {row['reply_tokens']:.1f} tokens (start {row['reply_tokens_rival']:.1f}), "
        f"KL to the start {row['kl_reference']:z.2f} nats a reply{by_chance}"
    )
    if "implicit_accuracy" in row:
        lines.append(f"implicit-reward accuracy on held-out pairs {row['implicit_accuracy']:.1%}")
    return lines


def reward_line(row: dict, key: str) -> str:
    """A reward on held-out prompts: its mean or, where it is 0 or 1, the shares of right replies and prompts."""
    best = max(
        (name for name in row if name.startswith(f"{key}/pass@")), key=lambda x: int(x.split("@")[1]), default=""
    )
    form = ".1%" if best else "z.4g"
    interval = f"[{row[f'{key}/low']:{form}}, {row[f'{key}/high']:{form}}]"
    line = f"{key.replace('held_out/', 'held-out ')} {row[key]:{form}} {interval} (start {row[f'{key}/rival']:{form}})"
    failed = row[f"{key}/failed"]
    line += f", {best.split('/')[-1]} {row[best]:.1%}" if best else ""
    return line + (f"; {failed} prompts without a reward" if failed else "")


def page(run: Run, iteration: int, row: dict, replies: list[dict]) -> str:
    """A Markdown page: the figures of an evaluation, then each prompt with the reply before and after."""
    lines = [f"# {title(run)}", "", f"After {iteration} of {run.iterations} batches:", ""]
    lines += [*[f"- {line}" for line in summary(row)], ""]
    scored = f", and scored by `{judge_of(run) or run.reward}`" if judge_of(run) or run.reward else ""
    lines.append(f"Replies are sampled, cut at {run.config.texts.completion_tokens} tokens{scored}.")
    for item in replies:
        lines += ["", "---", ""]
        lines += [f"**{message['role']}**: {message['content']}\n" for message in item["prompt"]]
        for side in ("before", "after"):
            text, reward = item[side]
            quoted = "\n".join(f"> {line}" for line in text.strip().splitlines() or [""])
            lines += [side if reward is None else f"{side}, reward {reward:.2f}", "", quoted, ""]
    return "\n".join(lines) + "\n"
