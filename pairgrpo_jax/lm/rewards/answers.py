"""Answers in a reply: where it says that they are, as numbers, and as letters of a choice."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(r"(?:####|\banswer\s*(?:is|:|=)\s*:?)", re.IGNORECASE)
# A minus belongs to its number unless it is what lies between two of them.
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\d)%])(?<![\d)%]\s)(-\s?\$?|\$\s?-)|(?:\+|\$)\s?)?"
    r"(\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(\.\d+)?(?:e([-+]?\d{1,3}))?(?:\s?/\s?(\d+))?(?![\d])",
    re.IGNORECASE,
)
_THIN_SPACE = re.compile(r"(?<=\d)(?:\\[,;:! ]|[~\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_LETTER = re.compile(r"(?<![A-Za-z'’])\(?([A-J])(?![A-Za-z'’])\)?")


def stated(reply: str) -> str | None:
    r"""What the reply marks as its answer: the last `<answer>`, else the last `\boxed{}`, else what follows "####",
    "answer is" or "answer:"; None where it marks none.
    """
    mark, answer = marked(reply)
    return answer if mark else None


def marked(reply: str) -> tuple[Literal["tag", "box", "words", ""], str]:
    """How a reply marks its answer, see `stated`, and what it marks; "" and all of it where it marks none."""
    if tags := _TAG.findall(reply):
        return "tag", tags[-1].strip()
    if (box := _boxed(reply)) is not None:
        return "box", box.strip()
    said = list(_SAID.finditer(reply))
    return ("words", reply[said[-1].end() :].strip()) if said else ("", reply)


def _boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[begin:i]
    return None  # cut off before it ends


def plain(text: str) -> str:
    """The text with ASCII minus signs, and without the commas and thin spaces that LaTeX writes in numbers or emphasis
    around words."""
    text = re.sub("[\u2212\u2012\u2013\ufe63\uff0d]", "-", text).replace("{,}", ",")
    text = _THIN_SPACE.sub("", text).replace("\\,", "").replace("\\!", "")
    return re.sub(r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}", "", text.replace("\\$", "$").replace("\\%", "%"))


def numbers(text: str) -> list[Fraction]:
    """The numbers of a text in their order: with signs, thousands commas, decimals, exponents, and fractions `a/b`."""
    found = []
    for match in _NUMBER.finditer(plain(text)):
        sign, whole, decimals, exponent, below = match.groups()
        if whole is None and decimals is None:
            continue
        value = Fraction(f"{(whole or '0').replace(',', '')}{decimals or ''}e{exponent or 0}")
        if below is not None and int(below):
            value /= int(below)
        found.append(-value if sign else value)
    return found


def last_number(reply: str) -> Fraction | None:
    """The last number of the sentence that a reply marks as its answer, or of all of it; None where there is none."""
    marked = stated(reply)
    text = reply if marked is None else re.split(r"\n|[.!?](?:\s|$)", marked)[0]
    return next(iter(reversed(numbers(text))), None)


def true_number(answer: Any) -> Fraction | None:
    """The number of an answer column: a number, a text that is one, or what GSM8K has after `####`."""
    if isinstance(answer, bool) or answer is None:
        return None
    found = numbers(reference(answer))
    return found[-1] if found else None


def reference(answer: Any) -> str:
    """The text of an answer column, without the working that GSM8K has before `####`."""
    return str(answer).rpartition("####")[2].strip()


def letter(reply: str) -> str | None:
    """The letter that a reply chooses: of what it marks as its answer, at its beginning, or the last that stands alone.

    "A" before a word in small letters is an article, and "I" a person.
    """
    marked = stated(reply)
    text = plain(reply if marked is None else marked).strip()
    if first := re.match(r"\(?([A-Ja-j])(?:[).:,]|\s*$)", text):
        return first[1].upper()
    if marked is not None:
        found = _LETTER.search(text)
        return found[1] if found else None
    alone = [m[1] for m in _LETTER.finditer(text) if not re.match(r"[AI]\s+[a-z]", text[m.start(1) :])]
    return alone[-1] if alone else None


def true_letter(answer: Any) -> str | None:
    """The letter of an answer column: "B", "(b)", "B. Paris", or the index 1."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return chr(ord("A") + answer) if 0 <= answer < 10 else None
    match = re.match(r"\s*\(?([A-Ja-j])(?:[).:]|\s*$)", str(reference(answer)))
    return match[1].upper() if match else None
