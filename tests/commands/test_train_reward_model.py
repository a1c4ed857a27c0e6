"""The reward-model command on a tiny random model and a small file."""

import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from pairgrpo_jax.commands import reward_model as program
from pairgrpo_jax.commands.reward_model import Run
from pairgrpo_jax.commands.text_baseline import longer_margins, tfidf_margins
from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.data import Half, fold_of, load_preferences
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.models.lora import TARGETS, LoraConfig
from pairgrpo_jax.lm.rewards import reward_model
from pairgrpo_jax.lm.rewards.reward_model import about_head, load_reward_model
from pairgrpo_jax.lm.rewards.reward_training import pad_pairs
from pairgrpo_jax.lm.rewards.sources import head_source
from pairgrpo_jax.training import RunFolderError, read_metrics

TEMPLATE = """{{ 'cold cold dark ' if loud }}{% for m in messages -%}
{{ 'Human : ' if m.role == 'user' else 'Assistant : ' }}{{ m.content }} {% endfor -%}
{{ 'Assistant : ' if add_generation_prompt }}"""
GOOD, BAD = ("sun", "warm", "light", "day"), ("mud", "cold", "dark", "night")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a word-level tokenizer, and 40 pairs told apart by their words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.lm.conftest import tiny_model

    path = tmp_path_factory.mktemp("reward")
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "Human", "Assistant", ":", "tell", *GOOD, *BAD, *map(str, range(40))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tiny_model()
    save_pretrained(model, model.params, path / "model")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
    fast.save_pretrained(path / "model")
    rng = np.random.default_rng(0)

    def reply(words):
        return " ".join(rng.choice(words, rng.integers(2, 6)))

    rows = [{"prompt": f"tell {i}", "chosen": reply(GOOD), "rejected": reply(BAD)} for i in range(40)]
    (path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def run(folder, output, **changed) -> Run:
    settings = {"folds": 2, "l2": (0.1,), "prompt_tokens": 32, "reply_tokens": 16} | changed
    return Run(model=str(folder / "model"), data=str(folder / "data.jsonl"), output=output, **settings)


@pytest.mark.parametrize("mode", ["frozen", *(pytest.param(x, marks=pytest.mark.slow) for x in ("lora", "full"))])
def test_learns_writes_heads_and_resumes(folder, tmp_path, mode):
    changed = {"mode": mode} | ({} if mode == "frozen" else {"learning_rate": 1e-3, "folds": 0})
    args = run(folder, tmp_path / "out", **changed)
    console = Console(record=True, width=200)
    assert program.execute(args, console) == 0
    text = console.export_text()
    assert "40 preferences; dropped 0" in text and "reward model ahead by" in text
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "figures.json").read_text())}
    halves = [rows[f"half {x}, tested on the other"] for x in "ab"]
    *folds, last = read_metrics(tmp_path / "out")
    assert len(folds) == args.folds and last["half a, tested on the other/accuracy"] == halves[0]["accuracy"]
    if folds:  # pairs tested so far
        assert 0 < folds[0]["steps"] < folds[1]["steps"] == last["steps"] == 40
    assert all(row["accuracy"] > 0.8 and row["margin"] > 0 for row in halves)
    if mode == "frozen":
        assert rows["reward model"]["accuracy"] > 0.9 and rows["reward model"]["margin"] > 0
        low, high = rows["longer reply"]["interval"]
        assert low < rows["longer reply"]["accuracy"] < high
    assert (tmp_path / "out" / "a-adapters.safetensors").exists() == (mode == "lora")
    if mode == "full":
        assert load_model(tmp_path / "out" / "a-trunk").config.hidden_size == 64
    about = [about_head(tmp_path / "out" / f"{name}.safetensors") for name in "ab"]
    seen = [sum(fold_of(f"tell {i}", 2, args.seed) == number for i in range(40)) for number in (0, 1)]
    assert [(x["half"], x["seed"], x["pairs"]) for x in about] == [(0, args.seed, seen[0]), (1, args.seed, seen[1])]
    figures = rows["half a, tested on the other"]
    policy, head = load_reward_model(tmp_path / "out" / "a.safetensors", load_model(folder / "model"))
    pairs = program.read(args, policy.model, Console(quiet=True))
    held_out = pairs.fold(2, 0) != 0
    tokens = pad_pairs([pair for pair, used in zip(pairs.tokens, held_out) if used])
    both = reward_model.reward(policy, head, *tokens[:4])
    np.testing.assert_allclose(np.mean(both[:, 0] - both[:, 1]), figures["margin"], rtol=1e-3)
    with pytest.raises(RunFolderError, match="--resume"):
        program.execute(args, Console(quiet=True))
    again = run(folder, tmp_path / "out", resume=True, **changed)
    np.save(tmp_path / "out" / "features.npy", 0 * np.load(tmp_path / "out" / "features.npy"))
    if mode == "frozen":  # the kept features are used, and those of a run that was killed while it pooled
        program.execute(again, Console(quiet=True))
        assert json.loads((tmp_path / "out" / "figures.json").read_text())[0]["accuracy"] == 0.5
        (tmp_path / "out" / "features.npy").rename(tmp_path / "out" / "features.partial.npy")
        program.execute(again, Console(quiet=True))
        assert not np.load(tmp_path / "out" / "features.npy").any()
    (tmp_path / "out" / "inputs.json").write_text('{"data": "of other labels"}')
    with pytest.raises(RunFolderError, match=r"data: \S+ holds something else"):
        program.execute(again, Console(quiet=True))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_scores_prompts_as_in_training(folder, tmp_path, mode):
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    shutil.copy(folder / "data.jsonl", tmp_path)
    chat = Chat(template_option=("loud=true",))
    args = run(tmp_path, tmp_path / "out", mode=mode, folds=0, learning_rate=1e-3, chat=chat)
    assert program.execute(args, Console(quiet=True)) == 0
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())[0]
    rows = [row for row in load_preferences(args.data).rows if not Half(0, args.seed).holds(row)]
    source = head_source(*load_reward_model(tmp_path / "out" / "a.safetensors", load_model(tmp_path / "model")))
    both = source([row.prompt for row in rows], [[row.chosen, row.rejected] for row in rows]).rewards
    np.testing.assert_allclose(np.mean(both[:, 0] - both[:, 1]), figures["margin"], rtol=1e-3)


def test_bad_settings(folder, tmp_path):
    for bad in ({"folds": 1}, {"l2": ()}, {"batch": 0}, {"features": ("max",)}, {"epochs": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            run(folder, tmp_path, **bad)
    (tmp_path / "few.jsonl").write_text((folder / "data.jsonl").read_text().splitlines()[0])
    few = Run(model=str(folder / "model"), data=str(tmp_path / "few.jsonl"), output=tmp_path / "x")
    with pytest.raises(ValueError, match="1 usable pairs"):
        program.execute(few, Console(quiet=True))


def test_help_names_the_layers_that_adapters_go_on(run_here):
    words = " ".join(run_here(program.main, "--help").stdout.replace("│", " ").split())
    assert f"linear layers, out of {', '.join(TARGETS)}." in words


def test_settings_of_what_is_not_trained_are_refused():
    two = LoraConfig(rank=2)
    assert Run(mode="lora", lora=two, epochs=2.0).lora == two and Run(mode="full", learning_rate=1e-3).epochs == 1
    for mode, changed, name in (
        ("frozen", {"epochs": 2.0}, "epochs=2.0"),
        ("frozen", {"learning_rate": 1e-3}, "learning_rate=0.001"),
        ("frozen", {"lora": two}, "rank=2"),
        ("full", {"lora": LoraConfig(targets=("q",))}, r"targets=\('q',\)"),
    ):
        with pytest.raises(ValueError, match=f"{name} has no effect with mode='{mode}'"):
            Run(mode=mode, **changed)


def test_text_baseline():
    rng = np.random.default_rng(1)
    replies = [(f"the {rng.choice(GOOD)} one", f"a {rng.choice(BAD)} one") for _ in range(60)]
    test = np.arange(60) < 30
    assert (tfidf_margins(replies, test)[test] > 0).all()
    assert longer_margins([("abc", "a"), ("", "xy")]).tolist() == [2, -2]
    # Words seen in the test part alone cannot help.
    unseen = [(f"u{i} v{i}", f"x{i} y{i}") for i in range(60)]
    assert not tfidf_margins(unseen, test)[test].any()
