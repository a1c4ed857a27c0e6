"""What is there before the first batch: the model, rows to train on and rows held out, who judges samples."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from rich.console import Console

from pairgrpo_jax.commands.align_results import told_accuracy
from pairgrpo_jax.commands.align_settings import Judging, Run, judge_of
from pairgrpo_jax.commands.evaluate import Judges, head_accuracy, tell_other_model
from pairgrpo_jax.commands.judging import make_judge, verdicts_in
from pairgrpo_jax.commands.rewards import gym_of, named_rewards, source_of
from pairgrpo_jax.commands.runs import reading
from pairgrpo_jax.core.comparisons import check_comparisons
from pairgrpo_jax.lm import Model, Policy, load_model
from pairgrpo_jax.lm.alignment import (
    Data,
    EncodedPair,
    EncodedPrompt,
    Placement,
    PromptStream,
    Trainer,
    encode_pairs,
    encode_prompts,
    make_trainer,
)
from pairgrpo_jax.lm.data import (
    Loaded,
    describe,
    has_preferences,
    load_preferences,
    load_prompts,
    split_by_first_turn,
    spread,
    unseen,
)
from pairgrpo_jax.lm.data.gym import PREFIX, Gym
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, fitted_on, load_reward_model
from pairgrpo_jax.lm.rewards.sources import Source, columns_of, head_source, readable
from pairgrpo_jax.training import processes


def require_data(run: Run) -> None:
    """Refuses data whose first row cannot be read, or that is nowhere; ValueError."""
    if not run.data.startswith(PREFIX):  # problems that are made have a package to import
        has_preferences(run.data, split=run.split)


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
    """Held-out prompts and pairs, the rest of the data, who judges samples, and the trainer."""

    prompts: Sequence[EncodedPrompt]
    pairs: Sequence[EncodedPair]
    data: Data
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
        held_out = encode_prompts(model, gym.held_out(evaluated(run)), limits[0])
        console.print(f"{run.data}: endless, {len(held_out)} problems held out")
        data, held_out_pairs = Data(prompts), []
    else:
        data, held_out, held_out_pairs = read_data(run, model, source, console)
    options = {"iterations": run.iterations, "seed": run.seed, "placement": placement}
    return Prepared(held_out, held_out_pairs, data, source, make_trainer(config, model, data, source, **options))


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
    held_out = spread(held_out, evaluated(run))
    tell(run, loaded, rows, (prompts, held_out), "too long", console)
    processes.on_lead(lambda: tell_repeated(run, prompts, pairs))
    return Data(prompts, pairs), held_out, held_out_pairs


def evaluated(run: Run) -> int:
    """How many prompts are held out to evaluate on."""
    return max(run.evaluation_prompts, run.shown) if run.unscored else run.evaluation_prompts


def tell_repeated(run: Run, prompts: Sequence, pairs: Sequence) -> None:
    """Warns of batches that take more rows than there are."""
    many = run.config.texts.prompts
    for what, rows in (("prompts", prompts if run.config.online else ()), ("pairs", pairs)):
        if 0 < len(rows) < many:
            told = f"{len(rows)} {what} to train on, and a batch takes {many} (--prompts): it repeats them"
            print(f"pairgrpo: warning: {run.data}: {told}", file=sys.stderr)


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
    if judging.comparing is None:
        return source_of(named_rewards(run.reward, gym), **policy)
    if not run.config.method.comparisons:
        raise ValueError(f"reward: a judge gives pairs, and {run.label} needs rewards: use soft or hard")
    check_comparisons(judging.comparing.comparisons, run.config.group_size)
    memory = verdicts_in(run.output)
    known = run.resume and memory.path.exists()
    if known:
        memory.open()
    return make_judge(run.reward, judging.comparing, judging.asking, memory=memory, check=not known, **policy)


def reward_model_of(run: Run, model: Model) -> Source | RewardHead:
    """A head on the model that training starts from, shared with the reference; or one with a trunk of its own."""
    tell_other_model(run.model, run.reward)
    try:
        policy, head = load_reward_model(run.reward, model, ignore_fields=run.ignore_fields)
    except ValueError as error:
        if run.reward != Judging.reward:
            raise
        raise ValueError(f"{error} (the head is {run.reward}, which is the default of --reward)") from error
    if policy.lora is None and policy.model is model:
        return head
    texts = run.config.texts
    limits = {"prompt_tokens": texts.prompt_tokens, "reply_tokens": texts.completion_tokens}
    return head_source(policy, head, **limits)


def make_judges(run: Run, held_out: Prepared, head: RewardHead | None, placement: Placement) -> Judges:
    """The rewards and the held-out `head`, on the model that training starts from. They hear samples that are not cut.

    Where nobody judges, only the replies that are shown are made.
    """
    config, model = run.config, held_out.trainer.model
    if head is not None:
        tell_other_model(run.model, judge_of(run))
    return Judges(
        Policy(model, model.params),
        head,
        held_out.prompts[: run.shown] if run.unscored else held_out.prompts,
        prompt_tokens=config.texts.prompt_tokens,
        completion_tokens=config.texts.completion_tokens,
        sampling=config.scored if run.evaluation_temperature is None else Sampling(run.evaluation_temperature),
        source=held_out.source,
        source_name=run.reward,
        samples=1 if run.unscored else run.evaluation_samples,
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
