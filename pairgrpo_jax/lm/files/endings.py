"""Which ids end a text, and which one of them ends a reply."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pairgrpo_jax.lm.files.text_files import read_json
from pairgrpo_jax.lm.models.config import ModelConfig

FILE = "generation_config.json"
_log = logging.getLogger("pairgrpo_jax.lm")
# Fields that change what is said at temperature 0, and the values at which they do not.
_OFF = (None, False, 0, [], {})
_REWRITES = dict.fromkeys(
    """no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens sequence_bias forced_bos_token_id
    forced_eos_token_id min_length min_new_tokens exponential_decay_length_penalty""".split(),
    _OFF,
) | dict.fromkeys(("repetition_penalty", "num_beams", "guidance_scale"), (1, *_OFF))
_ASKED = {"role": "user", "content": "a"}
_SAID = "Zyx"  # no template writes it


def read_generation(folder: Path) -> dict[str, Any]:
    """The fields of a folder's `generation_config.json`; none without one. Those that are not applied are told.

    Raises:
      ValueError: naming the file, if it is not JSON or its end ids are no ids.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    fields = read_json(path)
    if any(type(i) is not int for i in _ids(fields.get("eos_token_id"))):
        raise ValueError(f"{path}: field 'eos_token_id' = {fields['eos_token_id']!r}: expected an id, or a list of ids")
    if told := [f"{name} = {str(fields[name])[:60]}" for name, off in _REWRITES.items() if fields.get(name) not in off]:
        _log.warning("%s: not applied, at temperature 0 too: %s", path, ", ".join(told))
    return fields


def with_ends(
    config: ModelConfig,
    fields: dict[str, Any],
    generation: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    end_of_turn: str | None,
    where: str,
) -> ModelConfig:
    """The config with all ids that end a text, and the one that ends a reply.

    Texts end as `transformers` ends them: with the ids of `generation_config.json`, else of `config.json`; where
    neither has one, with the tokenizer's. Replies end with what the chat template writes after them, and so do texts.

    Args:
      config: as read from `config.json`.
      fields: of `config.json`.
      generation: of `generation_config.json`.
      tokenizer: the model's, if it has one.
      end_of_turn: the token that ends a reply instead, or its id.
      where: the file, for messages.

    Raises:
      ValueError: for an `end_of_turn` that is not one token of this model.
    """
    inside = tuple(i for i in _ids(generation.get("eos_token_id")) if 0 <= i < config.vocab_size)
    ends = inside or (config.eos_ids if fields.get("eos_token_id") is not None else ())
    if not ends and tokenizer is not None:
        ends = tuple(i for i in _ids(tokenizer.eos_token_id) if i < config.vocab_size)
    ends = ends or config.eos_ids
    last = None
    if end_of_turn is not None:
        last = _token_id(end_of_turn, config, tokenizer, where)
    elif tokenizer is not None and tokenizer.chat_template:
        last = _template_end(tokenizer, config, ends, where)
    return dataclasses.replace(config, eos_ids=tuple(dict.fromkeys((*ends, *_ids(last)))), reply_end=last)


def _ids(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else () if value is None else (value,)


def _token_id(name: str, config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None, where: str) -> int:
    found = {} if tokenizer is None else tokenizer.get_vocab()
    index = found.get(name, int(name) if name.isdecimal() else -1)
    if not 0 <= index < config.vocab_size:
        raise ValueError(f"end_of_turn = {name!r}: not a token of {where}, nor an id below {config.vocab_size}")
    return index


def _template_end(tokenizer: Any, config: ModelConfig, ends: tuple[int, ...], where: str) -> int | None:
    """The id that ends a reply under the template; the first of `ends` where it writes none, which is told."""
    tail = template_tail(tokenizer)
    written = first_control(tokenizer, tail)
    if written is not None and written < config.vocab_size:
        if written not in ends:
            token = tokenizer.convert_ids_to_tokens(written)
            _log.warning("%s: the chat template ends replies with %r: it joins the end ids %s", where, token, ends)
        return written
    if tail.strip():
        _log.warning("%s: the chat template ends replies with %r, no token: %s ends them", where, tail, ends[:1])
    return ends[0] if ends else None


def template_tail(tokenizer: Any) -> str:
    """What the chat template writes after the last reply of a chat; empty where it refuses one of two turns."""
    try:
        text = tokenizer.apply_chat_template([_ASKED, {"role": "assistant", "content": _SAID}], tokenize=False)
    except Exception:  # jinja2 raises what the template raises
        return ""
    return text.rpartition(_SAID)[2] if _SAID in text else ""


def first_control(tokenizer: Any, text: str) -> int | None:
    """The first id of a text that is a token of its own, outside the vocabulary that spells texts; blanks are not."""
    own = {i for token, i in tokenizer.get_added_vocab().items() if token.strip()} | set(tokenizer.all_special_ids)
    return next((i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i in own), None)
