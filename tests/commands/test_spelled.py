"""A run's settings as the command line that gives them."""

import shlex

import pytest

from pairgrpo_jax.commands import align_settings, cheetah, cli
from pairgrpo_jax.commands.spelled import command_of
from pairgrpo_jax.core.bounds import from_values, to_values

ALIGN = ("pairgrpo align", align_settings.preset, align_settings.DECIDING)
CHEETAH = ("pairgrpo cheetah", cheetah.preset, cheetah.DECIDING)
LINES = [
    "grpo --seed 101 --operands bfloat16",
    "soft --data tiny --reward harmless-b --seed=3 --learning-rate 0.00123456789",
    "soft --data tiny --judge harmless-b",
    "ppo --data 'a b.jsonl' --reward rewards:f=0.5 --judge '' --lora-targets q v --no-export",
    "hard --reward judge:openai:x --judge-concurrency 3 --comparisons sort --no-both-orders",
    "hard --tracker wandb trackio --lora-targets --resample 0 --top-k 5",
    "grpo --data tiny --system=--x --template-option a=1 b=false",
    "grpo --lora-rank 0 --seed 2",
    "dpo --lora-rank 0 --beta 0.2 --reference-scores cached",
]


def told_again(line, labels, program):
    """Whether the command of a line's settings gives them; and that command, without the program."""
    prog, preset, _ = program
    run = cli.parse_run(shlex.split(line), labels, preset, prog)
    stored = from_values(type(run), to_values(run))
    command = command_of(stored, *program)
    assert command == run.command and command.startswith(f"{prog} ")
    told = command.removeprefix(f"{prog} ")
    return cli.parse_run(shlex.split(told), labels, preset, prog) == run, told


@pytest.mark.parametrize("line", [*align_settings.LABELS, *LINES])
def test_a_run_of_align_is_made_again_by_its_command(line):
    same, told = told_again(line, align_settings.LABELS, ALIGN)
    assert same and (told == line or line in LINES)


@pytest.mark.parametrize("line", [*cheetah.ONLINE, "soft --advantage segment --env brax:spring --steps 1e5 --seeds 3"])
def test_a_run_of_the_cheetah_is_made_again_by_its_command(line):
    same, told = told_again(line, cheetah.ONLINE, CHEETAH)
    assert same and (told == line or line not in cheetah.ONLINE)


def test_where_a_run_is_is_not_told(tmp_path):
    run = cheetah.preset("hard").replace(output=tmp_path, resume=True, seed=2)
    assert command_of(run, *CHEETAH) == "pairgrpo cheetah hard --seed 2"


def test_the_next_seeds_keep_every_other_setting(tmp_path, monkeypatch):
    kept = {"env": "brax:spring", "steps": 1e5, "seeds": 2, "gamma": 0.9}
    run = cheetah.preset("soft").replace(seed=3, output=tmp_path / "a b", checkpoints="gs://mine/run", **kept)
    (line,) = cheetah.another_seed(run)
    beside = {"output": tmp_path / "a b-another-seed", "checkpoints": "gs://mine/run-another-seed"}
    again = cli.parse_run(shlex.split(line)[2:], cheetah.ONLINE, cheetah.preset, CHEETAH[0])
    assert again == run.replace(seed=5, **beside)
    monkeypatch.setattr(cheetah.Run, "command", None)
    assert cheetah.another_seed(run) == []


def test_settings_that_no_words_give_have_no_command():
    run = align_settings.preset("hard").replace(judging=align_settings.judging_of("judge:openai:x"), data="tiny")
    assert command_of(run, *ALIGN) is not None
    assert command_of(run, *ALIGN[:2]) is None
