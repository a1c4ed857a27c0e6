"""Prompts and replies as tokens."""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pairgrpo_jax.lm.data.messages import Message, Prompt, split_system
from pairgrpo_jax.lm.data.rows import Preference
from pairgrpo_jax.lm.files.endings import first_control, template_tail
from pairgrpo_jax.lm.files.tokenizer import (
    TemplateRefusal,
    check_ids,
    encode_chat,
    hide_control_tokens,
    reply_ids,
    text_ids,
    with_bos,
)
from pairgrpo_jax.lm.models.generation import bucket
from pairgrpo_jax.lm.models.model import Model

_log = logging.getLogger("pairgrpo_jax.lm")
_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


class EncodedPair(NamedTuple):
    """Tokens of a prompt, of the chosen and of the rejected reply."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def replies(self) -> tuple[list[int], list[int]]:
        """Both replies, the chosen one first."""
        return self.chosen, self.rejected


def encode_prompt(model: Model, prompt: Prompt, limit: int) -> list[int] | None:
    """Returns the ids that ask for the next reply, of at most `limit` tokens.

    Oldest turns are dropped, up to the next user turn, until the rest fits; None if the last turn alone does not, or if
    the model's chat template refuses the messages (logged), even with neighbouring turns of one speaker joined.
    A model without a chat template gets a "\\n\\nHuman: ...\\n\\nAssistant:" transcript.

    Raises:
      ValueError: if the model has no tokenizer, or no row for one of the ids.
    """
    try:
        return prompt_ids(model, prompt, limit)
    except TooLong:
        return None
    except TemplateRefusal as refusal:
        _log.warning("a prompt is left out: %s", refusal)
        return None


class TooLong(ValueError):
    """The last turn alone has more tokens than a prompt may have."""


def prompt_ids(model: Model, prompt: Prompt, limit: int) -> list[int]:
    """`encode_prompt`, with the reason where there are no ids: raises `TooLong`, or `TemplateRefusal`."""
    system, turns = split_system(prompt)
    starts = [i for i, m in enumerate(turns) if m["role"] == "user"]
    for start in [0, *(i for i in starts if i > 0)]:
        ids = _encode(model, (*system, *turns[start:]))
        if len(ids) <= limit:
            check_ids(model.tokenizer, ids, model.config.vocab_size)
            return ids
    raise TooLong("its last turn alone is longer; raise it")


def encode_each(encode: Callable[[Any, int], Any], rows: Sequence, limit: int, what: str) -> list[Any]:
    """`encode(row, limit)` of each row, None where it is too long or refused; refusals are counted and told once.

    Raises:
      ValueError: with the reasons, if none is left.
    """
    encoded, reasons = [], Counter()
    for row in rows:
        try:
            encoded.append(encode(row, limit))
        except (TooLong, TemplateRefusal) as reason:
            encoded.append(None)
            reasons[type(reason), str(reason)] += 1
    if not any(encoded):
        where = f"prompt_tokens={limit}: " if any(kind is TooLong for kind, _ in reasons) else ""
        raise ValueError(f"{where}none of {len(rows)} {what} fits: {'; '.join(words for _, words in reasons)}")
    for (kind, words), count in reasons.items():
        if kind is TemplateRefusal:
            _log.warning("%d of %d %s are left out: %s", count, len(rows), what, words)
    return encoded


def joined(messages: Prompt) -> Prompt:
    """Messages with neighbours of one role made one: HH-RLHF holds some, and many chat templates refuse them."""
    out: list[Message] = []
    for message in messages:
        if out and out[-1]["role"] == message["role"]:
            message = message | {"content": f"{out.pop()['content']}\n\n{message['content']}"}
        out.append(message)
    return tuple(out)


def _encode(model: Model, messages: Prompt) -> list[int]:
    tokenizer = _tokenizer(model)
    if tokenizer.chat_template:
        try:
            return encode_chat(tokenizer, messages, model.chat)
        except TemplateRefusal:
            return encode_chat(tokenizer, joined(messages), model.chat)
    hidden = model.chat.control_tokens == "text"
    if hidden:
        messages = tuple(m | {"content": hide_control_tokens(tokenizer, m["content"])} for m in messages)
    spoken = [f"{_SPEAKERS[m['role']]}: {m['content']}" if m["role"] in _SPEAKERS else m["content"] for m in messages]
    start = "" if messages[0]["role"] == "system" else "\n\n"
    text = start + "\n\n".join([*spoken, "Assistant:"])
    return with_bos(tokenizer, text_ids(tokenizer, text, hidden=hidden))


def encode_reply(model: Model, text: str, limit: int) -> list[int]:
    """Returns the ids of a reply and its end-of-turn id, or the first `limit` ids, without it, of a longer one.

    With a chat template they are what it renders after the prompt, thinking blocks included; where it does not leave
    prompt and reply as they are, those of the reply alone, with a warning.

    Raises:
      ValueError: if the model has no tokenizer, no end-of-sequence id, or no row for one of the ids.
    """
    tokenizer = _tokenizer(model)
    end, hidden = end_of_turn(model), model.chat.control_tokens == "text"
    if tokenizer.chat_template and text.strip():
        try:
            ids = reply_ids(tokenizer, text, model.config.eos_ids, end, model.chat)
            check_ids(tokenizer, ids, model.config.vocab_size)
            return ids[:limit]
        except TemplateRefusal as difference:
            warnings.warn(f"replies are not what the chat template renders: {difference}", stacklevel=2)
    text = hide_control_tokens(tokenizer, text) if hidden else text
    text = text if tokenizer.chat_template else f" {text}"
    ids = text_ids(tokenizer, text, hidden=hidden)
    check_ids(tokenizer, ids, model.config.vocab_size)
    return [*ids, end][:limit]


def encode_pair(model: Model, row: Preference, prompt_tokens: int, reply_tokens: int) -> EncodedPair | None:
    """Returns the tokens of a preference, or None where `encode_prompt` gives None; see there and `encode_reply`."""
    prompt = encode_prompt(model, row.prompt, prompt_tokens)
    return None if prompt is None else _pair(model, row, prompt, reply_tokens)


def encode_preferences(
    model: Model, rows: Sequence[Preference], prompt_tokens: int, reply_tokens: int
) -> list[EncodedPair | None]:
    """`encode_pair` of each row; what the template refuses is told once, and ValueError if none fits."""

    def encode(row: Preference, limit: int) -> EncodedPair:
        return _pair(model, row, prompt_ids(model, row.prompt, limit), reply_tokens)

    return encode_each(encode, rows, prompt_tokens, "preferences")


def _pair(model: Model, row: Preference, prompt: list[int], reply_tokens: int) -> EncodedPair:
    return EncodedPair(prompt, *(encode_reply(model, text, reply_tokens) for text in (row.chosen, row.rejected)))


def pad_texts(texts: Sequence[Sequence[int]], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns right-padded int32 tokens `[N, T]` and lengths `[N]`.

    T is `width`, at which texts are cut; or the longest text's length, rounded up so that few shapes compile.
    """
    width = bucket(max(map(len, texts)), 32) if width is None else width
    lengths = np.array([min(len(text), width) for text in texts], np.int32)
    tokens = np.zeros((len(texts), width), np.int32)
    for row, text, length in zip(tokens, texts, lengths):
        row[:length] = text[:length]
    return tokens, lengths


def end_of_turn(model: Model) -> int:
    """Returns the id that ends a reply: what the chat template writes after one, else the first of the end ids.

    Raises:
      ValueError: if the model has no tokenizer or no end-of-sequence id.
    """
    tokenizer, config = _tokenizer(model), model.config
    if config.reply_end is not None:
        return config.reply_end
    written = first_control(tokenizer, template_tail(tokenizer)) if tokenizer.chat_template else None
    if written is None and not config.eos_ids:
        raise ValueError("the model's config has no eos_token_id, so a reply cannot end: --end-of-turn TOKEN names one")
    return config.eos_ids[0] if written is None else written


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer, so no text can be encoded")
    return model.tokenizer
