"""Tokenizers and chat templates: from a folder, or rebuilt exactly from GGUF fields."""

import copy
import dataclasses
import functools
import logging
import re
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pairgrpo_jax.lm.files import sentencepiece
from pairgrpo_jax.lm.files.sentencepiece import CONTROL, NORMAL, USER_DEFINED
from pairgrpo_jax.lm.files.text_files import check_mark
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.models.model import Model

_log = logging.getLogger("pairgrpo_jax.lm")
_PLAIN = Chat()
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = "|".join(rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{a}{_LOWER}{b}{_ENDINGS}?" for a, b in ("*+", "+*"))
_LLAMA_3 = _WORDS % ("{1,3}", "")
# Phi-4 and OLMo 2 split as `dbrx`, SmolLM3 as `smaug-bpe`, Phi-4-mini as `gpt-4o`.
_SPLITS: dict[str, str] = dict.fromkeys(("llama-bpe", "dbrx", "smaug-bpe"), _LLAMA_3)
_SPLITS |= {"qwen2": _WORDS % ("", ""), "gpt-4o": (_CASED + _REST) % ("{1,3}", "/")}
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "gpt2": "gpt-2"}
_KEEP_SPACE = ("<s>", "<unk>", "<|endoftext|>")  # of Phi-3's added tokens, those that leave the text behind them alone
_DIRECTIVES = "a A w d b B m y Y H I p M S f z Z j U W c x X G u V e D F T R h -d -m -y -j -H -I -M -S".split()
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_UNKNOWN = ("tekken.json", "*.tiktoken", "*.model")


def _kind(fields: dict[str, Any]) -> str:
    """Returns `tokenizer.ggml.pre`, by one name for all that llama.cpp takes for the same."""
    kind = fields.get("tokenizer.ggml.pre")
    return _ALIASES.get(kind, kind) if isinstance(kind, str) else ""


def _pre_tokenizer(kind: str) -> pre_tokenizers.PreTokenizer | None:
    """Returns how llama.cpp's `tokenizer.ggml.pre` splits text, or None if it is not known."""
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "gpt-2":
        return whole
    if kind == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    if kind not in _SPLITS:
        return None
    split = pre_tokenizers.Split(Regex(_SPLITS[kind]), "isolated")
    return pre_tokenizers.Sequence([split, pieces])


def from_gguf(fields: dict[str, Any], where: str) -> PreTrainedTokenizerBase | None:
    """Rebuilds the tokenizer of a GGUF file.

    `transformers` has a converter of its own; it drops the split before digits, and real texts
    come out different.

    Args:
      fields: the file's metadata.
      where: the file, for error messages.

    Returns:
      The tokenizer, or None where the file has none of a kind known here (SentencePiece, and
      byte-level BPE of GPT-2, SmolLM, Llama 3, Qwen2, OLMo 2 and Phi-4, are); what is not known is told.

    Raises:
      ValueError: if the fields are malformed.
    """
    kind, model = _kind(fields), fields.get("tokenizer.ggml.model")
    splitter = _pre_tokenizer(kind)
    if model != "llama" and (model != "gpt2" or splitter is None):
        if model is not None:
            field = "tokenizer.ggml.pre" if model == "gpt2" else "tokenizer.ggml.model"
            _log.warning("%s: no tokenizer: field '%s' = %r is not known", where, field, fields.get(field))
        return None
    tokens = _strings(fields, "tokenizer.ggml.tokens", where)
    types = fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(f"{where}: field 'tokenizer.ggml.token_type': expected {len(tokens)}")
    if model == "llama":
        tokenizer = sentencepiece.build(tokens, types, fields, where)
    else:
        tokenizer = _byte_level(tokens, kind, splitter, fields, where)
    strips = model == "llama" and fields.get("general.architecture") == "phi3"
    tokenizer.add_tokens(_added(tokens, types, strips=strips))
    return _wrap(tokenizer, tokens, fields, where)


def _added(tokens: list[str], types: list[int], *, strips: bool) -> list[AddedToken]:
    """Returns the tokens that are taken whole; with `strips`, as Phi-3's, they take the white space behind them too."""
    return [
        AddedToken(token, special=kind == CONTROL, normalized=False, rstrip=strips and token not in _KEEP_SPACE)
        for token, kind in zip(tokens, types)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _byte_level(tokens: list[str], kind: str, splitter: Any, fields: dict[str, Any], where: str) -> Tokenizer:
    merges = _strings(fields, "tokenizer.ggml.merges", where)
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    known = all(len(p) == 2 and p[0] in vocab and p[1] in vocab and p[0] + p[1] in vocab for p in pairs)
    if len(vocab) != len(tokens) or not known:
        raise ValueError(f"{where}: field 'tokenizer.ggml.merges' does not fit the tokens")
    tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.normalizer = normalizers.NFC() if kind == "qwen2" else None
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer, tokens: list[str], fields: dict[str, Any], where: str):
    special = {}
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    for ours, theirs in names.items():
        field = f"tokenizer.ggml.{theirs}_token_id"
        index = fields.get(field)
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < len(tokens):
            raise ValueError(f"{where}: field '{field}' = {index!r}: not one of the tokens")
        special[f"{ours}_token"] = tokens[index]
    template = fields.get("tokenizer.chat_template")
    # Where the file does not say, as in llama.cpp.
    adds_bos = fields.get("tokenizer.ggml.model") == "llama" or _kind(fields) == "llama-bpe"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        add_bos_token=fields.get("tokenizer.ggml.add_bos_token", adds_bos) is True,
        add_eos_token=fields.get("tokenizer.ggml.add_eos_token") is True,
        **special,
    )


def _strings(fields: dict[str, Any], name: str, where: str) -> list[str]:
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise ValueError(f"{where}: field '{name}': expected a list of strings")
    return value


def from_folder(folder: Path) -> PreTrainedTokenizerBase | None:
    """Loads the tokenizer of a model folder, or returns None if it has none; files of other kinds are told.

    Raises:
      ValueError: if the files are malformed.
    """
    if not any((folder / name).exists() for name in _FILES):
        if others := sorted(path.name for pattern in _UNKNOWN for path in folder.glob(pattern)):
            _log.warning("%s: no tokenizer: files of the kind of %s are not known", folder, ", ".join(others[:8]))
        return None
    for path in (
        *folder.glob("*token*.json"),
        *folder.glob("*.jinja"),
        *folder.glob("additional_chat_templates/*.jinja"),
    ):
        with open(path, "rb") as file:
            check_mark(path, file.read(4))
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as e:  # its parsers raise bare exceptions of their own
        raise ValueError(f"{folder}: cannot read the tokenizer: {e}") from e


def check_vocab(tokenizer: Any, vocab_size: int, eos_ids: Sequence[int], where: str) -> None:
    """Raises ValueError if the tokenizer is another model's: an id without a row, or none that ends a text.

    Tokens that were added to a vocabulary may have no row, as Gemma 3's `<image_soft_token>`; see `check_ids`.
    """
    vocab, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    highest = max((i for token, i in vocab.items() if token not in added), default=-1)
    if highest >= vocab_size:
        raise ValueError(f"{where}: the tokenizer's ids go up to {highest}, field 'vocab_size' = {vocab_size}")
    if eos_ids and not set(vocab.values()).intersection(eos_ids):
        raise ValueError(f"{where}: field 'eos_token_id' = {list(eos_ids)}: the tokenizer has none of these ids")
    beyond = sorted(token for token, i in added.items() if i >= vocab_size)
    if beyond:
        _log.info("%s: the model has no row for %s; texts with them are refused", where, ", ".join(beyond[:10]))


def check_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], vocab_size: int) -> None:
    """Raises ValueError that names a token of a text for which the model has no row."""
    beyond = next((i for i in ids if i >= vocab_size), None)
    if beyond is not None:
        token = tokenizer.convert_ids_to_tokens(beyond)
        raise ValueError(
            f"the text contains {token!r}, whose id {beyond} has no row in the model (vocab_size = {vocab_size}); "
            "take it out of the text"
        )


def added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What a tokenizer itself puts before and after a text; flags such as `add_bos_token` need not agree with it."""
    whole: Any = tokenizer("a")["input_ids"]
    bare: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of a text that goes on: with what the tokenizer puts before it, once, and nothing after it."""
    return with_bos(tokenizer, text_ids(tokenizer, text))


def with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Returns ids behind what the tokenizer puts before a text (BOS), exactly once; as they are where it adds none."""
    before = added_ids(tokenizer)[0]
    return ids if ids[: len(before)] == before else [*before, *ids]


_OPEN, _CLOSE = "\ue000", "\ue001"  # around the id of a hidden control token; with nothing between, the first itself


def hide_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Returns a text whose names of control tokens are marks, which `text_ids` with `hidden` makes plain text of."""
    ids = {token.content: i for i, token in _control_tokens(tokenizer)}
    found = "|".join([f"{_OPEN}(?=[0-9]*{_CLOSE})", *map(re.escape, ids)])
    return re.sub(found, lambda match: _mark(ids.get(match[0], "")), text)


def _mark(index: int | str) -> str:
    return f"{_OPEN}{index}{_CLOSE}"


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, Any]]:
    known = [(i, token) for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    return sorted(known, key=lambda x: -len(x[1].content))


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, hidden: bool = False) -> list[int]:
    """Returns the ids of a text, nothing before or after it; by option with the marks of `hide_control_tokens`.

    Raises:
      ValueError: if there are marks, and the tokenizer is not of the `tokenizers` library.
    """
    if not hidden or _OPEN not in text:
        whole: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
        return whole
    swapped, stand_in, back = _swapped(tokenizer)
    found = "|".join(map(re.escape, swapped))
    ids: list[int] = []
    *parts, last = text.split(_mark(""))  # apart, so that what stands behind cannot make it a mark
    for part in [*(part + _OPEN for part in parts), last]:
        plain = re.sub(found, lambda match: swapped[match[0]], part)
        ids += stand_in(plain, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [back.get(i, i) for i in ids]


@functools.lru_cache(maxsize=4)
def _swapped(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, str], Any, dict[int, int]]:
    """Marks and names of control tokens, each for the other; a tokenizer that takes marks whole in place of names, so
    that the text around either is as it always is; and the id that each of its marks stands for."""
    if not tokenizer.is_fast:
        raise ValueError("control_tokens='text': needs a tokenizer of the `tokenizers` library (tokenizer.json)")
    known = _control_tokens(tokenizer)
    stand_in: Any = copy.deepcopy(tokenizer)
    names = {_mark(i): token.content for i, token in known}
    how = ("lstrip", "rstrip", "single_word")
    stand_in.add_tokens(
        [AddedToken(_mark(i), normalized=False, **{x: getattr(token, x) for x in how}) for i, token in known]
    )
    back = {stand_in.convert_tokens_to_ids(_mark(i)): i for i, _ in known}
    return names | {name: mark for mark, name in names.items()}, stand_in, back


class TemplateRefusal(ValueError):
    """A chat template does not take these messages: roles that do not alternate, or a system turn."""


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], chat: Chat = _PLAIN, *, ask: bool
) -> str:
    """Returns the text of `{role, content}` messages, with `ask` up to where the next reply begins.

    Raises:
      ValueError: if the tokenizer has no chat template.
      TemplateRefusal: with the template's words, if it refuses the messages or leaves the system message out.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; complete plain text instead")
    messages = list(fold_system(messages) if chat.system_turn == "fold" else messages)
    if chat.control_tokens == "text":
        messages = [m | {"content": hide_control_tokens(tokenizer, m["content"])} for m in messages]
    system = messages[0]["content"].strip() if messages and messages[0]["role"] == "system" else ""
    remedy = "; --system-turn fold puts the system message before the first user turn" if system else ""
    try:
        text: Any = tokenizer.apply_chat_template(
            messages,
            chat_template=_on_day(tokenizer.get_chat_template(), chat.day),
            tokenize=False,
            add_generation_prompt=ask,
            **chat.options,
        )
    except Exception as e:  # jinja2 raises what the template raises
        raise TemplateRefusal(f"the chat template refuses these messages: {e}{remedy}") from e
    if system not in text:
        raise TemplateRefusal(f"the chat template leaves the system message out{remedy}")
    words = re.findall(r"[A-Za-z0-9]+", messages[-1]["content"]) if ask and messages else []
    if max(words, key=len, default="").casefold() not in text.casefold():
        raise TemplateRefusal(
            "the chat template leaves the text of the last turn out; it may take lists of parts alone"
        )
    return text


def _on_day(template: str, day: date | None) -> str:
    """A template that prints `day` for today's date, by a macro; `transformers` takes no function for its own."""
    if day is None or "strftime_now" not in template:
        return template
    words = {"%%": "\0"} | {f"%{x}": day.strftime(f"%{x}") for x in _DIRECTIVES} | {"\0": "%"}
    steps = "".join(f"|replace({old!r}, {new!r})" for old, new in words.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def with_chat(model: Model, chat: Chat) -> tuple[Model, Chat]:
    """Returns the model that writes conversations so, and what to store: with the date, if its template prints one.

    Raises:
      ValueError: for an option that the template does not name.
    """
    template = str(getattr(model.tokenizer, "chat_template", None) or "")
    for name in chat.options:
        if not re.search(rf"\b{name}\b", template):
            raise ValueError(f"template_option: the chat template does not name {name!r}, so it has no effect")
    if "strftime_now" in template and not chat.template_date:
        chat = chat.replace(template_date=date.today().isoformat())
        _log.warning("the chat template prints a date: %s from now on (--template-date)", chat.template_date)
    return dataclasses.replace(model, chat=chat), chat


def fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Returns messages whose system text stands before the text of the first user turn."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = [m for m in messages if m["role"] != "system"]
    first = next((i for i, m in enumerate(rest) if m["role"] == "user"), None)
    if not system or first is None:
        return list(messages)
    folded = rest[first] | {"content": "\n\n".join([*system, rest[first]["content"]])}
    return [*rest[:first], folded, *rest[first + 1 :]]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], chat: Chat = _PLAIN
) -> list[int]:
    """Returns the prompt that asks for the next reply to a list of `{role, content}` messages.

    Raises:
      ValueError: if the tokenizer has no chat template; TemplateRefusal if the template refuses the messages.
    """
    text = render(tokenizer, messages, chat, ask=True)
    return with_bos(tokenizer, text_ids(tokenizer, text, hidden=chat.control_tokens == "text"))


def _ids_behind(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, *, hidden: bool) -> list[int]:
    """Returns the ids of a text where it stands behind a prompt; alone, SentencePiece puts a space before it."""
    before, whole = (text_ids(tokenizer, x, hidden=hidden) for x in (prompt, prompt + text))
    if whole[: len(before)] == before:
        return whole[len(before) :]
    warnings.warn(
        "some replies begin with what the tokenizer joins to the prompt; their ids are those alone", stacklevel=4
    )
    return text_ids(tokenizer, text, hidden=hidden)


def reply_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, ends: Sequence[int], end: int, chat: Chat = _PLAIN
) -> list[int]:
    """Returns a reply as the chat template renders it after a prompt, thinking blocks included, up to its end id.

    Its ids are those in the text of prompt and reply, but for a reply whose beginning makes one token with the prompt's
    end: `encode_chat` gives the prompt as it is before a reply, so such a reply is tokenised alone, with a warning.

    Args:
      tokenizer: with a template.
      text: the reply.
      ends: ids that end a reply.
      end: the one that ends this reply, whichever of them the template writes.
      chat: what the template is given.

    Raises:
      TemplateRefusal: if the template takes no reply, rewrites it, or writes the prompt otherwise once it is answered.
    """
    hidden, question = chat.control_tokens == "text", {"role": "user", "content": "a"}
    plain = hide_control_tokens(tokenizer, text) if hidden else text
    asked = render(tokenizer, [question], chat, ask=True)
    said = render(tokenizer, [question, {"role": "assistant", "content": text}], chat, ask=False)
    if not said.startswith(asked):
        raise TemplateRefusal("the chat template writes a prompt otherwise once it is answered")
    said = said[len(asked) :]
    place = said.rfind(plain.strip()) if plain.strip() else -1
    if place < 0:
        raise TemplateRefusal("the chat template rewrites the text of some replies")
    after = place + len(plain.strip())
    closing = sum(i in ends for i in text_ids(tokenizer, said[after:], hidden=hidden))
    ids = _ids_behind(tokenizer, asked, said if closing else said[:after], hidden=hidden)
    if not closing:
        return [*ids, end]
    places = [n for n, i in enumerate(ids) if i in ends]
    return [*ids[: places[-closing]], end]
