"""Where preferences come from: one interface, prompts and completions in, rewards or pairs out."""

import asyncio
import dataclasses
import functools
import inspect
import logging
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core.comparisons import Comparisons, both_orders, check_comparisons, make_plan, no_comparisons
from pairgrpo_jax.core.pairs import Pairs, chosen_rejected_pairs
from pairgrpo_jax.lm.data import Columns, Prompt, asked_by, encode_prompt, encode_reply, pad_texts
from pairgrpo_jax.lm.models.scoring import Policy as LanguageModel
from pairgrpo_jax.lm.rewards.asking import Asker, JudgeError, Manner, Memory, Question, digest, in_thread, run
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, reward
from pairgrpo_jax.training import processes

_log = logging.getLogger("pairgrpo_jax.lm")


class Judgement(NamedTuple):
    """What a source says of K completions of each of B prompts: rewards or pairs.

    Attributes:
      rewards: `[B, K]`, or None; all 0 in a failed group, so that it makes no pair.
      pairs: `Pairs` `[B, P]`, or None; of weight 0 in a failed group.
      failed: `[B]` bool, groups without a usable verdict.
      metrics: figures of the source's own, for the log.
    """

    rewards: np.ndarray | None
    pairs: Pairs | None
    failed: np.ndarray
    metrics: Mapping[str, float] = MappingProxyType({})


class Source(Protocol):
    """Anything that judges completions; one with an attribute `columns` is given those too, lists of B values."""

    def __call__(self, prompts: list[Prompt], completions: list[list[str]]) -> Judgement:
        """Judges K completions of each of B prompts."""
        ...


def columns_of(source: Any) -> Columns:
    """The columns that a source asks for."""
    return getattr(source, "columns", Columns())


class SourceError(RuntimeError):
    """A user's function failed, after all retries, and the policy is to raise."""


@dataclasses.dataclass(frozen=True)
class ErrorPolicy:
    """What to do about a user's function that fails.

    Attributes:
      timeout: seconds that one call may take; None waits for ever. A call that overruns is abandoned: its thread
        lives on, as Python cannot end it.
      retries: more tries after a failure.
      on_error: "raise" SourceError, or "skip" the groups concerned and count them.
    """

    timeout: float | None = None
    retries: int = 0
    on_error: str = "raise"

    def __post_init__(self):
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout must be positive or None, got {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"retries must be >= 0, got {self.retries}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={self.on_error!r} is unknown; choose "raise" or "skip"')


def reward_function(
    functions: Callable | Sequence[Callable],
    weights: Sequence[float] | None = None,
    *,
    names: Sequence[str] | None = None,
    timeout: float | None = None,
    retries: int = 0,
    on_error: str = "raise",
) -> Source:
    """Makes a source of one or several user functions, whose rewards are summed with weights.

    A function takes `(prompts, completions)`, a list of B prompts (tuples of messages) and B lists of K texts, and
    returns B lists of K numbers, or one flat list of B K. It may be async. Its other parameters are columns of the
    data, lists of B values: `answer` is required, `answer=None` is passed where the data has one, `**columns` are all.
    A function that raises, overruns, or returns another number of values fails for the batch; nan, infinity or None
    fails for the group that has it.

    Args:
      functions: one or several.
      weights: one for each function; 1 by default.
      names: that they are logged by; their own by default.
      timeout: see `ErrorPolicy`, as the next two.
      retries: more tries after a failure.
      on_error: "raise" or "skip".

    Raises:
      ValueError: for no function, or weights that do not fit.
    """
    functions = [functions] if callable(functions) else list(functions)
    weights = [1.0] * len(functions) if weights is None else [float(w) for w in weights]
    if not functions or not all(map(callable, functions)):
        raise ValueError("functions: expected a callable, or a list of at least one")
    if len(weights) != len(functions) or not all(map(math.isfinite, weights)):
        raise ValueError(f"weights: expected {len(functions)} finite numbers, one for each function, got {weights}")
    names = [_name(f) for f in functions] if names is None else list(names)
    if len(names) != len(functions):
        raise ValueError(f"names: expected {len(functions)}, one for each function, got {names}")
    names = [name if name not in names[:i] else f"{name}.{i}" for i, name in enumerate(names)]
    return _Rewards(tuple(functions), tuple(weights), tuple(names), ErrorPolicy(timeout, retries, on_error))


@dataclasses.dataclass(frozen=True)
class _Rewards:
    """The source of `reward_function`."""

    functions: tuple[Callable, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    policy: ErrorPolicy

    @property
    def columns(self) -> Columns:
        """What any of the functions asks for."""
        return functools.reduce(operator.or_, (asked_by(f, 2) for f in self.functions))

    def each(self, prompts: list[Prompt], completions: list[list[str]], **columns: list) -> dict[str, np.ndarray]:
        """Each function's rewards by its name, `[B, K]`, without weights; not finite where it has failed."""
        shape, out = _group_shape(prompts, completions), {}
        for function, name in zip(self.functions, self.names):
            given = functools.partial(function, **_given(function, 2, columns))
            out[name] = _rewards_of(given, prompts, completions, shape, self.policy)
        return out

    def total(self, each: dict[str, np.ndarray]) -> Judgement:
        """The weighted sum; a group without all its rewards has failed."""
        failed = np.asarray(~np.isfinite(np.stack(list(each.values()))).all((0, 2)))
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.einsum("n,nbk->bk", self.weights, list(each.values())).astype(np.float32)
        beyond = ~np.isfinite(total).all(-1) & ~failed
        if beyond.any():
            problem = f"rewards beyond float32 in groups {np.flatnonzero(beyond).tolist()[:8]} of {len(failed)}"
            _give_up(self.functions[0], problem, None, self.policy)
        failed |= beyond
        return Judgement(np.where(failed[:, None], 0, total), None, failed)

    def __call__(self, prompts: list[Prompt], completions: list[list[str]], **columns: list) -> Judgement:
        """Judges K completions of each of B prompts."""
        return self.total(self.each(prompts, completions, **columns))


def judged(source: Any, prompts: list, completions: list[list[str]], **columns: list):
    """A source's `Judgement`, and the rewards that it is made of by their names: `[B, K]`, nan where one has failed."""
    if isinstance(source, _Rewards):
        each = source.each(prompts, completions, **columns)
        return source.total(each), each
    judgement = source(prompts, completions, **columns)
    if judgement.rewards is None:
        return judgement, {}
    return judgement, {"reward": np.where(judgement.failed[:, None], np.nan, judgement.rewards)}


def readable(source: Any, columns: Mapping[str, Any]) -> bool:
    """Whether all functions of a source that say so (`function.readable(columns)`) can read a row's true answer."""
    functions = source.functions if isinstance(source, _Rewards) else ()
    return all(f.readable(columns) for f in functions if hasattr(f, "readable"))


def compares(source: Any) -> bool:
    """Whether a source gives pairs, and no rewards."""
    return isinstance(source, _Judge)


def _given(function: Callable, own: int, columns: dict[str, list]) -> dict[str, list]:
    """Those of the columns that a function asks for; SourceError for a required one that is not there."""
    asked = asked_by(function, own)
    for name in asked.required:
        if name not in columns:
            raise SourceError(f"{_name(function)} asks for a column {name!r}, and there is none")
    return {n: x for n, x in columns.items() if asked.others or n in (*asked.required, *asked.optional)}


def _rewards_of(function, prompts, completions, shape, policy: ErrorPolicy) -> np.ndarray:
    """Returns float64 `[B, K]`, nan where the function has failed and the policy is to skip."""
    rewards, problem, cause = np.full(shape, np.nan), "", None
    for tries_left in range(policy.retries, -1, -1):
        try:
            rewards = _as_rewards(_call(function, (prompts, completions), policy.timeout), shape)
        except Exception as e:  # anything that a user's function raises
            problem, cause = f"{type(e).__name__}: {e}", e
        else:
            bad = np.flatnonzero(~np.isfinite(rewards).all(-1)).tolist()
            if not bad:
                return rewards
            problem, cause = f"a reward that is not a finite number in groups {bad[:8]} of {shape[0]}", None
        if tries_left:
            _log.warning("%s failed: %s; trying again, %d more times at most", _name(function), problem, tries_left)
    _give_up(function, problem, cause, policy)
    return rewards


def _as_rewards(values: Any, shape: tuple[int, int]) -> np.ndarray:
    array = np.array([_plain(row) for row in (values.tolist() if hasattr(values, "tolist") else values)], dtype=object)
    if array.shape not in (shape, (shape[0] * shape[1],)):
        raise ValueError(
            f"expected {shape[0]} lists of {shape[1]} rewards or {shape[0] * shape[1]} in one, got {array.shape}"
        )
    return np.array([math.nan if x is None else float(x) for x in array.ravel()]).reshape(shape)


def _plain(x: Any) -> Any:
    """Nested lists, of arrays and tensors too: numpy refuses torch's bfloat16, and tensors with a gradient."""
    x = x.tolist() if hasattr(x, "tolist") else x
    return [_plain(y) for y in x] if isinstance(x, list | tuple) else x


def judge(
    function: Callable,
    *,
    compare: str = "disjoint",
    both_orders: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    on_error: str = "raise",
    concurrency: int = 8,
    backoff: float = 0.5,
    memory: Memory | None = None,
    prices: tuple[float, float] | None = None,
) -> Source:
    """Makes a source of a pairwise judge, `function(prompt, a, b)` -> 0 (a is better), 1 (b), or None (a tie).

    Its other parameters are columns of the data, each the prompt's own value; see `reward_function`.

    The judge may be async; a sync one is called in threads. Two replies that are the same are a tie without asking. A
    judge that fails in a comparison, or gives another answer, fails for the group; verdicts that have come are kept in
    `memory`.

    Args:
      function: the judge; it may return an `Answer` instead, which says what it cost.
      compare: "disjoint" compares completions 0 and 1, 2 and 3, ... (even K; samples of one prompt come in no order);
        "all", "sort" or a number of questions: see `core.comparisons.make_plan`.
      both_orders: ask about (a, b) and (b, a); where the two answers disagree it is a tie.
      timeout: see `ErrorPolicy`, per comparison, as the next two.
      retries: more tries after a failure.
      on_error: "raise" or "skip".
      concurrency: questions of a batch that are under way at once.
      backoff: seconds before the first of the retries; see `Manner`.
      memory: where verdicts are kept, so that no question is asked twice.
      prices: of a million tokens, in and out, for the metric `judge_cost`.

    Raises:
      ValueError: for an unknown `compare`, or a judge that cannot be called; on a call, for a K that it does not suit.
    """
    if not callable(function):
        raise ValueError(f"function: expected a callable judge, got {function!r}")
    if not compare.isdecimal():
        check_comparisons(compare, 2, "compare")
    policy, manner = ErrorPolicy(timeout, retries, on_error), Manner(concurrency, timeout, retries, backoff)
    return _Judge(function, compare, both_orders, policy, manner, memory, prices)


@dataclasses.dataclass(frozen=True)
class _Judge:
    """The source of `judge`."""

    function: Callable
    compare: str
    both_orders: bool
    policy: ErrorPolicy
    manner: Manner
    memory: Memory | None
    prices: tuple[float, float] | None

    @property
    def columns(self) -> Columns:
        """What the judge asks for."""
        return asked_by(self.function, 3)

    def __call__(self, prompts: list[Prompt], completions: list[list[str]], **columns: list) -> Judgement:
        """Judges K completions of each of B prompts."""
        groups, size = _group_shape(prompts, completions)
        check_comparisons(self.compare, size, "compare")
        given = _given(self.function, 3, columns)
        start = time.monotonic()

        async def program():
            asker = Asker(self.manner, self.memory, stops=self.policy.on_error == "raise")
            ways = ({n: x[b] for n, x in given.items()} for b in range(groups))
            decided = (self._group(asker, *about) for about in zip(range(groups), prompts, completions, ways))
            try:
                return await asyncio.gather(*decided), asker
            finally:
                await asker.close()

        decided, asker = run(program)
        if asker.failure is not None:
            _give_up(self.function, str(asker.failure), None, self.policy)
        failed = np.array([one is None for one in decided])
        blank = no_comparisons(self.compare, size)
        parts = zip(*(blank if one is None else one for one in decided))
        preferred, rejected, weight = (np.stack(part) for part in parts)
        pairs = Pairs(_int32(preferred), _int32(rejected), jnp.asarray(weight, jnp.float32))
        asker.tally.seconds = time.monotonic() - start
        return Judgement(None, pairs, failed, asker.tally.metrics(self.prices))

    async def _group(
        self, asker: Asker, group: int, prompt: Prompt, texts: list[str], columns: dict
    ) -> Comparisons | None:
        """The comparisons of one group, or None where the judge has failed."""
        plan = make_plan(self.compare, len(texts))
        plan = both_orders(plan) if self.both_orders else plan
        answers: Any = None
        while True:
            try:
                pairs = plan.send(answers)
            except StopIteration as end:
                return end.value
            differ = [(texts[i], texts[j]) for i, j in pairs if texts[i] != texts[j]]
            try:
                found = iter(await asker.answers([self._question(prompt, a, b, columns) for a, b in differ], group))
            except JudgeError:
                return None
            answers = [0.5 if texts[i] == texts[j] else next(found) for i, j in pairs]

    def _question(self, prompt: Prompt, a: str, b: str, columns: dict) -> Question:
        who = getattr(self.function, "identity", None) or _name(self.function)
        key = digest(who, [dict(message) for message in prompt], a, b, columns)
        return Question(functools.partial(self.function, prompt, a, b, **columns), key)


def _int32(index: np.ndarray) -> jax.Array:
    return jnp.asarray(index, jnp.int32)


def head_source(
    policy: LanguageModel, head: RewardHead, *, prompt_tokens: int = 384, reply_tokens: int = 256
) -> Source:
    """Makes a source of a reward model, for texts; with tokens at hand, `reward_model.score_and_reward` is shorter.

    A prompt whose last turn alone is longer than `prompt_tokens` fails its group; longer replies are cut.

    Args:
      policy: the trunk that the head was trained on, frozen or with adapters.
      head: the reward head.
      prompt_tokens: longer prompts lose their oldest turns.
      reply_tokens: longer replies lose their end.
    """

    params, lora = processes.local((policy.params, policy.lora))  # each process judges other texts

    @jax.jit
    def run(params, lora, tokens):
        return reward(LanguageModel(policy.model, params, lora), head, *tokens)

    def source(prompts: list[Prompt], completions: list[list[str]]) -> Judgement:
        groups, size = _group_shape(prompts, completions)
        ids = [encode_prompt(policy.model, prompt, prompt_tokens) for prompt in prompts]
        failed = np.array([x is None for x in ids])
        if failed.all():
            return Judgement(np.zeros((groups, size), np.float32), None, failed)
        filler = next(x for x in ids if x is not None)
        replies = [encode_reply(policy.model, text, reply_tokens) for group in completions for text in group]
        tokens, lengths = pad_texts(replies)
        shaped = (tokens.reshape(groups, size, -1), lengths.reshape(groups, size))
        values = np.asarray(run(params, lora, (*pad_texts([x or filler for x in ids]), *shaped)))
        return Judgement(np.where(failed[:, None], 0.0, values).astype(np.float32), None, failed)

    return source


def dataset_labels(prompts: list[Prompt], completions: list[list[str]]) -> Judgement:
    """The source of a preference data set's own labels: completion 0 is the chosen reply, 1 the rejected one.

    Raises:
      ValueError: unless each prompt has two completions.
    """
    groups, size = _group_shape(prompts, completions)
    if size != 2:
        raise ValueError(f"completions: a data set's labels are of two replies, got K = {size}")
    return Judgement(None, chosen_rejected_pairs(groups), np.zeros(groups, bool))


def _group_shape(prompts: list, completions: list[list[str]]) -> tuple[int, int]:
    sizes = {len(group) for group in completions}
    if not prompts or len(prompts) != len(completions) or len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"completions: expected K >= 1 texts for each of {len(prompts)} prompts, got {sorted(sizes)}")
    return len(prompts), sizes.pop()


def _give_up(function: Callable, problem: str, cause: Exception | None, policy: ErrorPolicy) -> None:
    message = f"{_name(function)} failed ({policy.retries + 1} tries): {problem}"
    if policy.on_error == "raise":
        raise SourceError(f'{message}; on_error="skip" goes on without the groups concerned') from cause
    _log.warning("%s; skipped", message)


def _name(function: Callable) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _call(function: Callable, arguments: tuple, timeout: float | None) -> Any:
    """Calls a sync or async function, under a time limit; in a thread where it needs a loop or a clock of its own."""
    if timeout is None and not inspect.iscoroutinefunction(function):
        result = function(*arguments)
        if not inspect.isawaitable(result):
            return result
        return in_thread(lambda: asyncio.run(_awaited(result)), None)

    def run():
        result = function(*arguments)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    return in_thread(run, timeout)


async def _awaited(result: Any) -> Any:
    return await result
