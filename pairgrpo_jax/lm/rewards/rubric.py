"""What a judge is told: a text with places for the prompt, both replies, and columns of the data."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from pairgrpo_jax.lm.data import Prompt

DEFAULT = """Two assistants have answered a user. Decide which reply is better: correct, helpful, honest, to the point.
Neither the order nor the length of the replies makes one better.

<conversation>
{prompt}
</conversation>

<reply_A>
{a}
</reply_A>

<reply_B>
{b}
</reply_B>
"""
_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")


class Rubric:
    """A text in which `{prompt}`, `{a}` and `{b}` stand for a question, and other `{names}` for columns of the data.

    Attributes:
      text: as it was written.
      columns: the names of the others.
    """

    def __init__(self, text: str = DEFAULT, where: str = "rubric"):
        """Raises ValueError that names `where` for a text without both replies; all other braces are text."""
        names = dict.fromkeys(_PLACE.findall(text))
        missing = [f"{{{name}}}" for name in ("a", "b") if name not in names]
        if missing:
            raise ValueError(
                f"rubric: {where} has no {' and no '.join(missing)}; it must show both replies, as {{a}} and {{b}} "
                "(and the prompt, as {prompt})"
            )
        self.text = text
        self.columns = tuple(name for name in names if name not in ("prompt", "a", "b"))

    @property
    def signature(self) -> inspect.Signature:
        """Of a judge that asks by it: `(prompt, a, b, *, column, ...)`."""
        own = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("prompt", "a", "b")]
        return inspect.Signature([*own, *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in self.columns)])

    def filled(self, prompt: Prompt, a: str, b: str, columns: dict[str, Any]) -> str:
        """The text for one question; braces in what is put in stay as they are."""
        values = {"prompt": conversation(prompt), "a": a, "b": b, **columns}
        return _PLACE.sub(lambda place: str(values[place[1]]), self.text)


def read_rubric(path: Path | None) -> Rubric:
    """The rubric in a file, or the default one; ValueError that names a file which cannot be read."""
    if path is None:
        return Rubric()
    try:
        return Rubric(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"rubric: {path} cannot be read ({error})") from None


def conversation(prompt: Prompt) -> str:
    """The words of one message, or each message of several with its role."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
