"""Chats with a language model, or completes a file of prompts, streaming to the terminal.

pairgrpo generate --model smollm2

pairgrpo generate --model smollm2 --prompt "What is the capital of France?"

pairgrpo generate --model some/folder --prompts prompts.jsonl --out replies.jsonl
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax

from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.commands.exported import chat_of, exported
from pairgrpo_jax.core.bounds import AtLeast, Seed, Settings, require_idle
from pairgrpo_jax.lm import Model, generate, load_model
from pairgrpo_jax.lm.files.text_files import check_mark
from pairgrpo_jax.lm.files.tokenizer import check_ids, encode, encode_chat, with_chat
from pairgrpo_jax.lm.models.chat import Chat

LONGEST = 256  # tokens of a reply, where none are named


@dataclasses.dataclass(frozen=True)
class Args(Settings):
    """What to generate, and how.

    Attributes:
      model: a folder, a run of pairgrpo align, a .gguf file, a hub repository, or smollm2.
      ignore_fields: fields of its config to load without.
      end_of_turn: the token that ends a reply, where the chat template does not write it.
      prompt: answer this one message and stop.
      prompts: a file of prompts: .txt (one a line) or .jsonl (field "prompt").
      out: where the replies to `prompts` go, as .jsonl; the terminal if absent.
      chat: put prompts through the model's chat template.
      system: a system message for the chat template.
      max_new_tokens: the longest reply; None: 256, or what the model's context leaves after the longest prompt.
      num_samples: replies to each prompt of `prompts`.
      batch_size: prompts of `prompts` completed together.
      temperature: 0 takes the most likely token.
      top_k: sample from the k most likely tokens.
      top_p: sample from a nucleus.
      min_p: sample from tokens likely enough relative to the first.
      stop: texts that end a reply.
      seed: of the samples.
      verbose: log compilations.
      format: how conversations become text.
    """

    model: str = "smollm2"
    ignore_fields: tuple[str, ...] = ()
    end_of_turn: str | None = None
    prompt: str | None = None
    prompts: Path | None = None
    out: Path | None = None
    chat: bool = True
    system: str | None = None
    max_new_tokens: Annotated[int | None, AtLeast(1)] = None
    num_samples: Annotated[int, AtLeast(1)] = 1
    batch_size: Annotated[int, AtLeast(1)] = 8
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: Seed = 0
    verbose: bool = False
    format: Chat = dataclasses.field(default_factory=Chat)

    def __post_init__(self):
        super().__post_init__()
        idle, why = ("prompt",), "beside prompts"
        if self.prompts is None:
            idle, why = ("out", "num_samples", "batch_size"), "without prompts"
        for name in idle:
            require_idle(self, name, why)
        if not self.chat:
            require_idle(self, "system", "without a chat template")
            for field in dataclasses.fields(Chat):
                require_idle(self.format, field.name, "without a chat template")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt: an empty message; leave it out to chat")
        if not all(self.stop):
            raise ValueError("stop: an empty text would end every reply; leave it out")

    def opening(self) -> list[dict[str, str]]:
        """Returns what stands before the first turn."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def sampling(self, model: Model, prompts: Sequence[list[int]]) -> dict:
        """Returns the options of `generate` for these prompts."""
        names = ("temperature", "top_k", "top_p", "min_p")
        room = min(model.config.room(len(ids)) for ids in prompts)
        longest = self.max_new_tokens or max(1, min(LONGEST, room))
        return {name: getattr(self, name) for name in names} | {"max_new_tokens": longest, "stop_strings": self.stop}


def encode_messages(model: Model, messages: list[dict[str, str]], chat: bool) -> list[int]:
    """Returns the token ids of a conversation, or of its last text without a template."""
    tokenizer = model.tokenizer
    ids = encode_chat(tokenizer, messages, model.chat) if chat else encode(tokenizer, messages[-1]["content"])
    check_ids(tokenizer, ids, model.config.vocab_size)
    return ids


def reply(model: Model, args: Args, ids: list[int], key: jax.Array) -> str:
    """Prints a reply as it comes, and returns it."""
    text, shown = "", 0

    def show(tokens, lengths) -> None:
        nonlocal text, shown
        ids = tokens[0, 0, : lengths[0, 0]].tolist()
        text = model.tokenizer.decode(ids, skip_special_tokens=True)
        whole = text.rstrip("\ufffd")  # a character split between two tokens: wait for it
        sys.stdout.write(whole[shown:])
        sys.stdout.flush()
        shown = len(whole)

    generate(model, model.params, [ids], key=key, on_tokens=show, **args.sampling(model, [ids]))
    print(text[shown:])
    return text


def talk(model: Model, args: Args) -> None:
    """Chats until the end of input or Ctrl-C, or answers `args.prompt`."""
    try:
        _turns(model, args)
    except (EOFError, KeyboardInterrupt):
        print()


def _turns(model: Model, args: Args) -> None:
    messages, key = args.opening(), jax.random.key(args.seed)
    asked = iter(lambda: input("\n> ").strip(), None) if args.prompt is None else [args.prompt]
    for text in asked:
        if text == "/new" and args.prompt is None:
            messages = args.opening()
        elif text:
            messages.append({"role": "user", "content": text})
            key, now = jax.random.split(key)
            ids = encode_messages(model, messages, args.chat)
            limit = len(ids) + model.config.room(len(ids))
            if args.prompt is None and len(ids) + (args.max_new_tokens or 1) > limit:
                messages.pop()
                print(f"with this there would be {len(ids)} tokens, of {limit} in all; say less, or /new to start over")
            else:
                messages.append({"role": "assistant", "content": reply(model, args, ids, now)})


def read_prompts(path: Path) -> list[str]:
    """Reads a .txt or .jsonl file of prompts.

    Raises:
      ValueError: naming the file and the line that has no prompt, or for a file of another kind.
    """
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl", ""):
        raise ValueError(f"prompts: {path} must be .txt (a prompt a line) or .jsonl (a field 'prompt' a line)")
    data = path.read_bytes()
    check_mark(path, data)
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8: {e}") from e
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(json.loads(line)["prompt"] if kind == ".jsonl" else line.rstrip("\r"))
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path}:{number}: expected an object with a field 'prompt'") from e
        if not isinstance(prompts[-1], str):
            raise ValueError(f"{path}:{number}: field 'prompt' must be text, got {prompts[-1]!r}")
    if not prompts:
        raise ValueError(f"{path}: no prompts in the file")
    return prompts


def complete(model: Model, args: Args, prompts: list[str]) -> None:
    """Completes a list of prompts, one line of JSON for each."""
    sink = args.out.open("w", encoding="utf-8") if args.out else sys.stdout
    keys = jax.random.split(jax.random.key(args.seed), len(prompts) * args.num_samples)
    keys = keys.reshape(len(prompts), args.num_samples)
    ids = [encode_messages(model, [*args.opening(), {"role": "user", "content": x}], args.chat) for x in prompts]
    options: dict[str, Any] = args.sampling(model, ids) | {"num_samples": args.num_samples}
    for start in range(0, len(prompts), args.batch_size):
        part = slice(start, start + args.batch_size)
        out = generate(model, model.params, ids[part], key=keys[part], **options)
        for text, tokens, lengths in zip(prompts[part], out.tokens, out.lengths):
            rows = [row[:n].tolist() for row, n in zip(tokens, lengths)]
            replies = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
            print(json.dumps({"prompt": text, "replies": replies}), file=sink, flush=True)
    if args.out:
        sink.close()


def main(words: Sequence[str]) -> None:
    """Runs the command line."""
    args = parse(Args(), words, "pairgrpo generate", __doc__)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING)
    prompts = None if args.prompts is None else read_prompts(args.prompts)
    model = load_model(exported(args.model), ignore_fields=args.ignore_fields, end_of_turn=args.end_of_turn)
    model, _ = with_chat(model, chat_of(args.model, args.format))
    if model.tokenizer is None:
        raise ValueError(f"{args.model}: no tokenizer, so no text can be generated")
    if prompts is not None:
        complete(model, args, prompts)
    else:
        talk(model, args)
