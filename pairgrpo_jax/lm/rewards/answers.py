"""Answers in a reply: where it says that they are, as numbers, and as letters of a choice."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(r"(?:####|\banswer\s*(?:is|:|=)\s*:?)", re.IGNORECASE)
# A minus belongs to its number unless it is what lies between two of them.
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\d)%])(?<![\d)%]\s)(-\s?\$?|\$\s?-)|(?:\+|\$)\s?)?(?=\.?\d)"
    r"(\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(\.\d+)?(?:e([-+]?\d{1,3}))?(?:\s?/\s?(\d+))?(?![\d])",
    re.IGNORECASE,
)
_THIN_SPACE = re.compile(r"(?<=\d)(?:\\[,;:! ]|[~\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_LONGEST = 300  # digits of a number, where floats end; Python itself refuses to read 4301
_PLAIN = r"(?:[^\W\d_½¼¾π]|[\s$€£¥₹%°≈.,)='\"]|(?<!\w)\(|:(?=\s)|(?<=[a-z])/(?=[a-z]))*"
_MORE = (
    r"half|dozens?|hundreds?|thousands?|[mbt]r?illions?|minus|negative|squared|cubed|pi|sqrt|root|log|ln|sin|cos|tan"
)
_NOT = r"(?:not|cannot|[a-z]*n['’]t|neither|nor)"
# A unit of one letter glued to a number: metres, grams, litres, seconds, hours, watts, volts, newtons, joules. Other
# letters are variables or factors, as is the "m" of "$5m".
_UNIT = r"(?-i:[glshLWVNJ]|(?<![$€£¥₹]0)(?<![$€£¥₹]\s0)m)\b"
# One number, with "0" for its digits, among plain words: "x = 5 cm", "5m", but not "5x", "x - 5", "sqrt(5)",
# "5 million", "not 5".
_ALONE = re.compile(
    rf"(?!.*(?<![a-z])(?:{_MORE})(?![a-z]))(?!.*(?<![a-z]){_NOT}(?![a-z])[^0]*0)"
    rf"{_PLAIN}(?:(?<!\w)(?<!\b\w )[-+][\s$]*)?0(?!(?!{_UNIT})[^\W\d_]\b){_PLAIN}",
    re.DOTALL | re.IGNORECASE,
)
_DELIMITER = re.compile(r"\\[()\[\]]|\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
_NEAR = 80  # characters
# What makes a number a part of something larger: what is joined to it, and the words beside it.
_BEFORE = re.compile(r"(?:[A-Za-z'’]+\s+)?[\w^×·√\\{}()€£¥₹]*$")
_AFTER = re.compile(r"[^\W_]*\^?(?:\s+[A-Za-z]+)?")
_ONE = r"(?<![A-Za-z'’])\(?[A-J](?![A-Za-z'’])\)?"
_LETTER = re.compile(_ONE.replace("[A-J]", "([A-J])"))
_WRONG = r"(?:not|wrong|incorrect|false)"
_DENIED = re.compile(
    rf"\b(?i:{_NOT}|rather\s+than|instead\s+of)\s+(?i:(?:be|choose|pick|think|that|it\s+is|the|option|answer)\s+)*"
    rf"{_ONE}(?:(?:,\s*{_ONE})*,?\s+(?i:n?or)\s+{_ONE})*"
    rf"|{_ONE}(?:,\s*{_ONE})*,?\s+(?:and|n?or)\s+{_ONE}\s+(?:are|were|do)(?:n['’]t|\s+(?:both\s+|all\s+)?{_WRONG})\b"
    rf"|{_ONE}\s+(?:(?:is|was)\s+{_WRONG}|does\s+not|cannot|[a-z]+n['’]t)\b"
)
_FIRST = re.compile(r"\(?([A-Ja-j])(?:[).:,](?![A-Za-z]\.)|\s*$)")  # not "i.e."
# What may follow a letter, and neither an article nor a person: small words, and verbs in "s".
_FOLLOWS = r"and|or|nor|but|not|because|since|if|which|that|for|from|in|on|over|to|with|by|is|[a-z]*[a-hj-rtv-z]s"
_ARTICLE_OR_PERSON = re.compile(
    rf"(?<![\w,;)] )A +(?!(?:{_FOLLOWS}|can|could|may|might|must|should|will|would)(?![\w-]))[a-z]"
    rf"|(?<!ption )I +(?!(?!(?:was|always)\b)(?:{_FOLLOWS})(?![\w-]))[a-z]"
)


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


def numbers(text: str) -> list[Fraction | None]:
    """The numbers of a text in their order: with signs, thousands commas, decimals, exponents, and fractions `a/b`;
    None for one of absurd length.
    """
    return [_value(*match.groups(), length=len(match[0])) for match in _NUMBER.finditer(plain(text))]


def _value(sign, whole, decimals, exponent, below, *, length: int) -> Fraction | None:
    if length + abs(int(exponent or 0)) > _LONGEST:
        return None
    value = Fraction(f"{(whole or '0').replace(',', '')}{decimals or ''}e{exponent or 0}") / (int(below or 1) or 1)
    return -value if sign else value


def last_number(reply: str) -> Fraction | None:
    """The number of the sentence that a reply marks as its answer, or of what is right of its last "="; else the last
    of all of it; None where there is none, or an expression or denial that no `true_number` is read from.
    """
    mark, text = marked(reply)
    if not mark:
        return _last(_undelimited(reply))
    inner, text = marked(text)
    end = r"\n" if "box" in (mark, inner) else r"\n|[.!?;](?:\s|$)"  # \boxed{5!}
    sentence = re.split(end, _undelimited(text).strip())[0]
    found = _alone(sentence)
    return _alone(sentence.rpartition("=")[2]) if found is None else found


def true_number(answer: Any) -> Fraction | None:
    """The number of an answer column: a number, a text that has one among plain words, currencies and units, perhaps
    marked as in a reply, or what GSM8K has after `####`; None for anything else, as an expression or two numbers.
    """
    return _alone("" if isinstance(answer, bool) else _undelimited(marked(reference(answer))[1]))


def _alone(text: str) -> Fraction | None:
    """The one number of a text, among plain words."""
    bare = _NUMBER.sub(lambda number: re.sub(r"[.\d].*", "0", number[0]), plain(text))
    alone = _ALONE.fullmatch(bare) and not re.search(r"\w[*_]+\w", text)
    return next(iter(numbers(text)), None) if alone else None


def _last(text: str) -> Fraction | None:
    """The last number of a text, if what it is joined to, and the words beside it, are plain."""
    text = plain(re.sub(r"(?<=[\d)])\*+(?=[\w(])", "×", text))
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    first = max(found[-2].end() if found[1:] else 0, last.start() - _NEAR)
    before, after = _BEFORE.search(text[first : last.start()]), _AFTER.match(text[last.end() :][:_NEAR])
    beside = (part[0] if part else "" for part in (before, after))
    some = "$7" if "$" in last[0] else "7"
    return None if _alone(some.join(beside)) is None else numbers(last[0])[0]


def _undelimited(text: str) -> str:
    r"""Without the marks around a formula, as \(18\), or around words in one, as \text{cm}."""
    return _DELIMITER.sub(lambda mark: f" {mark[1] or ''} ", text)


def reference(answer: Any) -> str:
    """The text of an answer column, without the working that GSM8K has before `####`."""
    return str(answer).rpartition("####")[2].strip()


def letter(reply: str) -> str | None:
    """The letter that a reply chooses: of what it marks as its answer, at its beginning, or the last that stands alone.

    A letter that is denied ("not B", "it isn't B", "B and C are wrong") is not chosen. "A" is an article at the
    beginning of a sentence, and "I" a person, before a word in small letters that does not follow a letter, as "is" and
    "because" do.
    """
    mark, text = marked(reply)
    text = plain(text).strip()
    said = mark and _FIRST.match(text)  # "The answer is D, A and B are wrong"
    text = text if said else _DENIED.sub("", text).strip()
    if first := _FIRST.match(text):
        return first[1].upper()
    found = [m[1] for m in _LETTER.finditer(text) if mark or not _ARTICLE_OR_PERSON.match(text, m.start(1))]
    return found[0 if mark else -1] if found else None


def true_letter(answer: Any) -> str | None:
    """The letter of an answer column: "B", "(b)", "B. Paris", or the index 1."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return chr(ord("A") + answer) if 0 <= answer < 10 else None
    match = re.match(r"\s*\(?([A-Ja-j])(?:[).:](?![A-Za-z]\.)|\s*$)", str(reference(answer)))
    return match[1].upper() if match else None
