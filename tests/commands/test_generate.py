"""What `pairgrpo generate` shows, asks and refuses; what the model says is made up here, in bytes."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from byte_model import write_model

from pairgrpo_jax.commands import generate
from pairgrpo_jax.commands.generate import Args
from pairgrpo_jax.lm import Generation, load_model
from pairgrpo_jax.lm.files.tokenizer import encode


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "model"
    write_model(folder)
    return load_model(folder)


@pytest.fixture
def asked(monkeypatch):
    """The prompts that the model is given, to each of which it says "ok"."""
    texts = []

    def say(model, params, prompts, *, key, num_samples=1, on_tokens=None, **_):
        texts.extend(map(model.tokenizer.decode, prompts))
        tokens = np.tile(encode(model.tokenizer, "ok"), (len(prompts), num_samples, 1))
        lengths = np.full(tokens.shape[:2], 2)
        if on_tokens is not None:
            on_tokens(tokens, lengths)
        return Generation(tokens, lengths, np.zeros(tokens.shape), key)

    monkeypatch.setattr(generate, "generate", say)
    return texts


@pytest.mark.parametrize(("steps", "shown"), [((1, 4, 5), ["a", "é", "é"]), ((1, 2), ["a", ""]), ((4,), ["aé"])])
def test_a_reply_is_shown_up_to_a_cut_character_and_at_the_end_as_it_is(model, monkeypatch, capsys, steps, shown):
    ids, said = encode(model.tokenizer, "aéé"), []

    def say(*_, on_tokens, **__):
        for step in steps:
            on_tokens(np.array([[ids]]), np.array([[step]]))
            said.append(capsys.readouterr().out)

    monkeypatch.setattr(generate, "generate", say)
    text = generate.reply(model, Args(), ids, None)
    assert said == shown and text == model.tokenizer.decode(ids[: steps[-1]])
    assert "".join(shown) + capsys.readouterr().out == text + "\n"


def test_a_new_conversation_is_asked_for_by_hand_alone(model, asked, monkeypatch):
    generate.talk(model, Args(prompt="/new"))
    assert asked == ["u/new\na"]
    lines = iter(["One", "", "Two", "/new", "Three"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    generate.talk(model, Args(system="Short."))
    assert asked[1:] == ["sShort.\nuOne\na", "sShort.\nuOne\naok\nuTwo\na", "sShort.\nuThree\na"]


def test_a_chat_goes_on_after_a_text_that_does_not_fit(model, asked, monkeypatch, capsys):
    lines = iter(["One", "x" * model.config.context, "Two"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    generate.talk(model, Args())
    assert asked == ["uOne\na", "uOne\naok\nuTwo\na"]
    assert f"of {model.config.context} in all; say less, or /new to start over" in capsys.readouterr().out


def test_a_reply_is_by_default_as_long_as_the_context_lets_it(model):
    context = model.config.context
    for prompt, longest in ((1, min(256, context - 1)), (context - 7, 7), (context, 1)):  # the last one is refused
        assert Args().sampling(model, [[5], [5] * prompt])["max_new_tokens"] == longest
    assert Args(max_new_tokens=300).sampling(model, [[5] * context])["max_new_tokens"] == 300
    wide = dataclasses.replace(model, config=dataclasses.replace(model.config, max_positions=300))
    assert Args().sampling(wide, [[5]])["max_new_tokens"] == 256


def test_a_file_of_prompts_is_completed_under_the_system_message(model, asked, tmp_path):
    files = {"prompts": tmp_path / "in.txt", "out": tmp_path / "out.jsonl"}
    generate.complete(model, Args(system="Short.", num_samples=2, **files), ["One", "Two"])
    assert asked == ["sShort.\nuOne\na", "sShort.\nuTwo\na"]
    rows = [json.loads(line) for line in files["out"].read_text().splitlines()]
    assert rows == [{"prompt": text, "replies": ["ok", "ok"]} for text in ("One", "Two")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "in.txt", "--prompt", "Hi"], "prompt='Hi' has no effect beside prompts"),
        (["--out", "out.jsonl"], "has no effect without prompts"),
        (["--prompt", "Hi", "--num-samples", "2"], "num_samples=2 has no effect without prompts"),
        (["--batch-size", "2"], "batch_size=2 has no effect without prompts"),
        (["--no-chat", "--system", "Short."], "system='Short.' has no effect without a chat template"),
        (["--no-chat", "--control-tokens", "text"], "control_tokens='text' has no effect without a chat template"),
        (["--no-chat", "--template-option", "a=1"], "template_option=('a=1',) has no effect without a chat template"),
        (["--no-chat", "--system-turn", "fold"], "system_turn='fold' has no effect without a chat template"),
        (["--seed", "99999999999999999999"], "seed must be in [0, 4294967295]"),
        (["--seed=-1"], "seed must be in [0, 4294967295]"),
        (["--prompt", " "], "prompt: an empty message"),
        (["--prompts", "in.txt", "--num-samples", "0"], "num_samples must be >= 1, got 0"),
        (["--stop", ""], "stop: an empty text would end every reply"),
        (["--prompts", "p.json"], "prompts: p.json must be .txt (a prompt a line) or .jsonl"),
    ],
)
def test_options_without_effect_are_refused(run_here, words, message):
    done = run_here(generate.main, "--model", "nowhere", *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr


@pytest.mark.parametrize("name", ["p.jsonl", "p.JSONL"])
def test_lines_of_prompts_may_hold_separators_of_unicode(tmp_path, name):
    texts = ["a\u2028b\x85c", "d"]
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    (tmp_path / name).write_bytes("\r\n".join([*rows, ""]).encode())
    assert generate.read_prompts(tmp_path / name) == texts
    (tmp_path / "p.TXT").write_bytes("\r\n".join([*texts, ""]).encode())
    assert generate.read_prompts(tmp_path / "p.TXT") == texts


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    write_model(tmp_path / "model")
    (tmp_path / "p.txt").write_text("One\n" * 4)
    words = ["--model", "model", "--prompts", "p.txt", "--max-new-tokens", "2", "--batch-size", "1"]
    program = [sys.executable, "-c", "from pairgrpo_jax.commands.main import main; main()", "generate", *words]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(program, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 141 and "error" not in done.stderr and "Broken pipe" not in done.stderr
