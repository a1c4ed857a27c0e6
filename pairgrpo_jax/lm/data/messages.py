"""Conversations as data sets write them, brought to one form: tuples of `{"role", "content"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Prompt = tuple[Message, ...]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_OPENING = re.compile(r"\s*(Human|Assistant):")
_SPEAKER = re.compile(r"^[^\w\n]*(?:\w+[^\w\s]+)*(?:human|user|inst|instruction)[\s*]*[:\]|<>\n]", re.I | re.M)
_ASKING = re.compile(r"\n\nHuman:.*\n\nAssistant:\s*$", re.DOTALL)
_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "model"), "assistant")  # ShareGPT, Gemma
_TEXT = ("text", "input_text", "output_text", None)


class Drop(Exception):
    """A row that cannot be used; the message is the reason that is counted."""


def to_messages(content: Any, where: str) -> Prompt:
    """Messages from a list of them, a transcript with Human and Assistant turns, or one plain text.

    A message is `role` and `content`, or ShareGPT's `from` and `value`; content is a text or a list of text parts.

    Raises:
      ValueError: that names `where`, for what is no message.
      Drop: for a message that no text can stand for: a role such as tool, a call of one, null, an image.
    """
    if isinstance(content, str):
        return transcript(content) or ({"role": "user", "content": content.strip()},)
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or not all(isinstance(m, Mapping) for m in content):
        what = "a prompt must be a text or a list of messages, and messages must be a list of"
        raise ValueError(f"{where}: {what} {{'role': ..., 'content': text}}; got {type(content).__name__}")
    return tuple(_message(m, where) for m in content)


def _message(message: Mapping[str, Any], where: str) -> Message:
    role, content = ("role", "content") if "role" in message else ("from", "value")
    if not isinstance(message.get(role), str):
        raise ValueError(
            f"{where}: messages must be a list of {{'role': ..., 'content': text}}, or of {{'from': ..., 'value': "
            f"text}}; got one with {sorted(map(str, message))}"
        )
    if message.get("tool_calls") or message.get("function_call"):
        raise Drop("with a tool call")
    who = _ROLES.get(message[role].lower())
    if who is None:
        raise Drop(f"with a turn of role {message[role]!r}")
    return {"role": who, "content": _text(message.get(content), where).strip()}


def _text(content: Any, where: str) -> str:
    """The text of a message: its text, or its text parts one after the other."""
    if isinstance(content, str):
        return content
    if content is None:
        raise Drop("with null content")
    if not isinstance(content, Sequence):
        raise ValueError(f"{where}: content must be text or a list of parts, got {content!r:.80}")
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in _TEXT:
            raise Drop(f"with a part of type {kind!r}")
        if not isinstance(part.get("text"), str):
            raise Drop("with null content")
    return "".join(part["text"] for part in parts)


def transcript(text: str) -> Prompt:
    """The messages of a text that is a transcript, with or without blank lines before it; else none.

    What stands before the first turn of a transcript that asks for a reply is its system message.
    """
    text = text.replace("\r\n", "\n")
    if (found := _OPENING.match(text)) and _TURN.search(text, 0 if text.startswith("\n\n") else found.end()):
        return parse_transcript("\n\n" + text.lstrip())
    if _ASKING.search(text):
        before, turns = _TURN.split(text, maxsplit=1)[0], text[_first_turn(text) :]
        return ({"role": "system", "content": before.strip()}, *parse_transcript(turns))
    return ()


def has_turns(text: str) -> bool:
    """Whether a line of a text says that a user speaks: "Human:", "<|im_start|>user", "[INST]", "### Instruction:"."""
    return _SPEAKER.search(text) is not None


def _first_turn(text: str) -> int:
    found = _TURN.search(text)
    return found.start() if found else len(text)


def parse_transcript(text: str) -> Prompt:
    """Parses turns marked "\\n\\nHuman:" and "\\n\\nAssistant:" into messages; a last empty Assistant turn stays."""
    parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple({"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2]))


def without_cue(messages: Prompt) -> Prompt:
    """Messages without the empty last turn of an assistant ("\\n\\nAssistant:") that asks for the reply."""
    return messages[:-1] if messages and messages[-1] == {"role": "assistant", "content": ""} else messages


def whole_chat(given: Prompt, side: Prompt) -> Prompt:
    """The chat of a row whose prompt is `given` and one of whose replies stands as `side`.

    A side that begins the chat, with a system or a user turn, is the whole chat; one that begins with the assistant
    goes on from the prompt. A system message is taken from where there is one.

    Raises:
      Drop: if the prompt is not part of a side that begins the chat, or both have a system message and not the same.
    """
    given = without_cue(given)
    (ours, given), (theirs, side) = split_system(given), split_system(side)
    if ours and theirs and ours != theirs:
        raise Drop("two system messages")
    opens = side[:1] and side[0]["role"] == "user"
    inside = any(side[i : i + len(given)] == given for i in range(len(side) - len(given) + 1))
    if side[: len(given)] == given or (opens and inside):
        return (*(theirs or ours), *side)
    if opens and given[-1]["role"] == "user":
        raise Drop("prompt and chat differ")
    return (*(theirs or ours), *given, *side)


def split_system(messages: Prompt) -> tuple[Prompt, Prompt]:
    """The system messages that lead, and the rest."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return messages[:count], messages[count:]
