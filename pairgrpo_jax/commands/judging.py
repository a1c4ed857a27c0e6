"""Judges on the command line: how they are named, asked, and made."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

from pairgrpo_jax.core.bounds import AtLeast, Settings
from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.lm.rewards.asking import Memory
from pairgrpo_jax.lm.rewards.rubric import read_rubric
from pairgrpo_jax.lm.rewards.sources import Source, judge

OPENAI = "judge:openai:"


@dataclass(frozen=True)
class Comparing(Settings):
    """How a judge compares replies."""

    comparisons: str = "all"
    """Which two of a prompt's replies: all, disjoint (0 and 1, 2 and 3, ...), sort (a merge sort, its order gives all
    pairs), or a number of questions, the most informative. What each loses: pairgrpo theory --only C1."""
    both_orders: bool = True
    """Ask about each two in both orders; where the answers disagree it is a tie."""
    judge_concurrency: Annotated[int, AtLeast(1)] = 8
    """Questions under way at once."""
    judge_backoff: Annotated[float, AtLeast(0)] = 0.5
    """Seconds before the first of the --reward-retries, doubled with each."""


@dataclass(frozen=True)
class Asking(Settings):
    """How a model behind OPENAI_BASE_URL is asked."""

    rubric: Path | None = None
    """A text file of what it is told, with {prompt}, {a}, {b}, and {names} of columns of the data."""
    judge_answers: Literal["schema", "text"] = "schema"
    """Have the server hold answers to a JSON schema, or, where it cannot, ask for one word."""
    judge_temperature: Annotated[float | None, AtLeast(0)] = 0.0
    """Of its sampling; None leaves it to the server, as some models must."""
    judge_tokens: Annotated[int | None, AtLeast(1)] = None
    """Longest answer; None leaves it to the server."""
    judge_prices: tuple[float, float] | None = None
    """Of a million tokens, in and out, for the metric judge_cost."""


def verdicts_in(folder: Path) -> Memory:
    """What judges said in the run of a folder. Each process keeps its own: hosts cannot share a file of SQLite's."""
    process = jax.process_index()
    return Memory(folder / ("verdicts.sqlite" if not process else f"verdicts-{process}.sqlite"))


def make_judge(
    name: str,
    how: Comparing,
    asking: Asking | None,
    *,
    memory: Memory | None,
    check: bool,
    setting: str = "reward",
    **policy: Any,
) -> Source:
    """The source of `judge:module:function` or `judge:openai:MODEL`.

    Args:
      name: which.
      how: it compares.
      asking: for a model behind an address.
      memory: where verdicts are kept.
      check: ask a model one question first, to know that it is there.
      setting: that names the judge, for errors.
      policy: see `sources.ErrorPolicy`.

    Raises:
      ValueError: for a judge that there is not, or that does not answer.
    """
    prices = None if asking is None else asking.judge_prices
    options = {"concurrency": how.judge_concurrency, "backoff": how.judge_backoff, "memory": memory, "prices": prices}
    function = (
        user_function(name.removeprefix("judge:"), setting)
        if asking is None
        else model_judge(name.removeprefix(OPENAI), asking, policy["timeout"])
    )
    if asking is not None and check:
        function.check()  # type: ignore[attr-defined]
    return judge(function, compare=how.comparisons, both_orders=how.both_orders, **options, **policy)


def model_judge(model: str, asking: Asking, timeout: float | None) -> Callable:
    """The judge behind OPENAI_BASE_URL, by this name there."""
    from pairgrpo_jax.lm.rewards.openai_judge import OpenAIJudge

    return OpenAIJudge(
        model,
        rubric=read_rubric(asking.rubric),
        answers=asking.judge_answers,
        temperature=asking.judge_temperature,
        max_tokens=asking.judge_tokens,
        timeout=timeout,
    )


def user_function(where: str, setting: str = "reward") -> Callable:
    """The function `module:function`, also of the working directory; ValueError that names the `setting`."""
    module, _, name = where.partition(":")
    if not module or not name:
        raise ValueError(f"{setting}: {where!r} must be module:function, as mine:f for f in mine.py")
    sys.path.insert(0, "")
    missing = object()
    try:
        loaded = importlib.import_module(module)
        found = getattr(loaded, name, missing)
    except Exception as error:  # anything that a user's module raises
        raise ValueError(f"{setting}: cannot import {where!r}: {_told(error)}{_looked(error, module, name)}") from error
    if found is missing:
        own = [word for word, value in vars(loaded).items() if callable(value) and value.__module__ == module]
        hint = did_you_mean(name, own, f"it has {', '.join(own[:8]) or 'no functions'}")
        raise ValueError(f"{setting}: cannot import {where!r}: there is no {name!r} in {module}; {hint}")
    if not callable(found):
        raise ValueError(f"{setting}: {where!r} is no function, but {type(found).__name__} {found!r:.80}")
    return found


def _looked(error: Exception, module: str, name: str) -> str:
    """How a user's module is named, or where it was looked for, if that is what is wrong."""
    absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
    if not absent and not module.startswith("."):
        return ""
    path = Path(module.removesuffix(".py"))
    right = path.name if path.is_absolute() or ".." in path.parts else ".".join(path.parts).lstrip(".")
    named = f"name the module, not its file: {right}:{name}; " if right != module else ""
    return f"; {named}modules are looked for in {Path.cwd()}, PYTHONPATH and the installed packages"


def _told(error: Exception) -> str:
    """An error in one line, with the file and line where a module raised it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in f.filename]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
