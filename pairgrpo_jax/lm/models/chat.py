"""How conversations become text: settings beside a model's chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from pairgrpo_jax.core.bounds import Settings


@dataclass(frozen=True)
class Chat(Settings):
    """What a chat template is given beside the messages.

    Raises:
      ValueError: for an option that is not NAME=VALUE, or a date that is none.
    """

    template_option: tuple[str, ...] = ()
    """Options of the chat template, as enable_thinking=false; a value is JSON, or else text."""
    template_date: str = ""
    """Today for templates that print it, YYYY-MM-DD; empty: the day on which a run began, kept in its settings."""
    system_turn: Literal["template", "fold"] = "template"
    """A system message goes to the template, or (fold) before the text of the first user turn."""
    control_tokens: Literal["tokens", "text"] = "tokens"
    """What the name of a control token is in a message: that token, as in transformers, or text like any other."""

    def __post_init__(self):
        super().__post_init__()
        _ = self.options, self.day

    @property
    def options(self) -> dict[str, Any]:
        """The template's options by name."""
        found = {}
        for word in self.template_option:
            name, equals, value = word.partition("=")
            if not equals or not name.isidentifier():
                raise ValueError(f"template_option={word!r}: give NAME=VALUE, as in enable_thinking=false")
            try:
                found[name] = json.loads(value)
            except json.JSONDecodeError:
                found[name] = value
        return found

    @property
    def day(self) -> date | None:
        """The date that templates print."""
        try:
            return date.fromisoformat(self.template_date) if self.template_date else None
        except ValueError as error:
            raise ValueError(f"template_date={self.template_date!r}: give YYYY-MM-DD") from error
