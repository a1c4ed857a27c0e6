"""Which of two models do held-out judges prefer? `pairgrpo evaluate --a runs/align`.

Both answer the same held-out prompts; a reward head that neither was trained on says whose reply is better. This is a
*held-out proxy-RM win rate*, not a human judgement. By default both draw with the same random keys: models that are
alike then write equal replies, which tie, and the rate varies less; `--independent` draws each side on its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.console import Console

from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.core.bounds import AtLeast, Settings
from pairgrpo_jax.core.statistics import length_controlled_interval, length_controlled_rate, mean_interval
from pairgrpo_jax.lm import Policy, Sampling, load_model
from pairgrpo_jax.lm.alignment import EncodedPair, EncodedPrompt, encode_pairs, encode_prompts
from pairgrpo_jax.lm.alignment.evaluation import (
    Judged,
    Replies,
    implicit_margins,
    judge_replies,
    write_replies,
)
from pairgrpo_jax.lm.data import (
    Columns,
    has_preferences,
    load_preferences,
    load_prompts,
    preference_accuracy,
    ranked_right,
    split_by_first_turn,
    spread,
    unseen,
)
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, about_head, check_head, fitted_on, load_head
from pairgrpo_jax.lm.rewards.reward_training import pair_features


@dataclass(frozen=True)
class Evaluation(Settings):
    """What to compare, and who judges."""

    a: str = ""
    """The model in question: a folder, a run of pairgrpo align, a .gguf file, a hub id, or smollm2."""
    b: str = "smollm2"
    """Its rival."""
    reference: str = "smollm2"
    """The model that KL is measured to, and whose trunk the judge's head sits on."""
    ignore_fields: tuple[str, ...] = ()
    """Fields of the models' configs to load without, that are not implemented here."""
    end_of_turn: str | None = None
    """The token that ends a reply, if not what the chat template writes after one."""
    judge: str = "harmless-b"
    """Reward head, one that neither model was trained on."""
    data: str = "tiny"
    """Prompts or preferences; see pairgrpo align."""
    split: str = "train"
    """Split of the data; with --fold -1 a test split as a whole."""
    prompt_column: str | None = None
    """Column that holds the prompt, where it is not called prompt."""
    system: str | None = None
    """A system message, put before prompts that have none."""
    fold: int = 0
    """Fifth of the data, split by first turn, that is evaluated on; -1: all. Without what the judge was fitted on."""
    prompts: Annotated[int, AtLeast(1)] = 64
    """How many prompts."""
    samples: Annotated[int, AtLeast(1)] = 4
    """Replies to each."""
    prompt_tokens: Annotated[int, AtLeast(1)] = 64
    """Longest prompt, tokens."""
    completion_tokens: Annotated[int, AtLeast(1)] = 32
    """Longest reply, tokens."""
    temperature: float = 1.0
    """Of sampling."""
    seed: int = 0
    """Of the replies."""
    independent: bool = False
    """Draw b's replies with random keys of their own, not a's: no ties of equal replies, and a wider interval."""
    output: Path | None = None
    """A .json file for the figures and both sides' replies."""


Heard = tuple[Replies, Judged | None]  # what a policy said, and the verdict, if there is a head


class Judges:
    """Prompts, the reference and a head, and what they say of a policy's replies."""

    def __init__(
        self, reference, head, prompts, *, prompt_tokens, completion_tokens, sampling, samples=4, seed=0, rows=None
    ):
        """Takes N encoded prompts, a reward head or None, the limits of replies, and how a mesh splits prompts.

        Raises ValueError for a head that was made on another model than the reference.
        """
        if head is not None:
            check_head(head, reference.model.config)
        self.reference, self.head, self.prompts, self.samples = reference, head, prompts, samples
        self.prompt_tokens, self.completion_tokens, self.sampling = prompt_tokens, completion_tokens, sampling
        self.key, self.rows = jax.random.key(seed), rows

    def hear(self, policy: Policy, *, independent: bool = False) -> Heard:
        """The policy's replies and the head's verdict on them, None without a head.

        All that it hears draw with the same keys, but for who draws independently, with other ones.
        """
        key = jax.random.fold_in(self.key, 1) if independent else self.key
        limits = {"completion_tokens": self.completion_tokens, "samples": self.samples}
        replies = write_replies(policy, self.prompts, key=key, sampling=self.sampling, rows=self.rows, **limits)
        if self.head is None:
            return replies, None
        judged = judge_replies(
            self.reference,
            self.head,
            self.prompts,
            replies,
            prompt_tokens=self.prompt_tokens,
            sampling=self.sampling,
            rows=self.rows,
        )
        return replies, judged


def wins(a: Judged, b: Judged) -> np.ndarray:
    """`[N,S]`: 1 where a's reply has the higher reward, 0 where b's, 0.5 where they are equal."""
    return np.where(a.rewards == b.rewards, 0.5, (a.rewards > b.rewards).astype(float))


def figures(a: Heard, b: Heard) -> dict[str, Any]:
    """Win rate of a over b at any and at equal length, with 95% intervals; ties, lengths (tokens), rewards, KL (nats).

    `wins` are those of each prompt, to pool over runs.
    """
    (said, judged), (rival_said, rival_judged) = a, b
    if judged is None or rival_judged is None:
        raise ValueError("judge: a win rate needs a reward head")
    won, longer = wins(judged, rival_judged), said.lengths - rival_said.lengths
    low, high = mean_interval(won.mean(-1))
    equal_low, equal_high = length_controlled_interval(won, longer)
    return {
        "wins": won.mean(-1).tolist(),
        "win_rate": float(won.mean()),
        "win_rate_low": low,
        "win_rate_high": high,
        "ties": float(np.mean(won == 0.5)),
        "win_rate_length_controlled": length_controlled_rate(won, longer),
        "win_rate_length_controlled_low": equal_low,
        "win_rate_length_controlled_high": equal_high,
        "reward_held_out": float(judged.rewards.mean()),
        "reward_held_out_rival": float(rival_judged.rewards.mean()),
        "reply_tokens": float(said.lengths.mean()),
        "reply_tokens_rival": float(rival_said.lengths.mean()),
        "reply_truncated": float(1 - said.ended.mean()),
        "kl_reference": float(np.mean(said.logp - judged.ref_logp)),
    }


def head_accuracy(reference: Policy, head: RewardHead, pairs: Sequence[EncodedPair]) -> dict[str, float]:
    """The share of labelled pairs, cut to some limits, that the judge orders rightly, and its interval; {} of none."""
    if not pairs:
        return {}
    both = pair_features(reference, pairs, head.features) @ np.asarray(head.weight)
    right = ranked_right(both[:, 0] - both[:, 1])
    low, high = mean_interval(right)
    found = {"head_accuracy": float(right.mean()), "head_accuracy_low": low, "head_accuracy_high": high}
    return found | {"head_pairs": len(pairs)}


def fold_of_rows(rows: list, args: Evaluation) -> list:
    """The rows of the fold by first turn (of all for fold -1) that the judge was not fitted on."""
    rows = unseen(rows, fitted_on(args.judge, args.data))
    return rows if args.fold < 0 else split_by_first_turn(rows, fold=args.fold)[1]


def source_of(args: Evaluation) -> dict[str, Any]:
    """How the data is read."""
    return {"split": args.split, "prompt_column": args.prompt_column, "system": args.system}


def labelled(policy: Policy, args: Evaluation) -> list[EncodedPair]:
    """Labelled pairs of the fold, cut to the limits; none for data of prompts alone."""
    if not has_preferences(args.data, split=args.split):
        return []
    rows = fold_of_rows(load_preferences(args.data, **source_of(args)).rows, args)
    return spread(encode_pairs(policy.model, rows, args.prompt_tokens, args.completion_tokens), args.prompts)


def pair_accuracy(policy: Policy, reference: Policy, args: Evaluation) -> dict[str, float]:
    """Implicit-reward accuracy on labelled pairs of the fold, with its interval; nothing for data of prompts alone."""
    pairs = labelled(policy, args)
    if not pairs:
        return {}
    limits = args.prompt_tokens, args.completion_tokens
    margins = implicit_margins(policy, reference, pairs, prompt_tokens=limits[0], completion_tokens=limits[1])
    low, high = mean_interval(ranked_right(margins))
    accuracy = preference_accuracy(margins)
    return {"implicit_accuracy": accuracy, "implicit_accuracy_low": low, "implicit_accuracy_high": high}


def tell_other_model(model: str, head: str) -> None:
    """Warns of a reward head that was made on another model than this one."""
    made_on = about_head(head).get("model", model)
    if made_on != model:
        print(f"warning: {head} was made on {made_on}; is {model} the same model?", file=sys.stderr)


def resolve(name: str) -> str:
    """A run of pairgrpo align stands for the model it exported."""
    folder = Path(name)
    if (folder / "versions.json").exists() and not (folder / "model" / "config.json").exists():
        raise ValueError(f"{name}: this run has exported no model; finish it, without --no-export")
    return str(folder / "model") if (folder / "model" / "config.json").exists() else name


def as_policy(name: str, **options: Any) -> Policy:
    """Loads a model as a policy, with options of `load_model`."""
    model = load_model(resolve(name), **options)
    if model.tokenizer is None:
        raise ValueError(f"{name}: no tokenizer, so no prompt can be encoded")
    return Policy(model, model.params)


def dialogues(prompts: Sequence[EncodedPrompt], **sides: Heard) -> list[dict]:
    """Each prompt's messages, and each side's first reply with its reward (None without a verdict)."""
    return [
        {"prompt": prompt.messages}
        | {name: (said.texts[i][0], None if j is None else float(j.rewards[i, 0])) for name, (said, j) in sides.items()}
        for i, prompt in enumerate(prompts)
    ]


def main(words: Sequence[str]) -> None:
    """Compares and prints."""
    args = parse(Evaluation(), words, "pairgrpo evaluate", __doc__)
    if not args.a:
        raise ValueError("a: name the model in question, such as --a runs/align")
    tell_other_model(args.reference, args.judge)
    options = {"ignore_fields": args.ignore_fields, "end_of_turn": args.end_of_turn}
    reference, head = as_policy(args.reference, **options), load_head(args.judge)
    a, b = (reference if name == args.reference else as_policy(name, **options) for name in (args.a, args.b))
    for name, other in (("a", a), ("b", b)):
        sizes = other.model.config.vocab_size, reference.model.config.vocab_size
        if sizes[0] != sizes[1] or other.model.tokenizer.get_vocab() != reference.model.tokenizer.get_vocab():
            raise ValueError(f"{name}: a, b and reference must share a vocabulary; sizes are {sizes[0]} and {sizes[1]}")
    prompts = fold_of_rows(load_prompts(args.data, columns=Columns(), **source_of(args)).rows, args)
    prompts = spread(encode_prompts(reference.model, prompts, args.prompt_tokens), args.prompts)
    judges = Judges(
        reference,
        head,
        prompts,
        prompt_tokens=args.prompt_tokens,
        completion_tokens=args.completion_tokens,
        sampling=Sampling(args.temperature),
        samples=args.samples,
        seed=args.seed,
    )
    heard = judges.hear(a), judges.hear(b, independent=args.independent)
    row = figures(*heard) | pair_accuracy(a, reference, args) | {"prompts": len(prompts)}
    row |= head_accuracy(reference, head, labelled(reference, args))
    Console().print_json(json.dumps({name: value for name, value in row.items() if name != "wins"}))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        replies = dialogues(prompts, a=heard[0], b=heard[1])
        args.output.write_text(json.dumps({"figures": row, "replies": replies}, indent=2))
