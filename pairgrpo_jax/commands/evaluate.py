"""Which of two models do held-out judges prefer? `pairgrpo evaluate --a runs/align`.

Both answer the same held-out prompts; a reward head that neither was trained on says whose reply is better. This is a
*held-out proxy-RM win rate*, not a human judgement. By default both draw with the same random keys: models that are
alike then write equal replies, which tie, and the rate varies less; `--independent` draws each side on its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from pairgrpo_jax.commands.align_settings import other_half, same_head
from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.commands.exported import chat_of, exported, method_of, run_of, settings_of, started_from
from pairgrpo_jax.commands.rewards import gym_of, named_rewards, require_files, source_of
from pairgrpo_jax.commands.runs import reading, require_mesh
from pairgrpo_jax.core.bounds import AtLeast, Seed, Settings
from pairgrpo_jax.core.statistics import length_controlled_interval, length_controlled_rate, mean_interval, pass_at_k
from pairgrpo_jax.lm import Model, Policy, Sampling, load_model
from pairgrpo_jax.lm.alignment import EncodedPair, EncodedPrompt, Placement, encode_pairs, encode_prompts
from pairgrpo_jax.lm.alignment.evaluation import (
    Judged,
    Replies,
    implicit_margins,
    judge_replies,
    write_replies,
)
from pairgrpo_jax.lm.data import (
    has_preferences,
    load_preferences,
    load_prompts,
    preference_accuracy,
    ranked_right,
    split_by_first_turn,
    spread,
    unseen,
)
from pairgrpo_jax.lm.data.gym import Gym
from pairgrpo_jax.lm.files.tokenizer import with_chat
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.models.config import check_limits
from pairgrpo_jax.lm.rewards.reward_model import SHIPPED, RewardHead, about_head, check_head, fitted_on, load_head
from pairgrpo_jax.lm.rewards.reward_training import pair_features
from pairgrpo_jax.lm.rewards.shares import by_share
from pairgrpo_jax.lm.rewards.sources import SourceError, columns_of, compares, judged
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.console import LineConsole
from pairgrpo_jax.training.run import without_nan


@dataclass(frozen=True)
class Evaluation(Settings):
    """What to compare, and who judges."""

    a: str = ""
    """The model in question: a folder, a run of pairgrpo align, a .gguf file, a hub id, or smollm2."""
    b: str | None = None
    """Its rival; by default the model that the run `a` started from, or smollm2."""
    reference: str | None = None
    """The model that KL is measured to, and whose trunk the judge's head sits on; by default as for `b`."""
    ignore_fields: tuple[str, ...] = ()
    """Fields of the models' configs to load without, that are not implemented here."""
    end_of_turn: str | None = None
    """The token that ends a reply, if not what the chat template writes after one."""
    judge: str | None = None
    """Reward head, one that neither model was trained on, for a win rate; by default, unless a reward is named, the
    other half of the head that a run learned from (see pairgrpo align), or else harmless-b."""
    reward: str = ""
    """Rewards to measure on held-out prompts, as verify:math or module:function; see pairgrpo align."""
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
    seed: Seed = 0
    """Of the replies."""
    independent: bool = False
    """Draw b's replies with random keys of their own, not a's: no ties of equal replies, and a wider interval."""
    output: Path | None = None
    """A .json file for the figures and both sides' replies."""
    mesh: Literal["none", "data", "fsdp"] = "none"
    """Use all devices: parameters replicated (data) or fully sharded (fsdp)."""
    chat: Chat = field(default_factory=Chat)

    def __post_init__(self):
        super().__post_init__()
        require_files(self, self.data, "split", "prompt_column", "fold")
        if self.reward and (self.reward.startswith("judge:") or ":" not in self.reward):
            heads = "a reward head goes to --judge, and `pairgrpo judge` measures judges"
            raise ValueError(f"reward: expected verify:NAME or module:function, got {self.reward!r}; {heads}")
        if self.output is not None and self.output.is_dir():
            raise ValueError(f"output: {self.output} is a folder; name a .json file")


class Heard(NamedTuple):
    """What a policy said to N prompts, and what is said of it.

    Attributes:
      said: its replies, S to each prompt.
      judged: by the reference and the held-out head.
      rewards: `[N,S]` of each reward by its name, not finite where one has failed.
    """

    said: Replies
    judged: Judged
    rewards: dict[str, np.ndarray]


class Judges:
    """Prompts, the reference, a held-out head and rewards, and what they say of a policy's replies."""

    def __init__(
        self,
        reference,
        head,
        prompts,
        *,
        prompt_tokens,
        completion_tokens,
        sampling,
        source=None,
        source_name="reward",
        samples=4,
        seed=0,
        rows=None,
    ):
        """Takes N encoded prompts, a reward head or None, the limits of replies, and how a mesh splits prompts.

        `source` judges too: what training is rewarded by, a reward head (called `source_name`) or functions.
        Raises ValueError for a head that was made on another model than the reference.
        """
        for one in (head, source):
            if isinstance(one, RewardHead):
                check_head(one, reference.model.config)
        self.reference, self.head, self.prompts, self.samples = reference, head, prompts, samples
        self.prompt_tokens, self.completion_tokens, self.sampling = prompt_tokens, completion_tokens, sampling
        self.source, self.source_name = source, source_name
        self.columns = columns_of(source).shared(prompt.columns for prompt in prompts)
        self.key, self.rows = jax.random.key(seed), rows

    def hear(self, policy: Policy, *, independent: bool = False) -> Heard:
        """The policy's replies and what is said of them.

        All that it hears draw with the same keys, but for who draws independently, with other ones.
        """
        key = jax.random.fold_in(self.key, 1) if independent else self.key
        limits = {"completion_tokens": self.completion_tokens, "samples": self.samples}
        replies = write_replies(policy, self.prompts, key=key, sampling=self.sampling, rows=self.rows, **limits)
        return Heard(replies, self._judged(self.head, replies), self._rewards(replies))

    def _judged(self, head: RewardHead | None, replies: Replies) -> Judged:
        limits = {"prompt_tokens": self.prompt_tokens, "sampling": self.sampling, "rows": self.rows}
        return judge_replies(self.reference, head, self.prompts, replies, **limits)

    def _rewards(self, replies: Replies) -> dict[str, np.ndarray]:
        if isinstance(self.source, RewardHead):
            rewards = self._judged(self.source, replies).rewards
            return {self.source_name: rewards} if rewards is not None else {}
        if self.source is None or compares(self.source):
            return {}

        def judge(mine: slice):
            prompts = self.prompts[mine]
            columns = {name: [prompt.columns[name] for prompt in prompts] for name in self.columns}
            return judged(self.source, [prompt.messages for prompt in prompts], replies.texts[mine], **columns)

        try:
            return by_share(len(self.prompts), judge)[1]
        except SourceError as error:
            raise type(error)(f"held-out prompts: {error}") from error


def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N,S]`: 1 where a's reply has the higher reward, 0 where b's, 0.5 where they are equal."""
    return np.where(a == b, 0.5, (a > b).astype(float))


def figures(a: Heard, b: Heard) -> dict[str, Any]:
    """Everything that is said of a's replies, and the win rate over b's, where a head judges."""
    row = reward_figures(a, b) | {
        "reply_tokens": float(a.said.lengths.mean()),
        "reply_tokens_rival": float(b.said.lengths.mean()),
        "reply_truncated": float(1 - a.said.ended.mean()),
        "kl_reference": float(np.mean(a.said.logp - a.judged.ref_logp)),
    }
    return row if a.judged.rewards is None else win_figures(a, b) | row


def win_figures(a: Heard, b: Heard) -> dict[str, Any]:
    """Win rate of a over b under the held-out head at any and at equal length, with 95% intervals.

    `wins` are those of each prompt, to pool over runs.
    """
    assert a.judged.rewards is not None and b.judged.rewards is not None
    won, longer = wins(a.judged.rewards, b.judged.rewards), a.said.lengths - b.said.lengths
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
        "reward_held_out": float(a.judged.rewards.mean()),
        "reward_held_out_rival": float(b.judged.rewards.mean()),
    }


def reward_figures(a: Heard, b: Heard) -> dict[str, Any]:
    """Of each reward: `held_out/NAME`, its mean over a's replies with its 95% interval over prompts, and over b's.

    Prompts whose reward has failed on either side are left out of both, counted, and nan in `each`, which has a place
    for every prompt. Where all rewards are 0 or 1: pass@k for powers of two.
    """
    row: dict[str, Any] = {}
    for name, values in a.rewards.items():
        usable = (np.isfinite(values) & np.isfinite(b.rewards[name])).all(-1)
        kept, rival = values[usable], b.rewards[name][usable]
        row[f"held_out/{name}/failed"] = len(values) - len(kept)
        if not len(kept):
            continue
        low, high = mean_interval(kept.mean(-1))
        row |= {f"held_out/{name}": float(kept.mean()), f"held_out/{name}/low": low, f"held_out/{name}/high": high}
        row[f"held_out/{name}/rival"] = float(rival.mean())
        each = np.full(len(values), np.nan)
        each[usable] = kept.mean(-1)
        row[f"held_out/{name}/each"] = each.tolist()
        if np.isin(kept, (0, 1)).all() and np.isin(rival, (0, 1)).all():
            ks = [2**i for i in range(kept.shape[1].bit_length())]
            row |= {f"held_out/{name}/pass@{k}": float(pass_at_k(kept, k).mean()) for k in ks}
    return row


def head_accuracy(
    reference: Policy, head: RewardHead, pairs: Sequence[EncodedPair], rows: NamedSharding | None = None
) -> dict[str, float]:
    """The share of labelled pairs, cut to some limits, that the judge orders rightly, and its interval; {} of none."""
    if not pairs:
        return {}
    both = pair_features(reference, pairs, head.features, rows=rows) @ np.asarray(head.weight)
    right = ranked_right(both[:, 0] - both[:, 1])
    low, high = mean_interval(right)
    found = {"head_accuracy": float(right.mean()), "head_accuracy_low": low, "head_accuracy_high": high}
    return found | {"head_pairs": len(pairs)}


def fold_of_rows(rows: list, args: Evaluation) -> list:
    """The rows of the fold by first turn (of all for fold -1) that the judge was not fitted on."""
    head = held_out_head(args)
    rows = unseen(rows, fitted_on(head, args.data) if head else None)
    return rows if args.fold < 0 else split_by_first_turn(rows, fold=args.fold)[1]


def held_out_head(args: Evaluation) -> str:
    """The held-out head, by default as in training; empty for none. ValueError for one that a or b learned from."""
    learned = {name: head for name in (args.a, args.b) if name and (head := learned_from(name))}
    judge = args.judge
    if judge is None:
        judge = "" if args.reward else other_half(next(iter(learned.values()))) if learned else "harmless-b"
    for name, head in learned.items():
        if same_head(judge, head):
            remedy = "name with --judge a head that neither model learned from, as that of the other half of its data"
            raise ValueError(f"judge: {judge} is the reward of {name}, and nothing would be held out; {remedy}")
    return judge


def learned_from(name: str) -> str:
    """The reward head of the run that `name` is, a file as seen from where the run began; empty for none."""
    kept = settings_of(name)
    reward = (kept.get("judging") or {}).get("reward", "")
    if ":" in reward or not reward:
        return ""
    began = Path(str(run_of(name)).removesuffix(f"{os.sep}{Path(kept.get('output', ''))}"))
    return str(began / reward) if reward not in SHIPPED and (began / reward).is_file() else reward


def supervised(name: str) -> bool:
    """Whether the run that `name` is ranks pairs against a reference that it trained itself, and has not exported."""
    method = method_of(name)
    return method is not None and not method.ranks_alone and settings_of(name)["config"].get("sft_iterations", 0) > 0


def labelled(model: Model, args: Evaluation) -> list[EncodedPair]:
    """Labelled pairs of the fold, cut to the limits; none for data of prompts alone."""
    if not has_preferences(args.data, split=args.split):
        return []
    rows = fold_of_rows(load_preferences(args.data, **reading(args)).rows, args)
    return spread(encode_pairs(model, rows, args.prompt_tokens, args.completion_tokens), args.prompts)


def pair_accuracy(
    policy: Policy, reference: Policy, pairs: Sequence[EncodedPair], args: Evaluation, rows: NamedSharding | None
) -> dict[str, float]:
    """Accuracy of a's implicit reward (its method's, if it is a run) on labelled pairs, with its interval; or {}."""
    if not pairs:
        return {}
    if supervised(args.a):
        told = f"{args.a} ranks pairs against what its sft_iterations gave, which is not exported: no implicit_accuracy"
        processes.on_lead(lambda: print(f"pairgrpo: warning: {told}", file=sys.stderr))
        return {}
    limits: dict[str, Any] = {"prompt_tokens": args.prompt_tokens, "completion_tokens": args.completion_tokens}
    margins = implicit_margins(policy, reference, pairs, rows=rows, method=method_of(args.a), **limits)
    low, high = mean_interval(ranked_right(margins))
    accuracy = preference_accuracy(margins)
    return {"implicit_accuracy": accuracy, "implicit_accuracy_low": low, "implicit_accuracy_high": high}


def tell_other_model(model: str, head: str) -> None:
    """Warns of a reward head that was made on another model than this one."""
    made_on = about_head(head).get("model", model)
    if made_on != model:
        print(f"pairgrpo: warning: {head} was made on {made_on}; is {model} the same model?", file=sys.stderr)


def tell_fewer(found: int, args: Evaluation) -> None:
    """Warns of fewer prompts than were asked for."""
    if found < args.prompts:
        more = "" if args.fold < 0 else "; with --fold -1 those of training count too"
        told = f"pairgrpo: warning: {found} prompts are held out, and --prompts asks for {args.prompts}{more}"
        print(told, file=sys.stderr)


def as_policy(name: str, chat: Chat, placement: Placement, **options: Any) -> Policy:
    """Loads a model as a policy, in its place, with options of `load_model`."""
    model = placement.model(load_model(exported(name), shardings=placement.shardings, **options))
    if model.tokenizer is None:
        raise ValueError(f"{name}: no tokenizer, so no prompt can be encoded")
    model, _ = with_chat(model, chat)
    return Policy(model, model.params)


def require_alike(
    name: str, model: Model, reference: Model, prompts: Sequence[EncodedPrompt], limit: int, told: str
) -> None:
    """Refuses a model that has another vocabulary than the reference, or reads its prompts in another format."""
    sizes = model.config.vocab_size, reference.config.vocab_size
    if sizes[0] != sizes[1] or model.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        told = f"sizes are {sizes[0]} and {sizes[1]} ({told})"
        raise ValueError(f"{name}: a, b and reference must share a vocabulary; {told}")
    own = []
    with contextlib.suppress(ValueError):  # none fits
        own = encode_prompts(model, [prompt.messages for prompt in prompts], limit)
    if [prompt.ids for prompt in own] != [prompt.ids for prompt in prompts]:
        what = f"its chat template or tokenizer makes other prompts than the reference's ({told})"
        raise ValueError(f"{name}: {what}; name with --b and --reference models of the chat template of --a")


def dialogues(prompts: Sequence[EncodedPrompt], **sides: Heard) -> list[dict]:
    """Each prompt's messages, and each side's first reply with its reward: the held-out head's, else the first one.

    The reward is None where there is none.
    """

    def reward(side: Heard, i: int) -> float | None:
        found = side.judged.rewards if side.judged.rewards is not None else next(iter(side.rewards.values()), None)
        return None if found is None else float(found[i, 0])

    return [
        {"prompt": prompt.messages} | {name: (side.said.texts[i][0], reward(side, i)) for name, side in sides.items()}
        for i, prompt in enumerate(prompts)
    ]


def held_out_prompts(model: Model, args: Evaluation, gym: Gym | None, source: Any) -> list[EncodedPrompt]:
    """The prompts to evaluate on: problems that no training meets, or some of the fold."""
    if gym is not None:
        return encode_prompts(model, gym.held_out(args.prompts), args.prompt_tokens)
    rows = load_prompts(args.data, columns=columns_of(source), **reading(args)).rows
    return spread(encode_prompts(model, fold_of_rows(rows, args), args.prompt_tokens), args.prompts)


def main(words: Sequence[str]) -> None:
    """Compares and prints."""
    args = parse(Evaluation(), words, "pairgrpo evaluate", __doc__)
    require_mesh(args)
    placement = Placement.over(args.mesh)
    if not args.a:
        raise ValueError("a: name the model in question, such as --a runs/align")
    started = started_from(args.a)
    rival, start = args.b or started, args.reference or started
    gym, name = gym_of(args.data, args.system), held_out_head(args)
    source = source_of(named_rewards(args.reward, gym), on_error="skip") if args.reward else None
    if not name and source is None:
        raise ValueError("judge: nobody is left to judge; name a --judge or a --reward")
    if name:
        processes.on_lead(lambda: tell_other_model(start, name))
    if name and args.judge is None:
        processes.on_lead(lambda: print(f"pairgrpo: {name} judges (--judge)", file=sys.stderr))
    options = {"ignore_fields": args.ignore_fields, "end_of_turn": args.end_of_turn}
    chat, head = chat_of(args.a, args.chat), load_head(name) if name else None
    load = functools.partial(as_policy, chat=chat, placement=placement, **options)
    reference = load(start)
    a, b = (reference if name == start else load(name) for name in (args.a, rival))
    for one in (reference, a, b):
        check_limits(one.model.config, args.prompt_tokens, args.completion_tokens)
    prompts = held_out_prompts(reference.model, args, gym, source)
    for side, other in (("a", a), ("b", b)):
        if other is not reference:
            told = f"--b {rival} --reference {start}"
            require_alike(side, other.model, reference.model, prompts, args.prompt_tokens, told)
    processes.on_lead(lambda: tell_fewer(len(prompts), args))
    pairs = [] if gym else labelled(reference.model, args)
    judges = Judges(
        reference,
        head,
        prompts,
        source=source,
        prompt_tokens=args.prompt_tokens,
        completion_tokens=args.completion_tokens,
        sampling=Sampling(args.temperature),
        samples=args.samples,
        seed=args.seed,
        rows=placement.rows,
    )
    heard = judges.hear(a), judges.hear(b, independent=args.independent)
    row = figures(*heard) | {"prompts": len(prompts)}
    row |= pair_accuracy(a, reference, pairs, args, placement.rows)
    row |= {} if head is None else head_accuracy(reference, head, pairs, placement.rows)
    processes.on_lead(lambda: tell(args.output, row, dialogues(prompts, a=heard[0], b=heard[1])))


def tell(output: Path | None, row: dict[str, Any], replies: list[dict]) -> None:
    """Prints the figures, and writes them with the replies."""
    row = without_nan(row)
    LineConsole().print_json(json.dumps({name: x for name, x in row.items() if not isinstance(x, list)}))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"figures": row, "replies": replies}, indent=2))
