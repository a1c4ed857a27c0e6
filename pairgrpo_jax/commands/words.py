"""Words of a command line that are read before it is parsed as a whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def peek(words: Sequence[str], name: str, default: str) -> str:
    """The value of `--name`, the last where it is repeated, before the words are parsed as a whole."""
    found = default
    for word, after in zip(words, [*words[1:], default]):
        if word == f"--{name}":
            found = after
        if word.startswith(f"--{name}="):
            found = word.split("=", 1)[1]
    return found


def take(words: Sequence[str], options: Collection[str]) -> tuple[list[list[str]], list[str]]:
    """The words of `options` such as "--name", each option with the word that is its value, and all other words."""
    taken, rest, left = [], [], list(words)
    while left:
        word = left.pop(0)
        if word.partition("=")[0] not in options:
            rest.append(word)
        else:
            taken.append([word, left.pop(0)] if "=" not in word and left else [word])
    return taken, rest
