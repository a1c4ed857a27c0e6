"""Preference data read in any common layout and cleaned, with a count per reason."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pairgrpo_jax.lm.data.columns import ALL, NOTHING, Columns, Kinds
from pairgrpo_jax.lm.data.readers import read_rows

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Prompt = tuple[Message, ...]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_LIKE_PROMPT = ("question", "instruction", "input", "query", "context")


class Preference(NamedTuple):
    """Two replies to one prompt, the first preferred.

    Attributes:
      prompt: messages, the last of them a user's.
      chosen: the preferred reply.
      rejected: the other.
      columns: what else the row holds.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    columns: Mapping[str, Any] = NOTHING


class PromptRow(NamedTuple):
    """A prompt to sample replies to.

    Attributes:
      prompt: messages, the last of them a user's.
      columns: what else the row holds, an answer for instance: reward functions and judges can ask for it by name.
    """

    prompt: Prompt
    columns: Mapping[str, Any] = NOTHING


class Loaded(NamedTuple):
    """Clean rows, preferences or prompts, and how many were dropped for which reason."""

    rows: list[Any]
    dropped: dict[str, int]


class _Drop(Exception):
    """A row that holds no usable preference; the message is the reason that is counted."""


def load_preferences(
    source: str, *, split: str = "train", prompt_column: str | None = None, system: str | None = None
) -> Loaded:
    """Reads a preference data set.

    Layouts, told apart by their columns: Anthropic's transcripts (`chosen`, `rejected` with "\\n\\nHuman:" turns); the
    Hugging Face conventions, plain or conversational, with the prompt in a column or as what both replies begin with;
    `text` and `score` lists of two. Where scores of the two replies are given, equal ones are a tie.

    Args:
      source: "tiny" (ships with the package; "tiny-helpful" and "tiny-harmless" are its halves), a file or folder of
        .jsonl, .json (each also .gz) or .parquet, or a hub id, with a subset if need be
        ("Anthropic/hh-rlhf:harmless-base").
      split: of a hub data set; in a folder, the files with this word in their name, or all with "all".
      prompt_column: the column that holds the prompt, if its name is not `prompt`.
      system: a system message, put before prompts that have none.

    Raises:
      ValueError: for a source that cannot be read, columns of no layout above, or no usable row.
    """

    def read(row: dict[str, Any], where: str) -> Preference:
        found = _preference(_with_prompt(row, where, prompt_column), where)
        return found._replace(
            prompt=with_system(found.prompt, system), columns=every.of(row, where, prompt_column or "")
        )

    every = Columns(others=True)
    return _load(read, "preference", source, split)


def has_preferences(source: str, *, split: str = "train") -> bool:
    """Whether the first row has the columns of preferences; for `source` and `split` see `load_preferences`."""
    row = next((row for _, row in read_rows(source, split)), {})
    return any(row.keys() >= columns for columns in ({"chosen", "rejected"}, {"text", "score"}))


def load_prompts(
    source: str,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    system: str | None = None,
    columns: Columns = ALL,
) -> Loaded:
    """Reads prompts for online training, `PromptRow`s: a `prompt` or `messages` column, or those of preferences.

    Replies at the end of `messages` are left out. Rows whose prompt and kept columns are alike come once.

    Args:
      source: see `load_preferences`, as the next two.
      split: of the data.
      prompt_column: the column that holds the prompt.
      system: a system message, put before prompts that have none.
      columns: which of the other columns are kept; those asked for by name must not change their type.

    Raises:
      ValueError: for a source that cannot be read, without a usable prompt, or without a required column.
    """
    kinds, named = Kinds(), (*columns.required, *columns.optional)

    def read(row: dict[str, Any], where: str) -> PromptRow:
        prompt = with_system(_only_prompt(_with_prompt(row, where, prompt_column), where), system)
        kept = columns.of(row, where, prompt_column or "")
        kinds.check(kept, named, where)
        return PromptRow(prompt, kept)

    loaded = _load(read, "prompt", source, split)
    once: dict[str, PromptRow] = {}
    for row in loaded.rows:
        once.setdefault(repr(row), row)
    return loaded._replace(rows=list(once.values()))


def _with_prompt(row: dict[str, Any], where: str, column: str | None) -> dict[str, Any]:
    """The row with the prompt in `prompt`, from the column that holds it."""
    if column is None:
        return row
    if column not in row:
        near = difflib.get_close_matches(column, row, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(row))}"
        raise ValueError(f"{where}: no column {column!r} (--prompt-column); {hint}")
    return {name: value for name, value in row.items() if name != column} | {"prompt": row[column]}


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt behind a system message, unless it has its own or none is given."""
    return prompt if not system or prompt[0]["role"] == "system" else ({"role": "system", "content": system}, *prompt)


def _load(read: Callable[[dict[str, Any], str], Any], what: str, source: str, split: str) -> Loaded:
    rows, dropped = [], Counter()
    for where, row in read_rows(source, split):
        try:
            rows.append(read(row, where))
        except _Drop as reason:
            dropped[str(reason)] += 1
    if not rows:
        raise ValueError(f"{source}: no usable {what} ({_listed(dropped) or 'no row at all'})")
    return Loaded(rows, dict(dropped))


def _only_prompt(row: dict[str, Any], where: str) -> Prompt:
    column = next((name for name in ("prompt", "messages") if name in row), None)
    if "chosen" in row or (column is None and "text" in row):
        return _preference(row, where).prompt
    if column is None:
        like = next((name for name in _LIKE_PROMPT if name in row), None)
        hint = f"; if {like!r} holds the prompt: --prompt-column {like}" if like else ""
        raise ValueError(
            f"{where}: expected a column 'prompt' or 'messages', or those of preferences; got {sorted(row)}{hint}"
        )
    if row[column] is None:
        raise _Drop("empty prompt")
    messages = _messages(row[column], where)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return _checked_prompt(messages)


def _preference(row: dict[str, Any], where: str) -> Preference:
    """Returns the preference of a row of any layout, or raises `_Drop`."""
    chosen, rejected, scores = _sides(row, where)
    if not chosen or not rejected:
        raise _Drop("empty reply")
    misnamed = next((name for name in _LIKE_PROMPT if isinstance(row.get(name), str)), None)
    if misnamed and row.get("prompt") is None and isinstance(chosen, str) and not _TURN.match(chosen):
        raise ValueError(
            f"{where}: no column 'prompt', but {misnamed!r}; if it holds the prompt: --prompt-column {misnamed}"
        )
    prompt, good, bad = _prompt_and_replies(row.get("prompt"), chosen, rejected, where)
    good, bad = good.strip(), bad.strip()
    if not good or not bad:
        raise _Drop("empty reply")
    if good == bad:
        raise _Drop("identical replies")
    if scores is not None and scores[0] == scores[1]:
        raise _Drop("tie")
    if scores is not None and scores[0] < scores[1]:
        raise _Drop("scores contradict the labels")
    return Preference(_checked_prompt(prompt), good, bad)


def _sides(row: dict[str, Any], where: str) -> tuple[Any, Any, tuple[float, float] | None]:
    """Returns the chosen and the rejected side as they stand, and their scores where there are any."""
    if "chosen" in row and "rejected" in row:
        scored = {**row, **row["metadata"]} if isinstance(row.get("metadata"), dict) else row
        scores = (scored.get("score_chosen"), scored.get("score_rejected"))
        return row["chosen"], row["rejected"], None if None in scores else _numbers(scores, where)
    if "text" in row and "score" in row:
        texts, scores = row["text"], row["score"]
        if not all(isinstance(x, Sequence) and not isinstance(x, str) and len(x) == 2 for x in (texts, scores)):
            raise ValueError(f"{where}: 'text' and 'score' must hold two entries each")
        scores = _numbers(scores, where)
        best = int(scores[1] > scores[0])
        return texts[best], texts[1 - best], (scores[best], scores[1 - best])
    raise ValueError(
        f"{where}: expected columns 'chosen' and 'rejected' (and perhaps 'prompt'), or 'text' and 'score'; "
        f"got {sorted(row)}"
    )


def _numbers(scores: Sequence, where: str) -> tuple[float, float]:
    try:
        return float(scores[0]), float(scores[1])
    except (TypeError, ValueError) as e:
        raise ValueError(f"{where}: scores must be two numbers, got {list(scores)}") from e


def _prompt_and_replies(prompt: Any, chosen: Any, rejected: Any, where: str) -> tuple[Prompt, str, str]:
    """Returns the prompt's messages and the two reply texts."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError(f"{where}: 'chosen' and 'rejected' must both be texts or both be lists of messages")
    spoken = isinstance(chosen, str) and _TURN.match(chosen) and _TURN.match(str(rejected))
    if isinstance(chosen, str) and not spoken:
        if prompt is not None:
            return _messages(prompt, where), chosen, rejected
        return _common_text(chosen, rejected)
    sides = [_messages(side, where) for side in (chosen, rejected)]
    given = _messages(prompt, where) if prompt is not None else ()
    sides = [side if _starts_with(side, given) else (*given, *side) for side in sides]
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        raise _Drop("no reply at the end")
    if sides[0][:-1] != sides[1][:-1]:
        raise _Drop("prompts differ")
    return sides[0][:-1], sides[0][-1]["content"], sides[1][-1]["content"]


def _starts_with(messages: Prompt, start: Prompt) -> bool:
    return messages[: len(start)] == start


def _common_text(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Splits two plain texts after the words that both begin with: the prompt, if no column holds it."""
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    cut = max((i for i in range(same) if chosen[i].isspace()), default=-1) + 1
    return ({"role": "user", "content": chosen[:cut].strip()},), chosen[cut:], rejected[cut:]


def _messages(content: Any, where: str) -> Prompt:
    """Returns messages from a list of them, a transcript with Human and Assistant turns, or one plain text."""
    if isinstance(content, str):
        return parse_transcript(content) if _TURN.match(content) else ({"role": "user", "content": content.strip()},)
    try:
        messages = tuple({"role": m["role"], "content": m["content"].strip()} for m in content)
    except (TypeError, KeyError, AttributeError) as e:
        raise ValueError(f"{where}: messages must be a list of {{'role': ..., 'content': text}}") from e
    unknown = {m["role"] for m in messages} - {"system", "user", "assistant"}
    if unknown:
        raise ValueError(f"{where}: unknown roles {sorted(map(str, unknown))}; use system, user and assistant")
    return messages


def parse_transcript(text: str) -> Prompt:
    """Parses turns marked "\\n\\nHuman:" and "\\n\\nAssistant:" into messages; a last empty Assistant turn stays."""
    parts = _TURN.split(text)
    return tuple({"role": _ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2]))


def _checked_prompt(prompt: Prompt) -> Prompt:
    if prompt and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"]:
        prompt = prompt[:-1]  # "\n\nAssistant:" that asks for the reply
    if not any(m["role"] == "user" and m["content"] for m in prompt):
        raise _Drop("empty prompt")
    if prompt[-1]["role"] != "user":
        raise _Drop("prompt without a last user turn")
    return prompt


def _listed(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))


def describe(loaded: Loaded) -> str:
    """Returns one line: how many rows are left, and how many were dropped for which reason."""
    lost = sum(loaded.dropped.values())
    what = "preferences" if loaded.rows and isinstance(loaded.rows[0], Preference) else "prompts"
    return f"{len(loaded.rows)} {what}; dropped {lost}" + (f": {_listed(loaded.dropped)}" if lost else "")
