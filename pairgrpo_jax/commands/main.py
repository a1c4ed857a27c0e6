"""`pairgrpo`: finds the sub-command, which imports what it needs."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

from pairgrpo_jax.commands.readers import free_to_leave

COMMANDS = {
    "cheetah": "train HalfCheetah: pairgrpo cheetah METHOD",
    "align": "align a language model: pairgrpo align METHOD",
    "generate": "chat with a model, or complete a file of prompts",
    "evaluate": "which of two models a held-out judge prefers",
    "judge": "measure a judge on labelled pairs before it is trusted",
    "reward-model": "train a reward model on preferences",
    "report": "a page of many runs: tables with intervals, curves, versions",
    "plan": "will a run fit, and what does it cost: pairgrpo plan align METHOD",
    "theory": "what is true of the methods, checked on exact problems",
}
USAGE = "usage: pairgrpo COMMAND ...\n\nThe Pair-GRPO family in JAX.\n\n"
USAGE += "".join(f"  {name:13} {about}\n" for name, about in COMMANDS.items())
TOGETHER = ("cheetah", "align", "evaluate", "reward-model")  # what several processes can do as one
USAGE += f"\n{', '.join(TOGETHER)}: several processes with --coordinator HOST:PORT --processes N --process I,\n"
USAGE += "the same words in each, or with --distributed auto.\n"
USAGE += "\n`pairgrpo COMMAND --help` has the rest."


def main() -> None:
    """Runs the sub-command that the first word names."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "--version"):
        with free_to_leave():
            print(_version() if name == "--version" else USAGE)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"pairgrpo: error: command {name!r} is unknown; {hint}", file=sys.stderr)
        sys.exit(2)
    run(name, words)


def _version() -> str:
    from pairgrpo_jax import __version__

    return f"pairgrpo_jax {__version__}"


def run(name: str, words: list[str] | None = None) -> None:
    """Runs a sub-command, with the words of the command line unless others are given, and exits."""
    from pairgrpo_jax.commands.cli import run_main, start_of
    from pairgrpo_jax.commands.compiled import keep_compiled
    from pairgrpo_jax.training import processes

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not there, which nothing here needs

    def command() -> int | None:
        rest = keep_compiled(sys.argv[1:] if words is None else words)
        if name in TOGETHER:
            how, rest = start_of(rest, f"pairgrpo {name}")
            processes.start(how)
        with processes.failing_together():
            module = importlib.import_module(f"pairgrpo_jax.commands.{name.replace('-', '_')}")
            return module.main(rest)

    with processes.leaving_together():
        run_main(command, f"pairgrpo {name}")
