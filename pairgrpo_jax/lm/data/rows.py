"""Preference data read in any common layout and cleaned, with a count per reason."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.lm.data import layouts
from pairgrpo_jax.lm.data.columns import ALL, NOTHING, Columns, Kinds
from pairgrpo_jax.lm.data.messages import Drop, Prompt, has_turns, to_messages, transcript, whole_chat, without_cue
from pairgrpo_jax.lm.data.readers import read_rows

_log = logging.getLogger("pairgrpo_jax.lm")


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


def load_preferences(
    source: str, *, split: str = "train", prompt_column: str | None = None, system: str | None = None
) -> Loaded:
    """Reads a preference data set.

    Layouts, told apart by their columns: Anthropic's transcripts (`chosen`, `rejected` with "\\n\\nHuman:" turns); the
    Hugging Face conventions, plain or conversational, with the prompt in a column or as what both replies begin with;
    `text` and `score` lists of two; those of the public sets that docs/data.md lists. Where scores of the two replies
    are given, equal ones are a tie. A column `system` (`system_prompt`, `system_message`,
    `system_instruction`) holds the system message of prompts without one. Rows with an image, sound or video are
    dropped.

    Args:
      source: "tiny" (ships with the package; "tiny-helpful" and "tiny-harmless" are its halves), a file or folder of
        .jsonl, .json (each also .gz) or .parquet, or a hub id, with a subset if need be
        ("Anthropic/hh-rlhf:harmless-base").
      split: of a hub data set; in a folder, the files with this word in their name, or all with "all". One file has
        none but what its name says.
      prompt_column: the column that holds the prompt, if its name is not `prompt`.
      system: a system message, put before prompts that have none.

    Raises:
      ValueError: for a source that cannot be read, columns of no layout above, or no usable row.
    """

    def read(row: dict[str, Any], where: str) -> Preference:
        found = _preference(_with_prompt(row, where, prompt_column), where)
        columns = every.of(row, where, prompt_column or layouts.prompt_name(row) or "")
        return found._replace(prompt=with_system(found.prompt, system), columns=columns)

    every = Columns(others=True)
    loaded = _load(read, "preference", source, split)
    return loaded._replace(rows=_without_prompts(loaded.rows, source))


def has_preferences(source: str, *, split: str = "train") -> bool:
    """Whether the first row has the columns of preferences; for `source` and `split` see `load_preferences`."""
    return layouts.is_preference(next((row for _, row in read_rows(source, split)), {}))


def load_prompts(
    source: str,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    system: str | None = None,
    columns: Columns = ALL,
) -> Loaded:
    """Reads prompts for online training, `PromptRow`s, from a column of prompts or from preferences.

    Replies at the end of `messages` are left out, and the scores of a pair do not matter: it may be a tie. Rows whose
    prompt and kept columns are alike come once.

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
        kept = columns.of(row, where, prompt_column or layouts.prompt_name(row) or "")
        kinds.check(kept, named, where)
        return PromptRow(prompt, kept)

    loaded = _load(read, "prompt", source, split)
    once: dict[str, PromptRow] = {}
    for row in loaded.rows:
        once.setdefault(repr(row), row)
    again = len(loaded.rows) - len(once)
    return Loaded(list(once.values()), loaded.dropped | ({"duplicate prompt": again} if again else {}))


def _with_prompt(row: dict[str, Any], where: str, column: str | None) -> dict[str, Any]:
    """The row with the prompt in `prompt`, from the column that holds it."""
    if column is None:
        return row
    if column not in row:
        hint = did_you_mean(column, row, f"it has {', '.join(sorted(row))}", "{!r}")
        raise ValueError(f"{where}: no column {column!r} (--prompt-column); {hint}")
    if row[column] is None:
        raise Drop("empty prompt")
    return {name: value for name, value in row.items() if name != column} | {"prompt": row[column]}


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt behind a system message, unless it has its own or none is given."""
    has_one = any(message["role"] == "system" for message in prompt[:1])
    return prompt if not system or has_one else ({"role": "system", "content": system}, *prompt)


def _load(read: Callable[[dict[str, Any], str], Any], what: str, source: str, split: str) -> Loaded:
    rows, dropped = [], Counter()
    for where, row in read_rows(source, split):
        try:
            if (medium := layouts.medium_name(row)) is not None:
                raise Drop(f"with something in column {medium!r}")
            rows.append(_checked_text(read(row, where)))
        except Drop as reason:
            dropped[str(reason)] += 1
    if not rows:
        raise ValueError(f"{source}: no usable {what} ({_listed(dropped) or 'no row at all'})")
    return Loaded(rows, dict(dropped))


def _checked_text(row: Any) -> Any:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as e:  # half a character of two, which JSON can write
        raise Drop("with text that is not Unicode") from e
    return row


def _without_prompts(rows: list[Preference], source: str) -> list[Preference]:
    """The rows, their prompts taken away from the replies where every reply of the set begins with its own."""
    starts = [row.prompt[-1]["content"] for row in rows]
    repeated = all(
        text.startswith(start) and text[len(start) :][:1].isspace()
        for row, start in zip(rows, starts)
        for text in (row.chosen, row.rejected)
    )
    if not repeated:
        return rows
    _log.warning("%s: every reply begins with its prompt, which is taken away from it", source)
    cut = [[text[len(start) :].strip() for text in row[1:3]] for row, start in zip(rows, starts)]
    return [row._replace(chosen=chosen, rejected=rejected) for row, (chosen, rejected) in zip(rows, cut)]


def _only_prompt(row: dict[str, Any], where: str) -> Prompt:
    column = layouts.prompt_name(row)
    if row.keys() >= {"chosen", "rejected"} or (column is None and layouts.is_preference(row)):
        return _scored_pair(row, where)[0].prompt
    if column is None:
        like = layouts.misnamed_prompt(row) or layouts.unnamed_prompt(row, ())
        hint = f"; if {like!r} holds the prompt: --prompt-column {like}" if like else ""
        what = "expected a column 'prompt', 'messages' or 'conversations', or those of preferences"
        raise ValueError(f"{where}: {what}; got {sorted(row)}{hint}")
    if row[column] is None:
        raise Drop("empty prompt")
    messages = to_messages(row[column], where)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return _checked_prompt(with_system(messages, _system(row, where)))


def _preference(row: dict[str, Any], where: str) -> Preference:
    """Returns the preference of a row of any layout, or raises `Drop`."""
    pair, scores = _scored_pair(row, where)
    if scores is not None and scores[0] == scores[1]:
        raise Drop("tie")
    if scores is not None and scores[0] < scores[1]:
        raise Drop("scores contradict the labels")
    return pair


def _scored_pair(row: dict[str, Any], where: str) -> tuple[Preference, layouts.Scores]:
    """Returns the prompt and two replies of a row of any layout with the replies' scores, or raises `Drop`."""
    chosen, rejected, scores = layouts.sides(row, where)
    if not chosen or not rejected:
        raise Drop("empty reply")
    prompt, good, bad = _prompt_and_replies(row, chosen, rejected, where)
    good, bad = good.strip(), bad.strip()
    if not good or not bad:
        raise Drop("empty reply")
    if good == bad:
        raise Drop("identical replies")
    return Preference(_checked_prompt(with_system(prompt, _system(row, where))), good, bad), scores


def _system(row: dict[str, Any], where: str) -> str | None:
    name = layouts.system_name(row)
    if name is not None and not isinstance(row[name], str):
        raise ValueError(f"{where}: column {name!r} must hold a text, the system message; got {row[name]!r:.80}")
    return None if name is None else row[name].strip()


def _prompt_and_replies(row: dict[str, Any], chosen: Any, rejected: Any, where: str) -> tuple[Prompt, str, str]:
    """Returns the prompt's messages and the two reply texts."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError(f"{where}: 'chosen' and 'rejected' must both be texts or both be lists of messages")
    column = layouts.prompt_name(row)
    given = () if column is None or row[column] is None else without_cue(to_messages(row[column], where))
    if isinstance(chosen, str) and not (transcript(chosen) and transcript(rejected)):
        return _common_text(row, chosen, rejected, where) if column is None else (given, chosen, rejected)
    first, second = (whole_chat(given, to_messages(side, where)) for side in (chosen, rejected))
    if any(not side or side[-1]["role"] != "assistant" for side in (first, second)):
        raise Drop("no reply at the end")
    if first[:-1] != second[:-1]:
        raise Drop("prompts differ")
    return first[:-1], first[-1]["content"], second[-1]["content"]


def _common_text(row: dict[str, Any], chosen: str, rejected: str, where: str) -> tuple[Prompt, str, str]:
    """Splits two plain texts after the words that both begin with: the prompt, if no column holds it.

    Raises:
      ValueError: that names a column that may hold it.
    """
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    cut = max((i for i in range(same) if chosen[i].isspace()), default=-1) + 1
    common, sides = chosen[:cut].strip(), (chosen, rejected)
    misnamed = layouts.misnamed_prompt(row) or (None if has_turns(common) else layouts.unnamed_prompt(row, sides))
    if misnamed and not any(map(transcript, sides)):
        raise ValueError(
            f"{where}: no column 'prompt', but {misnamed!r}; if it holds the prompt: --prompt-column {misnamed}"
        )
    return ({"role": "user", "content": common},), chosen[cut:], rejected[cut:]


def _checked_prompt(prompt: Prompt) -> Prompt:
    prompt = without_cue(prompt)
    if not any(m["role"] == "user" and m["content"] for m in prompt):
        raise Drop("empty prompt")
    if prompt[-1]["role"] != "user":
        raise Drop("prompt without a last user turn")
    return prompt


def _listed(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))


def describe(loaded: Loaded) -> str:
    """Returns one line: how many rows are left, and how many were dropped for which reason."""
    lost = sum(loaded.dropped.values())
    what = "preferences" if loaded.rows and isinstance(loaded.rows[0], Preference) else "prompts"
    return f"{len(loaded.rows)} {what}; dropped {lost}" + (f": {_listed(loaded.dropped)}" if lost else "")
