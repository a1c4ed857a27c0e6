"""What a run of `pairgrpo align` is measured by and leaves: evaluations, the summary, pages, the exported model."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pairgrpo_jax.commands.align_settings import Run, judge_of
from pairgrpo_jax.commands.evaluate import Judges, dialogues, figures
from pairgrpo_jax.commands.plots import colour_of
from pairgrpo_jax.commands.run_page import REPLIES, REPORT, scored, write_report
from pairgrpo_jax.commands.runs import DONE, checkpoints_of, open_checkpoints, print_files
from pairgrpo_jax.lm import save_pretrained
from pairgrpo_jax.lm.alignment import EncodedPair, Trainer, merged
from pairgrpo_jax.lm.alignment.evaluation import implicit_margins
from pairgrpo_jax.lm.alignment.laps import PARTS
from pairgrpo_jax.lm.data import preference_accuracy
from pairgrpo_jax.lm.files.peft import save_peft
from pairgrpo_jax.training import TrainState, processes, read_metrics

# On the progress line.
WATCHED = {"score": "score", "reward": "reward", "kl_ref": "KL to the reference", "pair_accuracy": "pair accuracy"}
WATCHED |= {"delta": "delta"}
TIMES = {f"time/{part}": f"time/{part}" for part in (*PARTS, "evaluation")}


def told_accuracy(row: dict) -> list[str]:
    """The judge's accuracy in words."""
    if "head_accuracy" not in row:
        return []
    interval = f"[{row['head_accuracy_low']:.1%}, {row['head_accuracy_high']:.1%}]"
    what = f"of {row['head_pairs']:.0f} labelled pairs rightly, cut to this run's token limits"
    return [f"the judge orders {row['head_accuracy']:.1%} {interval} {what}"]


def make_evaluation(
    run: Run, trainer: Trainer, judges: Judges, pairs: Sequence[EncodedPair], accuracy: dict[str, float]
):
    """`(state, iteration) -> row`: rewards on held-out prompts, win rate over the start, accuracy on held-out pairs.

    `score` is `score_of` what the run has: the mean rewards, the win rate, the accuracy.
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
        others = ["win_rate"] if judges.head is not None else []
        others += ["implicit_accuracy"] if pairs else []
        row["score"] = score_of(row, dict(zip(after.rewards, getattr(judges.source, "weights", (1.0,)))), others)
        replies = dialogues(judges.prompts[: run.shown], before=before[0], after=after)
        processes.on_lead(lambda: keep_replies(run, iteration, row, replies))
        return row | {"time/evaluation": time.perf_counter() - began}

    return evaluate


def score_of(row: dict[str, Any], weights: dict[str, float], others: Sequence[str]) -> float:
    """What the best checkpoint has most of; nan where it could not be measured.

    The mean of the first reward that is wanted, of a weight above 0; where none is, the sum of those that are not. Of a
    run without rewards the first of the `others`.
    """
    means = {name: row.get(f"held_out/{name}", np.nan) for name in weights}
    if wanted := [name for name, weight in weights.items() if weight > 0]:
        return means[wanted[0]]
    if weights:
        return sum(weight * means[name] for name, weight in weights.items())
    return row.get(others[0], np.nan) if others else np.nan


def keep_replies(run: Run, iteration: int, row: dict, replies: list[dict]) -> None:
    """Writes the replies of an evaluation, to be read as they are and for the run's page."""
    (run.output / "replies.md").write_text(page(run, iteration, row, replies), encoding="utf-8")
    kept = {"iteration": iteration, "about": about_replies(run), "replies": replies}
    (run.output / REPLIES).write_text(json.dumps(kept, indent=1), encoding="utf-8")


def about_replies(run: Run) -> str:
    """How the shown replies were made and scored."""
    judge = judge_of(run) or (run.reward if run.gives_rewards else "")
    by = f", and scored by {judge}" if judge else ""
    return f"Replies are sampled, cut at {run.config.texts.completion_tokens} tokens{by}."


def report(run: Run, exported: dict[str, str], console: Console) -> None:
    """Prints the summary and marks the run as finished."""
    rows = read_metrics(run.output)
    last = [row for row in rows if "score" in row][-1]
    files = {"page": REPORT, "metrics": "metrics.jsonl, tensorboard/", "settings": "config.json, versions.json"}
    files |= {"checkpoints": checkpoints_of(run), "replies": f"replies.md, {REPLIES}"}
    files |= exported
    where = shlex.quote(str(run.output))
    after = [f"pairgrpo generate --model {where}"] if run.export else []
    after += [f"tensorboard --logdir {where}"]
    lines = [f"{run.iterations} batches in {last['seconds']:.0f} s", *summary(last)]
    console.print(f"\n[bold]{title(run)}[/bold]: " + "\n".join(lines))
    drawn = {"axis": "batches", "colour": colour_of(run.config.method.name)}
    write_report(run.output, title(run), lines, WATCHED, command=run.command, after=after, **drawn)
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
    base = str(Path(run.model).resolve()) if Path(run.model).exists() else run.model
    processes.on_lead(lambda: save_peft(run.output / "adapter", trainer.model.config, adapters, lora, base=base))
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
    lines += [] if np.isfinite(row["score"]) else [f"no score: {why_unscored(row)}"]
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


def why_unscored(row: dict) -> str:
    """Why an evaluation has no score, in words."""
    if any(key.endswith("/failed") for key in row):
        return "the reward failed for every held-out prompt"
    return "not measured, as nothing scores held-out replies; a head does, named with --judge"


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
    lines.append(about_replies(run))
    for item in replies:
        lines += ["", "---", ""]
        lines += [f"**{message['role']}**: {message['content']}\n" for message in item["prompt"]]
        for side in ("before", "after"):
            text, reward = item[side]
            quoted = "\n".join(f"> {line}" for line in text.strip().splitlines() or [""])
            lines += [scored(side, reward), "", quoted, ""]
    return "\n".join(lines) + "\n"
