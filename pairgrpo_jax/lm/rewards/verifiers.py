"""Rewards that check an answer: 1 where a reply is right, 0 where it is not.

Each is a reward function, `(prompts, completions, answer)`. Where the true answer cannot be read the reward is nan, so
that the group counts as failed and not as wrong; `readable` says so beforehand.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.lm.data.gym import Gym
from pairgrpo_jax.lm.rewards.answers import (
    last_number,
    letter,
    marked,
    plain,
    reference,
    stated,
    true_letter,
    true_number,
)

_log = logging.getLogger("pairgrpo_jax.lm")
_IS_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+")
_LETTERS = re.compile(r"\$?(?:\\(?:text|mathrm)\{)?([A-Z]{2,})\}?\$?")
_EXPRESSION = re.compile(r"[\\^{}()=]|\d[a-z]\b|\b[a-z]\b")
_NAMED = re.compile(
    r"\\(?:begin|end|text|mathrm|operatorname)\{[^{}]*\}|\\[A-Za-z]+|(?:sqrt|sin|cos|tan|log|exp|pi)(?![a-z])"
)
_WORDS = re.compile(
    r"[A-Za-z]{3}|[A-Za-z][aeiou]|[aeiouAEIOU][A-Za-z]|\d\s+(?:[a-z]{2}|m\^[23]|\([a-z])|[.!?]\s|\n"
)  # or units
_POWER_OF_TEN = re.compile(r"(?<![\w.,])(?:\d+\.?\d*|\.\d+)e[-+]?\d{1,3}(?!\w|\.\d)", re.IGNORECASE)
NAMES = ("math", "number", "choice", "format", "own")


class Verifier:
    """A reward function that compares what `read` finds in a reply with what `true` finds in the answer column.

    Attributes:
      __name__: `verify:NAME`, for messages and metrics.
    """

    def __init__(self, name: str, true: Callable[[Any], Any], right: Callable[[str, Any], bool]):
        """Takes a name, what makes a true answer of a column's value (None where it cannot be read), and the check."""
        self.__name__, self._true, self._right = f"verify:{name}", true, right

    def __call__(self, prompts: Sequence, completions: list[list[str]], answer: list) -> list[list[float]]:
        """1 or 0 for each of B groups of K replies; nan in a group whose answer cannot be read."""
        return [self._group(group, self._true(value)) for group, value in zip(completions, answer)]

    def _group(self, replies: list[str], truth: Any) -> list[float]:
        return [math.nan if truth is None else float(self._right(reply, truth)) for reply in replies]

    def readable(self, columns: Any) -> bool:
        """Whether a row's answer can be read."""
        return self._true(columns.get("answer")) is not None


class Format:
    """A reward function: 1 where a regular expression is found in a reply; `^...$` for all of it."""

    def __init__(self, expression: str):
        """Compiles it; ValueError if it is none."""
        try:
            self._found = re.compile(expression, re.DOTALL)
        except re.error as error:
            raise ValueError(f"reward: verify:format={expression!r} is no regular expression: {error}") from error
        self.__name__ = "verify:format"

    def __call__(self, prompts: Sequence, completions: list[list[str]]) -> list[list[float]]:
        """1 or 0 for each of B groups of K replies."""
        return [[float(self._found.search(reply) is not None) for reply in group] for group in completions]


class Own:
    """A reward function, `verify:own`: 1 where the generator's own scorer gives an answer full marks.

    The scorer is asked about the answer alone, taken out of the reply: the last number where the true answer is one,
    else what the reply marks as its answer, else all of it. Less than full marks is 0: the scorers pay a wrong "16" for
    containing the right "6", and some pay for any text. One that raises finds no answer; replies so refused are logged.
    """

    __name__ = "verify:own"

    def __init__(self, gym: Gym):
        """Takes the generator that the problems come from."""
        self._gym = gym

    def __call__(self, prompts: Sequence, completions: list[list[str]], entry: list) -> list[list[float]]:
        """1 or 0 for each of B groups of K replies."""
        raised: list[str] = []
        rewards = [[self._right(reply, e, raised) for reply in group] for group, e in zip(completions, entry)]
        if raised:
            count, of = len(raised), sum(map(len, completions))
            _log.warning("verify:own: the scorer refused %d of %d replies, the first with %s", count, of, raised[0])
        return rewards

    def _right(self, reply: str, entry: dict, raised: list[str]) -> float:
        problems = []
        for text in _forms(reply, entry["answer"]):
            try:
                if self._gym.score(text, entry) >= 1:
                    return 1.0
            except Exception as error:  # whatever a scorer raises on a text that it does not expect
                problems.append(f"{type(error).__name__}: {error}")
        raised += problems[:1]
        return 0.0


def _forms(reply: str, answer: str) -> list[str]:
    """How the answer of a reply may be put to a scorer."""
    if _IS_NUMBER.fullmatch(answer.strip()):
        value = last_number(reply)
        if value is None:
            return []
        return [str(value.numerator) if value.denominator == 1 else repr(float(value))]
    text = marked(reply)[1].strip()
    bare = (text, text.strip("*` \n"), text.strip("*_`\"' \n"))
    return [form for form in dict.fromkeys((*bare, *(x.removesuffix(".").rstrip("*` ") for x in bare))) if form]


def verifier(name: str, expression: str = "", gym: Gym | None = None) -> Verifier | Format | Own:
    """`verify:math`, `number`, `choice`, `format=REGEX` or `own`, by name.

    math compares expressions (the extra `rewards`: math-verify); number compares the last number; choice the letter;
    own asks the scorer of `gym`.

    Raises:
      ValueError: for another name, with the nearest; for a regular expression that is none, or missing; without gym.
      ModuleNotFoundError: for math, if math-verify is not installed.
    """
    if name == "own":
        if gym is None:
            raise ValueError("reward: verify:own asks a generator's scorer; it needs --data reasoning-gym:NAME")
        return Own(gym)
    if name == "math":
        _require_math_verify()
        return Verifier("math", _true_expression, _same_expression)
    if name == "number":
        return Verifier("number", true_number, lambda reply, truth: last_number(reply) == truth)
    if name == "choice":
        return Verifier("choice", true_letter, lambda reply, truth: letter(reply) == truth)
    if name == "format":
        if not expression:
            raise ValueError(r"reward: verify:format needs a regular expression, as in verify:format=\boxed")
        return Format(expression)
    hint = did_you_mean(name, NAMES, f"choose from {', '.join(NAMES)}", "verify:{}")
    raise ValueError(f"reward: verify:{name} is unknown; {hint}")


def _require_math_verify() -> None:
    try:
        importlib.import_module("math_verify")
    except ModuleNotFoundError as error:
        what = f"{error}: verify:math needs the rewards extra, pip install 'pairgrpo-jax[rewards]'"
        raise ModuleNotFoundError(what, name=error.name) from error


def _true_expression(answer: Any) -> Any:
    """What math-verify reads in an answer column; as LaTeX where it looks like an expression without its dollars."""
    if answer is None or isinstance(answer, bool):
        return None
    text = _decimal(_multiplied(plain(reference(answer))))
    if letters := _LETTERS.fullmatch(stated(text) or text):
        return letters[1]
    return (_bare(text) and _parse(f"${text}$")) or _parse(text) or None


def _same_expression(reply: str, truth: Any) -> bool:
    """By value, as math-verify has it, but for a problem that is repeated and not worked out: "3 + 4" for 7. Capital
    letters in a row are a word, of which math-verify would take any order: "BAC"."""
    if isinstance(truth, str):
        return truth == _word(reply)
    text = _multiplied(_signed(reply))  # "2e-1" may be meant as 0.2, or as 2e - 1
    return any(_same(_found(one), truth) for one in dict.fromkeys((_decimal(text), text)))


def _same(found: list, truth: list) -> bool:
    from math_verify import verify

    if not any(map(_unfinished, truth)):
        found = [one for one in found if not _unfinished(one)]
    return bool(verify(truth, found, timeout_seconds=_seconds()))  # type: ignore[arg-type]


def _bare(text: str) -> bool:
    """Whether it looks like an expression without its dollars."""
    return "$" not in text and "\\boxed" not in text and _EXPRESSION.search(text) is not None


def _found(reply: str) -> list:
    """What math-verify reads in what a reply marks as its answer, or in all of it; as LaTeX where that is bare."""
    mark, text = marked(reply)
    if mark == "tag" and marked(text)[0]:
        return _found(text)
    first = re.split(r"\n|\.(?:\s|$)", text)[0] if mark in ("tag", "words") else text
    if (alone := _alone(first)) and (found := _parse(f"${alone}$")):
        return found
    if mark == "tag":
        return _parse(first) or _parse(text)
    return _parse({"box": f"\\boxed{{{text}}}", "words": f"answer: {text}", "": text}[mark])


def _alone(text: str) -> str:
    """A bare expression with no word beside it, what is right of its last "=" where it says what numbers come to; empty
    where there is none."""
    text = text.strip().removesuffix(".")
    if not _bare(text) or not re.search(r"\w", text) or _WORDS.search(_NAMED.sub(" ", text)):
        return ""
    left, _, right = text.rpartition("=")
    return text if re.search("[A-Za-z]", _NAMED.sub(" ", left)) else right.strip()


def _word(reply: str) -> str | None:
    """The last word of capital letters, of what a reply marks as its answer or of all of it."""
    words = re.findall(r"(?<![A-Za-z])[A-Z]{2,}(?![A-Za-z])", marked(reply)[1])
    return words[-1] if words else None


def _multiplied(text: str) -> str:
    """With the sign of a product, without which math-verify reads "2(3)" as 2 + 3."""
    return re.sub(r"(?<=\d)\((?=-?\d)", r" \\cdot (", text)


def _decimal(text: str) -> str:
    """With "1e-05" as 0.00001, where math-verify reads -5 + e."""
    return _POWER_OF_TEN.sub(lambda number: format(Decimal(number[0]), "f"), text)


def _unfinished(expression: Any) -> bool:
    """Whether there is a sum or product of plain numbers in it."""
    import sympy

    def plainly(x) -> bool:
        roots = (power.exp.is_integer is not True for power in x.atoms(sympy.Pow))
        return bool(x.is_number) and not x.atoms(sympy.Function, sympy.NumberSymbol, sympy.I) and not any(roots)

    def open_sum(x) -> bool:
        return isinstance(x, sympy.Add) and sum(map(plainly, x.args)) > 1

    def open_product(x) -> bool:
        return isinstance(x, sympy.Mul) and sum(y.is_Number and abs(y) != 1 for y in x.args) > 1

    parts = sympy.preorder_traversal(expression) if isinstance(expression, sympy.Basic) else ()
    return any(open_sum(x) or open_product(x) for x in parts)


def _signed(reply: str) -> str:
    """The reply with its minus signs as math-verify reads them: ASCII, and beside their number."""
    return re.sub(r"(?<![\d)%}])(?<![\d)%}]\s)-\s(?=\d)", "-", plain(reply))


def _parse(text: str) -> list:
    from math_verify import parse

    return parse(text, parsing_timeout=_seconds())  # type: ignore[arg-type]


def _seconds() -> int | None:
    """math-verify's own time limit, which needs the main thread's alarm; elsewhere the reward's own limit holds."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of a limit that is None on every call
    return 5 if threading.current_thread() is threading.main_thread() else None
