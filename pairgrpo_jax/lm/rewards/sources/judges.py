"""Sources of pairs: judges that compare two replies, and a data set's own labels."""

import asyncio
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core.comparisons import Comparisons, both_orders, check_comparisons, make_plan, no_comparisons
from pairgrpo_jax.core.pairs import Pairs, chosen_rejected_pairs
from pairgrpo_jax.lm.data import Columns, Prompt, asked_by
from pairgrpo_jax.lm.rewards.asking import Asker, JudgeError, Manner, Memory, Question, digest, run
from pairgrpo_jax.lm.rewards.sources.identity import identity_of
from pairgrpo_jax.lm.rewards.sources.interface import (
    ErrorPolicy,
    Judgement,
    Source,
    UnfitError,
    give_up,
    given,
    group_shape,
    name_of,
    require_order,
)


def judge(
    function: Callable,
    *,
    compare: str | int = "disjoint",
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

    True and False are refused, whatever `on_error`: nobody can say which reply `len(a) < len(b)` is to mean. Its other
    parameters are columns of the data, each the prompt's own value; see `reward_function`.

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
      ValueError: for an unknown `compare`, a judge that cannot be called or takes something else first, or a `memory`
        that is none; on a call, for a K that it does not suit.
    """
    if not callable(function):
        raise ValueError(f"function: expected a callable judge, got {function!r:.80}")
    require_order(function, "function", ("prompt", "a", "b"), ("prompts", "completions"), "a prompt and two texts")
    if isinstance(memory, str | os.PathLike):
        raise ValueError(f"memory: expected a Memory, as Memory({str(memory)!r}), got {memory!r}")
    compare = str(compare)
    if not compare.isdecimal():
        check_comparisons(compare, 2, "compare")
    policy, manner = ErrorPolicy(timeout, retries, on_error), Manner(concurrency, timeout, retries, backoff)
    return _Judge(function, compare, both_orders, policy, manner, memory, prices)


@dataclasses.dataclass(frozen=True)
class _Judge:
    """The source of `judge`."""

    compares: ClassVar[bool] = True
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
        groups, size = group_shape(prompts, completions)
        check_comparisons(self.compare, size, "compare")
        asked = given(self.function, 3, columns)
        start = time.monotonic()

        async def program():
            asker = Asker(self.manner, self.memory, stops=self.policy.on_error == "raise")
            ways = ({n: x[b] for n, x in asked.items()} for b in range(groups))
            decided = (self._group(asker, *about) for about in zip(range(groups), prompts, completions, ways))
            try:
                return await asyncio.gather(*decided), asker
            finally:
                await asker.close()

        decided, asker = run(program)
        if asker.failure is not None and asker.failure.unfit:
            raise UnfitError(f"{name_of(self.function)} cannot be used: {asker.failure}")
        if asker.failure is not None:
            give_up(self.function, str(asker.failure), None, self.policy)
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

    @functools.cached_property
    def _who(self) -> Any:
        return identity_of(self.function)

    def _question(self, prompt: Prompt, a: str, b: str, columns: dict) -> Question:
        key = digest(self._who, [dict(message) for message in prompt], a, b, columns)
        return Question(functools.partial(self.function, prompt, a, b, **columns), key)


def _int32(index: np.ndarray) -> jax.Array:
    return jnp.asarray(index, jnp.int32)


def dataset_labels(prompts: list[Prompt], completions: list[list[str]]) -> Judgement:
    """The source of a preference data set's own labels: completion 0 is the chosen reply, 1 the rejected one.

    Raises:
      ValueError: unless each prompt has two completions.
    """
    groups, size = group_shape(prompts, completions)
    if size != 2:
        raise ValueError(f"completions: a data set's labels are of two replies, got K = {size}")
    return Judgement(None, chosen_rejected_pairs(groups), np.zeros(groups, bool))
