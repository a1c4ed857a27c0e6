"""What `pairgrpo evaluate` says of bad data and of a judge that may not fit."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from byte_model import TEMPLATE, write_model

from pairgrpo_jax.commands import cheetah, evaluate
from pairgrpo_jax.commands.align_settings import preset
from pairgrpo_jax.commands.evaluate import (
    Evaluation,
    Heard,
    Judges,
    figures,
    held_out_head,
    labelled,
    pair_accuracy,
    reward_figures,
)
from pairgrpo_jax.commands.exported import chat_of, method_of, started_from
from pairgrpo_jax.core.bounds import to_values
from pairgrpo_jax.lm import Policy, Sampling
from pairgrpo_jax.lm.alignment import EncodedPrompt
from pairgrpo_jax.lm.alignment.evaluation import Judged, Replies
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.rewards.reward_model import DEFAULT, RewardHead, save_head
from pairgrpo_jax.training import open_folder, settings
from tests.lm.conftest import tiny_model

PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def pairs(folder, rows, **options):
    """For no model: all that is looked at comes before it."""
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return labelled(None, Evaluation("a", data=str(folder / "data.jsonl"), **options))


def test_only_data_of_prompts_alone_has_no_accuracy(tmp_path):
    assert pairs(tmp_path, [{"prompt": "Why?"}, {"prompt": "How?"}]) == []
    assert pair_accuracy(None, None, [], Evaluation("a"), None) == {}
    with pytest.raises(ValueError, match="jsonl:2: expected columns 'chosen' and 'rejected'"):
        pairs(tmp_path, [PAIR, {"prompt": "How?"}])
    with pytest.raises(ValueError, match=r"no usable preference \(1 identical replies\)"):
        pairs(tmp_path, [PAIR | {"rejected": "So."}])
    with pytest.raises(ValueError, match="scores must be two numbers"):
        pairs(tmp_path, [{"prompt": "Why?", "text": ["So.", "No."], "score": ["high", "low"]}])
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        labelled(None, Evaluation("a", data="nowhere.jsonl"))


def test_a_judge_made_on_another_model_is_told(tmp_path, run_here):
    save_head(RewardHead(jnp.ones(32), jnp.zeros(()), DEFAULT), tmp_path / "head.safetensors", model="mine")
    words = ["--a", "nowhere", "--judge", tmp_path / "head.safetensors", "--reference", "nowhere"]
    warning = "head.safetensors was made on mine; is nowhere the same model?"
    assert warning in run_here(evaluate.main, *words).stderr
    evaluate.tell_other_model("mine", str(tmp_path / "head.safetensors"))


def test_two_sides_share_their_draws_unless_they_are_to_be_independent():
    tiny = tiny_model()
    prompts = [EncodedPrompt(({"role": "user", "content": "Why?"},), [3 + i, 5, 7]) for i in range(3)]
    limits = {"prompt_tokens": 8, "completion_tokens": 6, "sampling": Sampling(), "samples": 2}
    judges, policy = Judges(Policy(tiny, tiny.params), None, prompts, **limits), Policy(tiny, tiny.params)
    one, same, other = (judges.hear(policy, independent=own).said for own in (False, False, True))
    np.testing.assert_array_equal(one.tokens, same.tokens)
    assert (one.tokens != other.tokens).any(axis=-1).mean() > 0.5
    np.testing.assert_array_equal(other.tokens, judges.hear(policy, independent=True).said.tokens)


def test_equal_replies_are_counted_as_ties():
    said = Replies(np.zeros((2, 2, 3)), np.full((2, 2), 3), np.zeros((2, 2)), np.ones((2, 2), bool), [])
    a, b = (Judged(np.array(rewards), np.zeros((2, 2))) for rewards in ([[1.0, 2], [0, 1]], [[1.0, 1], [0, 2]]))
    row = figures(Heard(said, a, {}), Heard(said, b, {}))
    assert row["ties"] == 0.5 and row["win_rate"] == 0.5 and row["wins"] == [0.75, 0.25]


def test_figures_of_unequal_lengths_and_replies_that_were_cut():
    """By hand: six replies are 2 longer than the rival's, and five of them win; of two that are 2 shorter one wins.

    At equal length the odds lie between 5 and 1, at their geometric mean.
    """
    longer, won = np.array([[1, 1, 1, 0], [1, 1, 1, 0]]), np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    ours, theirs = np.where(longer, 9, 3), np.where(longer, 7, 5)
    ended, all_cut = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool), np.zeros((2, 4), bool)
    logp = np.array([[-1.0, -2, -3, -4], [-1, -2, -3, -4]])
    a, b = (
        Heard(Replies(np.zeros((2, 4, 9)), lengths, logp, cut, []), Judged(rewards, np.full((2, 4), -3.0)), {})
        for lengths, cut, rewards in ((ours, ended, 2 * won), (theirs, all_cut, np.ones((2, 4))))
    )
    row = figures(a, b)
    assert row["wins"] == [1, 0.5] and row["win_rate"] == 0.75 and row["ties"] == 0
    assert row["win_rate_length_controlled"] == pytest.approx(5**0.5 / (1 + 5**0.5), abs=0.01)
    assert row["win_rate_length_controlled_low"] < row["win_rate_length_controlled_high"]
    assert (row["reply_tokens"], row["reply_tokens_rival"]) == (7.5, 6.5)
    assert row["reply_truncated"] == 0.125 and row["kl_reference"] == 0.5
    assert (row["reward_held_out"], row["reward_held_out_rival"]) == (1.5, 1)


def test_rewards_of_binary_replies_have_intervals_and_pass_at_k():
    said = Replies(np.zeros((3, 4, 3)), np.full((3, 4), 3), np.zeros((3, 4)), np.ones((3, 4), bool), [])
    ours = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [np.nan] * 4])
    heard = [Heard(said, Judged(None, np.ones((3, 4))), {"right": x}) for x in (ours, np.zeros((3, 4)))]
    row = figures(*heard)
    assert row["held_out/right"] == row["held_out/right/pass@1"] == 0.625 and row["held_out/right/rival"] == 0
    assert [row[f"held_out/right/pass@{k}"] for k in (2, 4)] == [0.75, 1.0]
    assert row["held_out/right/low"] <= 0.625 <= row["held_out/right/high"] and row["held_out/right/failed"] == 1
    np.testing.assert_array_equal(row["held_out/right/each"], [0.25, 1, np.nan])
    assert "win_rate" not in row and row["kl_reference"] == -1


def test_both_sides_are_measured_on_the_same_prompts():
    """The same policy twice: whichever side's reward fails, the means are equal, and every prompt keeps its place."""
    said = Replies(np.zeros((4, 1, 3)), np.full((4, 1), 3), np.zeros((4, 1)), np.ones((4, 1), bool), [])
    whole = np.array([[1.0], [0], [0], [0]])
    for lost, each in (([2, 3], [1, 0, np.nan, np.nan]), ([0], [np.nan, 0, 0, 0])):
        failed = whole.copy()
        failed[lost] = np.nan
        for sides in ((failed, whole), (whole, failed)):
            row = reward_figures(*(Heard(said, Judged(None, np.ones((4, 1))), {"f": x}) for x in sides))
            assert row["held_out/f"] == row["held_out/f/rival"] == np.nanmean(each)
            assert row["held_out/f/failed"] == len(lost)
            np.testing.assert_array_equal(row["held_out/f/each"], each)


def made(folder, label="soft", reward="", **changes):
    """What a run of `pairgrpo align`, begun two folders above its own, leaves of its settings."""
    run = preset(label, ["--data", "tiny", "--reward", reward] if reward else [])
    run = run.replace(output=folder.relative_to(folder.parents[1]), **changes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings(run)))
    (folder / "versions.json").write_text("{}")
    return str(folder)


def test_a_head_that_trained_a_model_does_not_judge_it(tmp_path, run_here):
    a, b, f = (made(tmp_path / name, reward=name) for name in ("harmless-a", "harmless-b", "mine:f"))
    pairs = made(tmp_path / "pairs", "dpo")
    defaults = {(b, None): "harmless-a", (a, None): "harmless-b", (pairs, b): "harmless-a"}
    defaults |= {(f, None): "harmless-b", (pairs, None): "harmless-b"}
    assert {sides: held_out_head(Evaluation(*sides)) for sides in defaults} == defaults
    assert held_out_head(Evaluation(a, b, judge="helpful-a")) == "helpful-a" and not held_out_head(
        Evaluation(b, reward="mine:f")
    )
    for sides, judge, name in (((a, None), "harmless-a", a), ((pairs, b), "harmless-b", b), ((a, b), None, b)):
        with pytest.raises(ValueError, match=f"is the reward of {name}, and nothing would be held out; .* --judge"):
            held_out_head(Evaluation(*sides, judge=judge))
    done = run_here(evaluate.main, "--a", b, "--judge", "harmless-b")
    assert done.returncode == 2 and "judge: harmless-b is the reward of" in done.stderr


def test_a_rewards_file_is_found_from_where_the_run_began(tmp_path, monkeypatch):
    run = made(tmp_path / "mine" / "runs" / "x", reward="heads/a.safetensors")
    heads = tmp_path / "mine" / "heads"
    heads.mkdir()
    for half in "ab":
        (heads / f"{half}.safetensors").write_text(half)
    (tmp_path / "copy.safetensors").write_text("a")
    for here, name in ((tmp_path / "mine", "runs/x"), (tmp_path, "mine/runs/x"), (heads, run)):
        monkeypatch.chdir(here)
        for model in (name, f"{name}/model", f"{name}/adapter/"):  # of the run, as `pairgrpo align` exports them
            assert held_out_head(Evaluation(model)) == str(heads / "b.safetensors")
            for same in (heads / "a.safetensors", tmp_path / "copy.safetensors"):
                with pytest.raises(ValueError, match="nothing would be held out"):
                    held_out_head(Evaluation(model, judge=str(same)))
    with pytest.raises(ValueError, match="nothing would be held out"):
        held_out_head(Evaluation(run, judge="a.safetensors"))  # here, in the folder of heads


def test_models_of_another_chat_template_are_refused(tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_model(tmp_path / "other", template="<" + TEMPLATE)
    (tmp_path / "data.jsonl").write_text(json.dumps(PAIR))
    words = "--data data.jsonl --fold -1 --reward verify:format=x --reference model --prompts 1 --completion-tokens 2"
    for side, names in (("a", "--a other --b model"), ("b", "--a model --b other")):
        done = run_here(evaluate.main, *words.split(), *names.split())
        assert done.returncode == 2 and f"{side}: its chat template or tokenizer makes other prompts" in done.stderr
        assert "name with --b and --reference models of the chat template of --a" in done.stderr


@pytest.mark.parametrize("short", ["a", "b", "reference"])
def test_limits_beyond_a_models_context_are_refused(tmp_path, run_here, short):
    """Compiled scores cannot refuse a text whose length turns its prompt's keys."""
    for name, positions in (("short", 95), ("enough", 96)):
        write_model(tmp_path / name, positions)
    (tmp_path / "data.jsonl").write_text(json.dumps(PAIR))
    words = ["--data", tmp_path / "data.jsonl", "--fold", "-1", "--reward", "verify:format=x"]
    for side in ("a", "b", "reference"):
        words += [f"--{side}", tmp_path / ("short" if side == short else "enough")]
    done = run_here(evaluate.main, *words)
    assert done.returncode == 2
    assert "prompt_tokens + completion_tokens = 96 exceed the model's context of 95" in done.stderr


def test_a_reference_that_a_run_made_itself_is_not_replaced_by_its_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "implicit_margins", lambda *_, **__: np.ones(2))
    started = made(tmp_path / "started", "dpo", sft_iterations=2)
    assert pair_accuracy(None, None, [0, 0], Evaluation(started), None) == {}
    assert "no implicit_accuracy" in capsys.readouterr().err
    for name in (made(tmp_path / "dpo", "dpo"), made(tmp_path / "simpo", "simpo", sft_iterations=2), "smollm2"):
        assert pair_accuracy(None, None, [0, 0], Evaluation(name), None)["implicit_accuracy"] == 1
    assert not capsys.readouterr().err


def test_conversations_become_text_as_in_the_run_unless_asked_otherwise(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "versions.json").write_text("{}")
    kept = Chat(template_option=("enable_thinking=false",), system_turn="fold")
    (run / "config.json").write_text(json.dumps({"model": "smollm2", "chat": to_values(kept)}))
    assert chat_of(str(run), Chat()) == kept and "enable_thinking=false" in capsys.readouterr().err
    other = Chat(template_date="2026-01-02")
    assert chat_of(str(run), other) == other
    (run / "versions.json").unlink()  # a model's folder, with a config.json of its own
    assert chat_of(str(run), Chat()) == chat_of("smollm2", Chat()) == Chat() and not capsys.readouterr().err


def test_the_implicit_reward_of_a_run_is_its_method_s(tmp_path):
    assert method_of("smollm2") is None
    run = preset("simpo").replace(output=tmp_path / "run", beta=3.0)
    with open_folder(run.output, settings(run), resume=False):
        assert method_of(str(run.output)) == run.config.method and run.config.method.beta == 3.0


@pytest.mark.parametrize("reward", ["judge:mine:better", "harmless-a", "heads/a.safetensors"])
def test_what_gives_no_rewards_of_texts_is_refused(reward):
    with pytest.raises(ValueError, match="reward: expected verify:NAME or module:function"):
        Evaluation("a", reward=reward)


def test_figures_are_json_that_others_read_too(tmp_path, capsys):
    evaluate.tell(tmp_path / "out.json", {"win_rate": 0.5, "win_rate_low": float("nan")}, [])
    strict = {"parse_constant": lambda name: pytest.fail(name)}
    assert json.loads(capsys.readouterr().out, **strict) == {"win_rate": 0.5, "win_rate_low": None}
    assert json.loads((tmp_path / "out.json").read_text(), **strict)["figures"]["win_rate_low"] is None
    with pytest.raises(ValueError, match=r"output: .* is a folder"):
        Evaluation("a", output=tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_random_keys_would_cut_is_refused(seed):
    for settings_of in (lambda **x: Evaluation("a", **x), preset("grpo").replace, cheetah.preset("hard").replace):
        with pytest.raises(ValueError, match="seed must be in"):
            settings_of(seed=seed)


@pytest.mark.parametrize("changed", [{"split": "test"}, {"prompt_column": "question"}, {"fold": -1}])
def test_settings_of_files_are_refused_for_problems_that_are_made(changed):
    Evaluation("a", data="reasoning-gym:chain_sum")
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name}=.* has no effect with reasoning-gym:NAME"):
        Evaluation("a", data="reasoning-gym:chain_sum", **changed)


def test_options_that_a_template_does_not_name_are_refused(tmp_path, run_here):
    write_model(tmp_path / "model")
    words = ["--a", tmp_path / "model", "--reference", tmp_path / "model", "--judge", "", "--reward", "verify:math"]
    done = run_here(evaluate.main, *words, "--template-option", "enable_thinking=false")
    assert done.returncode == 2 and "template_option: the chat template does not name 'enable_thinking'" in done.stderr


def test_a_runs_rival_is_the_model_it_started_from(tmp_path):
    (tmp_path / "versions.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model": "some/model"}))
    assert started_from(str(tmp_path)) == "some/model" and started_from("other") == "smollm2"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: these are no settings of a run"):
        started_from(str(tmp_path))
