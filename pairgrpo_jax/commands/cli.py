"""What the sub-commands share: how words become settings, and errors of one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
import tyro

from pairgrpo_jax.commands.compiled import HELP, OPTION
from pairgrpo_jax.commands.readers import free_to_leave
from pairgrpo_jax.commands.runs import read_settings
from pairgrpo_jax.commands.spelled import leaves
from pairgrpo_jax.commands.words import peek, take
from pairgrpo_jax.core.bounds import from_values
from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.methods import METHODS
from pairgrpo_jax.training import CheckpointError, NonFiniteError
from pairgrpo_jax.training.processes import PeerError, Start

T = TypeVar("T")
_EXTRAS = {"mujoco": "control", "brax": "control", "gymnasium": "control", "imageio": "control", "distrax": "control"}
_EXTRAS |= dict.fromkeys(("transformers", "tokenizers", "datasets", "safetensors", "gguf", "huggingface_hub"), "lm")
_EXTRAS |= {"reasoning_gym": "rewards", "math_verify": "rewards"}
_EXTRAS |= {"openai": "judge", "wandb": "trackers", "mlflow": "trackers"}


def parse(
    default: T,
    words: Sequence[str],
    prog: str,
    about: str | None,
    others: Callable[[str], Sequence[str]] = lambda name: (),
) -> T:
    """Settings from words, `default` for what is not named; nested parts are flat.

    `others` gives the methods whose settings have one of a name that is none here.

    Raises:
      ValueError: for an option that has no effect here; it says whose it is.
    """
    said = io.StringIO()
    if {"-h", "--help"} & {*words}:
        _join_help(default)
    try:
        with contextlib.redirect_stderr(said):
            run, unknown = tyro.cli(
                type(default),
                default=default,
                args=list(words),
                prog=prog,
                description="\n\n".join(filter(None, (about, HELP))),
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
            )
    except SystemExit as end:
        if end.code:
            raise ValueError(_plain(said.getvalue())) from None
        raise
    if unknown:
        raise ValueError(_unknown(unknown[0], default, others))
    return run


def _join_help(settings: Any) -> None:
    """Gives tyro each field's help as one paragraph; it keeps the line breaks of docstrings."""
    classes = filter(dataclasses.is_dataclass, reversed(type(settings).__mro__))
    params = [param for cls in classes for param in docstring_parser.parse_from_object(cls).params]
    helps = {param.arg_name: " ".join((param.description or "").split()) for param in params}
    for field in dataclasses.fields(settings):
        if helps.get(field.name):
            field.metadata = types.MappingProxyType({"help": helps[field.name]})
        if dataclasses.is_dataclass(value := getattr(settings, field.name)):
            _join_help(value)


def start_of(words: Sequence[str], prog: str) -> tuple[Start, list[str]]:
    """How a process finds the others, and the words that say nothing of it.

    Raises:
      ValueError: for options of `Start` that do not fit together.
    """
    names = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Start)]
    taken, rest = take(words, names)
    return parse(Start(), [*itertools.chain(*taken)], prog, None) if taken else Start(), rest


def _plain(framed: str) -> str:
    """The words of tyro's framed error, without its title, its frame and the help that it repeats."""
    lines = [line.strip("│| ") for line in framed.splitlines() if line.strip() and line.strip()[0] not in "╭+╰"]
    ends = [i for i, line in enumerate(lines) if set(line) <= set("─-")]
    lines = lines if framed.lstrip().startswith(("╭", "+")) else lines[ends[0] + 1 :] if ends else lines
    words = itertools.takewhile(lambda x: not set(x) <= set("─-") and not x.startswith("Argument helptext"), lines)
    text = " ".join(words)
    return re.sub(r"^Error parsing (?!--)[\w.]+: ", "", text)


def _unknown(word: str, default: Any, others: Callable[[str], Sequence[str]]) -> str:
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    option = f"--{name.replace('_', '-')}" if word.startswith("-") else repr(word)
    owners = [method.name for method in METHODS if method().has(name)] or others(name)
    if word.startswith("-") and owners:
        return f"{option} is a setting of {', '.join(owners)} and has no effect here"
    options = [OPTION.lstrip("-"), *(field.replace("_", "-") for field in leaves(default))]
    hint = did_you_mean(name.replace("_", "-"), options, "--help lists the options", "--{}")
    return f"{option} is no option here; {hint}"


def parse_run(
    words: Sequence[str],
    methods: Sequence[str],
    preset: Callable[[str, Sequence[str]], T],
    prog: str,
    about: str | None = None,
) -> T:
    """The settings of `METHOD --option value ...`; "hard" where no method is named.

    With `--resume` they are those of the run in `--output`, where there is one, but for what the words change.

    Args:
      words: of the command line, after the sub-command.
      methods: names to choose from.
      preset: `(method, words) -> settings`, which have `output`, `label` (their method's name) and so on.
      prog: the command, for help and errors.
      about: what its settings' help begins with.

    Raises:
      ValueError: for an unknown method, with the nearest.
    """
    words = list(words)
    if words[:1] in (["-h"], ["--help"]):
        first = f"Methods: {', '.join(methods)}. `{prog} METHOD --help` lists the settings that have an effect there."
        told = "\n\n".join(filter(None, (f"{first}\nWithout a method: hard.", about)))
        print(f"usage: {prog} [METHOD] [--option value ...]\n\n{told}")
        sys.exit(0)
    named = bool(words) and not words[0].startswith("-")
    method, rest = (words[0], words[1:]) if named else ("hard", words)
    if method not in methods:
        hint = did_you_mean(method, methods, f"choose one of {', '.join(methods)}")
        raise ValueError(f"method {method!r} is unknown; {hint}")
    default: Any = preset(method, rest)
    folder = Path(peek(rest, "output", str(default.output)))
    if "--resume" in rest and (folder / "config.json").exists():
        before: Any = read_settings(folder, functools.partial(from_values, type(default)))
        if named and before.label != method:
            raise ValueError(f"resume: the run in {folder} is one of {before.label}, not of {method}")
        default, method = before, before.label

    def others(name: str) -> list[str]:
        return [one for one in methods if name in leaves(preset(one, rest))]

    return parse(default, rest, f"{prog} {method}", about, others)


def run_main(main: Callable[[], int | None], prog: str = "pairgrpo") -> None:
    """Runs a program; bad input becomes one line on stderr and exit code 2."""
    try:
        with free_to_leave():
            code = main()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        how = f"pip install 'pairgrpo-jax[{extra}]'" if extra else f"pip install {error.name}"
        _fail(prog, f"package {error.name!r} is missing; install it with: {how}")
    except (ValueError, OSError, CheckpointError) as error:
        _fail(prog, str(error))
    except (NonFiniteError, PeerError) as error:
        _fail(prog, str(error), code=1)
    except KeyboardInterrupt:
        _fail(prog, "interrupted", code=130)
    else:
        sys.exit(code or 0)


def _fail(prog: str, message: str, code: int = 2) -> None:
    print(f"{prog}: error: " + "; ".join(message.splitlines()), file=sys.stderr)
    sys.exit(code)
