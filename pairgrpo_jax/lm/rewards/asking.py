"""Asks a judge: so many questions at once, each under a time limit, again after a failure, and none twice."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import inspect
import json
import random
import sqlite3
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pairgrpo_jax.lm.rewards.loop import process_loop, start

_LONGEST_PAUSE = 60.0  # seconds


class Answer(NamedTuple):
    """What a judge may return in place of its verdict alone: 0, 1 or None, and the tokens that it cost."""

    verdict: Any
    prompt_tokens: int = 0
    completion_tokens: int = 0


class JudgeError(RuntimeError):
    """A judge gave no verdict.

    Attributes:
      again: whether it may do so when asked again.
      pause: seconds that it wants to be left alone.
      tokens: in and out, of an answer that came and was no verdict; None where none came.
      unfit: whether it is no judge: nothing more is asked of it.
    """

    def __init__(
        self,
        message: str,
        *,
        again: bool = True,
        pause: float = 0.0,
        tokens: tuple[int, int] | None = None,
        unfit: bool = False,
    ):
        super().__init__(message)
        self.again, self.pause, self.tokens, self.unfit = again and not unfit, pause, tokens, unfit


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a judge is asked.

    Attributes:
      concurrency: questions under way at once.
      timeout: seconds for one; None waits for ever. A call that overruns is abandoned: its thread lives on, as Python
        cannot end it.
      retries: more tries after a failure.
      backoff: seconds before the first of them, doubled with each, up to a minute; a server's Retry-After is kept.
    """

    concurrency: int = 8
    timeout: float | None = None
    retries: int = 0
    backoff: float = 0.5

    def __post_init__(self):
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be >= 1, got {self.concurrency}")
        if not self.backoff >= 0:
            raise ValueError(f"backoff must be >= 0, got {self.backoff}")


@dataclasses.dataclass
class Tally:
    """What a batch of questions took: answers by the judge (verdicts or not) and from memory, more tries, tokens, and
    seconds."""

    questions: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Counts an answer by the judge."""
        self.questions += 1
        self.latency += seconds
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def metrics(self, prices: tuple[float, float] | None = None) -> dict[str, float]:
        """For a log; `judge_latency` is a question's mean, `judge_cost` by prices of a million tokens in and out."""
        found = {f"judge_{field.name}": float(getattr(self, field.name)) for field in dataclasses.fields(self)}
        found["judge_latency"] = self.latency / max(self.questions, 1)
        if prices is not None:
            tokens = (self.prompt_tokens, self.completion_tokens)
            found["judge_cost"] = sum(price * count for price, count in zip(prices, tokens)) / 1e6
        return found


class Memory:
    """Verdicts on disk: a question is known by its digest, so that none of its words are kept.

    Each verdict is written as it comes; a kill loses the questions under way alone.
    """

    def __init__(self, path: Path | str):
        """The file is opened, or made, with the first question."""
        self.path = Path(path)
        self._base: sqlite3.Connection | None = None

    def get(self, key: str) -> float | None:
        """The verdict on a question, if it has been given."""
        row = self.open().execute("SELECT verdict FROM verdicts WHERE question = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, verdict: float) -> None:
        """Keeps a verdict."""
        with self.open() as base:
            base.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, verdict))

    def open(self) -> sqlite3.Connection:
        """The data base; ValueError that names a file which is none."""
        if self._base is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                base = sqlite3.connect(self.path, check_same_thread=False)
                base.execute("PRAGMA journal_mode = WAL")
                base.execute("CREATE TABLE IF NOT EXISTS verdicts (question TEXT PRIMARY KEY, verdict REAL NOT NULL)")
                base.execute("SELECT question, verdict FROM verdicts LIMIT 1")
            except (sqlite3.Error, OSError) as error:
                raise ValueError(f"{self.path}: no file of verdicts can be read or made here ({error})") from None
            self._base = base
        return self._base


class Question(NamedTuple):
    """A call of the judge without arguments, sync or async, and the digest that it is remembered by."""

    call: Callable[[], Any]
    key: str


def digest(*parts: Any) -> str:
    """A question's key: the judge, its rubric and settings, the prompt, both replies in their order, and columns."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


class Asker:
    """Asks the questions of one batch; used inside `run`.

    Attributes:
      tally: what it took.
      failure: the first that ended a group, or that shows the judge to be unfit; None before.
    """

    def __init__(self, manner: Manner, memory: Memory | None, *, stops: bool):
        """Takes how to ask, where verdicts are kept, if anywhere, and whether one failure ends the batch."""
        self.manner, self.memory, self.stops = manner, memory, stops
        self.tally = Tally()
        self.failure: JudgeError | None = None
        self._failed: set[int] = set()
        self._slots = asyncio.Semaphore(manner.concurrency)
        self._under_way: dict[str, asyncio.Task] = {}
        self._waiting: dict[str, set[int]] = collections.defaultdict(set)  # groups, by question
        self._calls = _Calls()

    async def answers(self, questions: Sequence[Question], group: int) -> list[float]:
        """Verdicts 0, 1 or 0.5; JudgeError with the first failure, after which no more is asked for the group."""
        return await asyncio.gather(*(self._answer(question, group) for question in questions))

    async def close(self) -> None:
        """Waits for what is under way, so that it is kept."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _answer(self, question: Question, group: int) -> float:
        known = None if self.memory is None else self.memory.get(question.key)
        under_way = self._under_way.get(question.key)
        if known is not None or under_way is not None:
            self.tally.cached += 1
        if known is not None:
            return known
        self._waiting[question.key].add(group)
        if under_way is None:
            under_way = self._under_way[question.key] = asyncio.ensure_future(self._try(question))
        try:
            return await asyncio.shield(under_way)
        except JudgeError:
            self._failed.add(group)  # it may have come after the failure
            raise

    async def _try(self, question: Question) -> float:
        """Asks until there is a verdict, for as long as a group that has not failed waits for it."""
        waiting = self._waiting[question.key]
        async with self._slots:
            for tries in range(self.manner.retries + 1):
                if waiting <= self._failed or (self.failure and (self.stops or self.failure.unfit)):
                    del self._under_way[question.key]  # for groups to come it is still to be asked
                    raise JudgeError("not asked any more")
                try:
                    return await self._once(question)
                except JudgeError as error:
                    if tries == self.manner.retries or not error.again:
                        self.failure = error if error.unfit else self.failure or error
                        self._failed |= waiting
                        raise
                    self.tally.retries += 1
                    await asyncio.sleep(self._pause(tries, error))
        raise AssertionError("unreachable")

    def _pause(self, tries: int, error: JudgeError) -> float:
        """Grows with the tries, and differs between questions, lest all come back at once."""
        pause = min(self.manner.backoff * 2**tries, _LONGEST_PAUSE) * random.uniform(0.75, 1.0)
        return max(pause, min(error.pause, _LONGEST_PAUSE))

    async def _once(self, question: Question) -> float:
        began = time.monotonic()
        try:
            answer = await asyncio.wait_for(self._calls.call(question.call), self.manner.timeout)
        except JudgeError as error:
            if error.tokens is not None:
                self.tally.add(time.monotonic() - began, *error.tokens)
            raise
        except TimeoutError as error:
            raise JudgeError(f"TimeoutError: {str(error) or f'no answer within {self.manner.timeout} s'}") from error
        except Exception as error:  # anything that a user's function raises
            raise JudgeError(f"{type(error).__name__}: {error}", unfit=not_called(error)) from error
        answer = answer if isinstance(answer, Answer) else Answer(answer)
        self.tally.add(time.monotonic() - began, *answer[1:])
        verdict = _verdict(answer.verdict)
        if self.memory is not None:
            self.memory.put(question.key, verdict)
        return verdict


def _verdict(answer: Any) -> float:
    if answer is None:
        return 0.5
    if isinstance(answer, bool | np.bool_):  # of `len(a) < len(b)` nobody can say which reply it is to mean
        raise JudgeError(f"return 0 for a, 1 for b, None for a tie, not {answer!r}", unfit=True)
    if not (isinstance(answer, int | float | np.number) and answer in (0, 1)):
        raise JudgeError(f"expected 0, 1 or None, got {answer!r}")
    return float(answer)


def not_called(error: Exception, *files: str) -> bool:
    """Whether a TypeError is of a call that a function does not take: none of its lines have run, but only of `files`
    and this one."""
    if not isinstance(error, TypeError):
        return False
    return traceback.extract_tb(error.__traceback__)[-1].filename in (__file__, *files)


def run(program: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs an async program to its end, in a thread of its own as the caller may be in a loop."""
    return in_thread(lambda: asyncio.run(program()), None)


class _Calls:
    """Calls functions so that none can block the asker: sync ones in threads, async ones in the loop of the process."""

    def __init__(self):
        self._loop = process_loop()  # before any question's time runs

    def call(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return self._in_loop(function()) if inspect.iscoroutinefunction(function) else self._in_thread(function)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(*outcome: Any) -> None:
            if not future.done():
                future.set_result(outcome)

        def work() -> None:
            result, error = None, None
            try:
                result = function()
            except BaseException as e:
                error = e
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:  # the batch is over, and its loop closed
                pass

        threading.Thread(target=work, daemon=True).start()
        result = _value(*await future)
        return await self._in_loop(result) if inspect.isawaitable(result) else result

    async def _in_loop(self, work: Awaitable[Any]) -> Any:
        return _value(*await asyncio.wrap_future(start(work, self._loop)))


def _value(result: Any, error: BaseException | None) -> Any:
    """The result, or raises the error, as one that ends no more than the question."""
    if error is None:
        return result
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        raise RuntimeError(repr(error))
    raise error


def in_thread(run: Callable, timeout: float | None) -> Any:
    """The result of `run` in a daemon thread, so that one which hangs does not keep the program from ending."""
    outcome: dict[str, Any] = {}

    def target():
        try:
            outcome["value"] = run()
        except BaseException as e:
            outcome["error"] = e

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {timeout} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
