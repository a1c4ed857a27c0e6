"""The columns of public preference sets: which hold the prompt, the two replies, their scores, the system message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from pairgrpo_jax.lm.data.messages import Drop

_PROMPTS = ("prompt", "messages", "conversations")
_LIKE_PROMPT = ("question", "instruction", "input", "query", "context")
_WORDS = re.compile(r"[^\W\d]\S*\s+\S*[^\W\d]|\?\s*$|[？。，]")
# Names of columns that describe a row, or end so ("prompt_source"): several words there are no prompt.
_ABOUT = ("category", "comment", "dataset", "domain", "explanation", "id", "language", "license", "model", "rationale")
_ABOUT += ("reason", "source", "subset", "topic", "type", "url")
_SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
_IMAGES = ("images", "image", "videos", "video", "audios", "audio")
_SCORES = ("score", "rating", "avg_rating", "avg_score", "overall_score", "reward")

Scores = tuple[float, float] | None


class Sides(NamedTuple):
    """The preferred reply, the other, as they stand in the row, and their scores where there are any."""

    chosen: Any
    rejected: Any
    scores: Scores = None


class _Labelled(NamedTuple):
    """Two columns of replies, and one that says which is better: `sign(value)` > 0 for the second, 0 for a tie, NaN
    where it says nothing."""

    first: str
    second: str
    label: str
    sign: Callable[[Any], float]


def _second(label: Any) -> float:
    """The sign of 0 or 1, where 1 is the second reply."""
    return 2.0 * label - 1 if label in (0, 1) else math.nan


_WINNERS = {"model_a": -1.0, "model_b": 1.0, "tie": 0.0, "tie (bothbad)": 0.0, "both_bad": 0.0}
_LABELLED = (
    _Labelled("response_1", "response_2", "preference_strength", float),  # HelpSteer2
    _Labelled("response1", "response2", "overall_preference", float),  # HelpSteer3
    _Labelled("response_0", "response_1", "better_response_id", _second),  # PKU-SafeRLHF
    _Labelled("human_ref_A", "human_ref_B", "labels", lambda x: -_second(x)),  # SHP
    _Labelled("conversation_a", "conversation_b", "winner", lambda x: _WINNERS[x]),  # Chatbot Arena
)
# The column of the prompt where a set has no `prompt`, told by a column that only such sets have.
_OTHER_PROMPTS = {"human_ref_A": "history", "overall_preference": "context"}


def prompt_name(row: Mapping[str, Any]) -> str | None:
    """The column that holds the prompt, or None; one that is null only where no other does."""
    known = [*_PROMPTS, *(name for sign, name in _OTHER_PROMPTS.items() if sign in row)]
    if any(name in row for name in _SYSTEMS):  # Orca: a system message, null in some rows, and a question or input
        known += ["question", "input"]
    return min((name for name in known if name in row), key=lambda name: row[name] is None, default=None)


def misnamed_prompt(row: Mapping[str, Any]) -> str | None:
    """A column that may hold the prompt by its name."""
    return next((name for name in _LIKE_PROMPT if isinstance(row.get(name), str)), None)


def unnamed_prompt(row: Mapping[str, Any], replies: Sequence[str]) -> str | None:
    """A column that may hold the prompt by its value: messages, or several words that are in none of the `replies`."""
    return next((name for name in row if not _about(name) and _asks(row[name], replies)), None)


def _about(name: str) -> bool:
    words = re.split(r"[\W_]+", name.lower())
    return name in _SYSTEMS or words[-1] in _ABOUT or not {"chosen", "rejected"}.isdisjoint(words)


def _asks(value: Any, replies: Sequence[str]) -> bool:
    if isinstance(value, str):
        return _WORDS.search(value) is not None and not any(value.strip() in reply for reply in replies)
    return _listed(value) and any(isinstance(x, Mapping) and ("role" in x or "from" in x) for x in value)


def system_name(row: Mapping[str, Any]) -> str | None:
    """The column that holds the system message, or None."""
    return next((name for name in _SYSTEMS if row.get(name) is not None), None)


def medium_name(row: Mapping[str, Any]) -> str | None:
    """The column that holds images, sounds or videos, which no text can stand for, or None."""
    return next((name for name in _IMAGES if row.get(name)), None)


def is_preference(row: Mapping[str, Any]) -> bool:
    """Whether the columns are those of two replies."""
    known = [{"chosen", "rejected"}, *({x.first, x.second, x.label} for x in _LABELLED)]
    return any(row.keys() >= columns for columns in known) or (_listed(row.get("text")) and "score" in row)


def sides(row: Mapping[str, Any], where: str) -> Sides:
    """The two replies of a row.

    Raises:
      Drop: where a label says nothing: null, not a finite number, or none of its two values.
      ValueError: that names `where`, for columns of no layout known here, or scores that are no numbers.
    """
    if "chosen" in row and "rejected" in row:
        return Sides(row["chosen"], row["rejected"], _scores(row, where))
    if "text" in row and "score" in row:
        return _scored_texts(row["text"], row["score"], where)
    for layout in _LABELLED:
        if row.keys() >= {layout.first, layout.second, layout.label}:
            return _labelled(layout, row, where)
    raise ValueError(
        f"{where}: expected columns 'chosen' and 'rejected' (and perhaps 'prompt'), 'text' and 'score', or those of "
        f"a set named in docs/data.md; got {sorted(row)}"
    )


def _scored_texts(texts: Any, scores: Any, where: str) -> Sides:
    if not all(_listed(x) and len(x) == 2 for x in (texts, scores)):
        raise ValueError(f"{where}: 'text' and 'score' must hold two entries each")
    values = (math.nan, math.nan) if None in scores else _numbers(scores, where)
    if not all(map(math.isfinite, values)):
        raise _silent("score")
    best = int(values[1] > values[0])
    return Sides(texts[best], texts[1 - best], (values[best], values[1 - best]))


def _labelled(layout: _Labelled, row: Mapping[str, Any], where: str) -> Sides:
    label = row[layout.label]
    try:
        sign = math.nan if label is None else layout.sign(label)
    except (TypeError, ValueError, KeyError) as e:
        raise ValueError(f"{where}: column {layout.label!r} = {label!r} does not say which reply is better") from e
    if not math.isfinite(sign):
        raise _silent(layout.label)
    first, second = row[layout.first], row[layout.second]
    return Sides(second, first, (sign, 0.0)) if sign > 0 else Sides(first, second, (-sign, 0.0))


def _silent(column: str) -> Drop:
    return Drop(f"with nothing said in column {column!r}")


def _scores(row: Mapping[str, Any], where: str) -> Scores:
    """The scores of the chosen and the rejected reply; those that are null or not finite say nothing."""
    inside = row.get("metadata")
    row = {**row, **inside} if isinstance(inside, Mapping) else row
    named = {str(name).lower().replace("-", "_"): value for name, value in row.items()}
    for stem in _SCORES:
        for names in ((f"{stem}_chosen", f"{stem}_rejected"), (f"chosen_{stem}", f"rejected_{stem}")):
            values = [named.get(name) for name in names]
            if None not in values:
                scores = _numbers(values, where)
                return scores if all(map(math.isfinite, scores)) else None
    ratings = named.get("rating")  # Argilla: of two generations, the chosen one among them
    if _listed(ratings) and len(ratings) == 2 and None not in ratings:
        first, second = _numbers(ratings, where)
        return max(first, second), min(first, second)
    return None


def _listed(value: Any) -> TypeGuard[Sequence]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _numbers(scores: Sequence, where: str) -> tuple[float, float]:
    try:
        return float(scores[0]), float(scores[1])
    except (TypeError, ValueError) as e:
        raise ValueError(f"{where}: scores must be two numbers, got {list(scores)}") from e
