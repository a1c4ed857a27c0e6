"""Aligns a language model with any method of the family: `pairgrpo align METHOD --help`.

The defaults train SmolLM2-135M with Hard-Pair-GRPO on sums of one digit and measure it on sums that it never meets.
With data or a reward of your own, and offline, they are those of preferences: the tiny set and a reward head. Leaves
metrics, a page of replies before and after, checkpoints, and the trained model for `transformers`;
`--resume` goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.align_data import Prepared, judge_accuracy, load, make_judges, prepare, require_data
from pairgrpo_jax.commands.align_results import TIMES, WATCHED, export, make_evaluation, report
from pairgrpo_jax.commands.align_settings import LABELS, Run, judge_of, preset
from pairgrpo_jax.commands.cli import parse_run
from pairgrpo_jax.commands.runs import (
    digest_of,
    make_console,
    require_checkpoints,
    require_mesh,
    require_same_inputs,
    require_trackers,
    stopped_code,
    train_in_folder,
)
from pairgrpo_jax.lm.alignment import Placement, PromptStream
from pairgrpo_jax.lm.files.tokenizer import with_chat
from pairgrpo_jax.lm.rewards.reward_model import load_head
from pairgrpo_jax.lm.rewards.sources import CallError, SourceError
from pairgrpo_jax.training import Schedule, open_folder, processes, require_free, settings

DEFAULTS = (
    "Defaults are those of sums of one digit; with data or a reward of your own (name them beside --help), and "
    "offline, those of preferences."
)


def main(words: Sequence[str]) -> int:
    """Parses the command line, trains, and says where everything is."""
    run = parse_run(words, LABELS, preset, "pairgrpo align", DEFAULTS)
    try:
        return execute(run, make_console())
    except SourceError as error:  # the user's own function
        skip = "; mend it, or --reward-on-error skip if it fails on some replies alone"
        print(f"pairgrpo align: error: {error}{skip * isinstance(error, CallError)}", file=sys.stderr)
        return 1


def execute(run: Run, console: Console) -> int:
    """Trains and reports; returns the exit code, 0 or 128 + the signal that stopped it."""
    require_mesh(run)
    require_trackers(run)
    require_checkpoints(run)
    require_free(run.output, resume=run.resume)
    if run.operands is not None:
        processor.require_bfloat16("operands")
    judge = judge_of(run)
    head = load_head(judge) if judge else None  # an error now, not after the model was loaded
    require_data(run)
    placement = Placement.over(run.mesh)
    model, chat = with_chat(load(run, placement), run.chat)
    run = run.replace(chat=chat)
    held_out = prepare(run, model, placement, console)
    if told := placement.told(run.config):
        console.print(told)
    trainer = held_out.trainer
    judges = make_judges(run, held_out, head, placement)
    accuracy = judge_accuracy(run, judges, console)
    with open_folder(run.output, settings(run), resume=run.resume, free=run.free):
        processes.on_lead(lambda: require_same_inputs(run, inputs_of(run, held_out)))
        state, done, stopped = train_in_folder(
            run,
            trainer.iterate,
            trainer.init(jax.random.key(run.seed)),
            make_schedule(run),
            evaluate=make_evaluation(run, trainer, judges, held_out.pairs, accuracy),
            shown=WATCHED | (TIMES if run.show_times else {}),
            console=console,
        )
        if stopped is not None:
            return stopped_code(stopped, done, console)
        files = export(run, trainer, state, console) if run.export else {}
        processes.on_lead(lambda: report(run, files, console))
    return 0


def inputs_of(run: Run, held_out: Prepared) -> dict[str, tuple[str, str]]:
    """Where the rows and heads of a run are, and digests of what they hold; problems without an end are settings."""
    data = held_out.data
    prompts = () if isinstance(data.prompts, PromptStream) else data.prompts
    heads = {"reward": run.reward, "judge": judge_of(run)}
    files = {name: Path(head) for name, head in heads.items() if ":" not in head and Path(head).is_file()}
    found = {name: (str(path), digest_of([path.read_bytes()])) for name, path in files.items()}
    return found | {"data": (run.data, digest_of(prompts, data.pairs, held_out.prompts, held_out.pairs))}


def make_schedule(run: Run) -> Schedule:
    """One iteration at a time; `steps` counts completion tokens at their longest."""
    config = run.config
    tokens = config.texts.prompts * config.group_size * config.texts.completion_tokens
    return Schedule(run.iterations, 1, run.iterations, run.save_every, tokens, evaluations=run.evaluations)
