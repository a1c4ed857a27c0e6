"""Reward heads: pooling, one pass for scores and rewards, files, fits, and training of the trunk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from pairgrpo_jax.lm import Policy, Sampling, save_pretrained, score
from pairgrpo_jax.lm.data import EncodedPair, encode_preferences, load_preferences
from pairgrpo_jax.lm.data import preference_accuracy as accuracy
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.rewards import reward_model, reward_training
from pairgrpo_jax.lm.rewards.reward_model import (
    RewardHead,
    features,
    load_head,
    load_reward_model,
    rewards,
    save_head,
    score_and_reward,
)
from pairgrpo_jax.lm.rewards.reward_training import fit_bradley_terry, pad_pairs
from pairgrpo_jax.training import TrainState, make_update_step

from .conftest import tiny_model

RNG = np.random.default_rng(0)
NAMES = ("mean", "last", "length")
PROMPT_LENGTHS, LENGTHS = jnp.asarray([4, 7]), jnp.asarray([[5, 1, 6], [2, 6, 3]])
PROMPTS, COMPLETIONS = (jnp.asarray(RNG.integers(3, 97, s), jnp.int32) for s in ((2, 7), (2, 3, 6)))
BATCH = (PROMPTS, PROMPT_LENGTHS, COMPLETIONS, LENGTHS)


def random_head(names=NAMES, width=64):
    size = reward_model.feature_count(names, width)
    return RewardHead(jnp.asarray(RNG.normal(size=size), jnp.float32), jnp.float32(0.3), names)


def naive_features(model):
    """Pools, text by text, what the decoder gives for prompt and completion side by side."""
    out = np.zeros((2, 3, 129), np.float32)
    for b in range(2):
        for k in range(3):
            p, n = int(PROMPT_LENGTHS[b]), int(LENGTHS[b, k])
            text = np.concatenate([PROMPTS[b, :p], COMPLETIONS[b, k, :n]])[None]
            positions = jnp.arange(p + n)[None]
            hidden, _ = model.decoder.apply({"params": model.params}, text, positions, [], method="hidden")
            states = np.asarray(hidden[0, p - 1 : p - 1 + n])
            out[b, k] = np.concatenate([states.mean(0), states[-1], [np.log(n)]])
    return out


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_pass_equals_separate_passes(family):
    model, head = tiny_model(family), random_head()
    policy, sampling = Policy(model, model.params), Sampling(0.7, top_k=20)
    run = jax.jit(lambda params, head: score_and_reward(Policy(model, params), head, *BATCH, sampling=sampling))
    scores, got = run(model.params, head)
    apart = score(policy, *BATCH, sampling=sampling)
    np.testing.assert_allclose(scores.logp, apart.logp, atol=1e-5)
    np.testing.assert_allclose(scores.entropy, apart.entropy, atol=1e-5)
    want = naive_features(model) @ np.asarray(head.weight) + 0.3
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reward_model.reward(policy, head, *BATCH), got, rtol=1e-6, atol=1e-5)


def test_padding_has_no_effect():
    hidden = jnp.asarray(RNG.normal(size=(2, 3, 6, 4)), jnp.float32)
    dirty = jnp.where((jnp.arange(6) < LENGTHS[..., None])[..., None], hidden, jnp.nan)
    np.testing.assert_array_equal(features(hidden, LENGTHS, NAMES), features(dirty, LENGTHS, NAMES))


def test_features_of_each_kind():
    hidden = jnp.asarray(RNG.normal(size=(2, 3, 6, 4)), jnp.float32)
    each = [features(hidden, LENGTHS, (name,)) for name in NAMES]
    assert [x.shape for x in each] == [(2, 3, 4), (2, 3, 4), (2, 3, 1)]
    np.testing.assert_array_equal(features(hidden, LENGTHS, NAMES), jnp.concatenate(each, -1))
    with pytest.raises(ValueError, match=r"unknown \['max'\]"):
        features(hidden, LENGTHS, ("mean", "max"))


def test_a_head_of_another_model_is_refused(tiny):
    with pytest.raises(ValueError, match="made for 65 features, this model gives 129"):
        score_and_reward(Policy(tiny, tiny.params), random_head(NAMES, 32), *BATCH)


def test_head_files(tmp_path):
    head = random_head()
    save_head(head, tmp_path / "head.safetensors", model="tiny", accuracy=0.6)
    again = load_head(tmp_path / "head.safetensors")
    assert again.features == head.features
    jax.tree.map(np.testing.assert_array_equal, again, head)
    bad = {"text": b"x", "short": (tmp_path / "head.safetensors").read_bytes()[:100], "pickle": b"\x80\x04N."}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a reward head"):
            load_head(tmp_path / name)
    save_head(head, tmp_path / "own.safetensors", mode="lora")
    with pytest.raises(ValueError, match="its trunk was trained too"):
        load_head(tmp_path / "own.safetensors")
    assert reward_model.about_head("harmless-a")["model"] == "smollm2"
    save_head(head.replace(weight=head.weight * jnp.nan), tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        load_head(tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"not one of helpful-a, helpful-b, .*; did you mean helpful-.\?"):
        load_head("helpful-c")
    (tmp_path / "mine.py").write_text("def f(prompts, completions): ...")
    for name in ("mine", tmp_path / "mine.py"):
        with pytest.raises(ValueError, match="a function of your own is --reward module:function"):
            load_head(name)


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_trained_trunk_reads_conversations_as_in_its_training(tmp_path, mode):
    model, file, what = tiny_model(), tmp_path / "head.safetensors", lora.LoraConfig(rank=2)
    save_pretrained(model, model.params, tmp_path / "head-trunk")
    adapters = jax.device_get(lora.init(what, model.config, jax.random.key(0)))
    save_file(flatten_dict(adapters, sep="/"), tmp_path / "head-adapters.safetensors")
    trained, given = Chat(template_option=("loud=true",), system_turn="fold"), Chat(template_date="2024-02-29")
    model = dataclasses.replace(model, chat=given)
    about = {"mode": mode, "lora": dataclasses.asdict(what)}
    for kept, want in (({}, given), ({"chat": dataclasses.asdict(trained), "end_of_turn": "7"}, trained)):
        save_head(reward_model.init_head(64), file, **about, **kept)
        trunk = load_reward_model(file, model)[0].model
        assert trunk.chat == (given if mode == "frozen" else want) and (trunk is model) == (mode == "frozen")
        assert mode != "full" or trunk.config.reply_end == (7 if kept else None)


def test_fit_recovers_the_direction_and_its_scale():
    truth = np.array([2.0, -1.0, 0.0, 5.0])
    x = RNG.normal(size=(20000, 4)) * [1.0, 3.0, 1.0, 0.2]
    signs = np.where(RNG.random(20000) < 1 / (1 + np.exp(-x @ truth)), 1, -1)
    weight = fit_bradley_terry(x * signs[:, None], l2=1e-6)
    np.testing.assert_allclose(weight, truth, atol=0.1, rtol=0.1)
    constant = np.concatenate([x, np.zeros((20000, 1))], 1)
    assert fit_bradley_terry(constant * signs[:, None], l2=1e-6)[4] == 0
    for bad in (np.zeros((0, 3)), x * np.nan):
        with pytest.raises(ValueError, match="differences"):
            fit_bradley_terry(bad, 1.0)
    with pytest.raises(ValueError, match="l2"):
        fit_bradley_terry(x, 0.0)


def test_penalty_is_chosen_on_held_out_groups():
    """Pure noise wants the strongest penalty, a clear signal the weakest."""
    groups, x = np.arange(200), RNG.normal(size=(200, 50))
    assert reward_training.choose_l2(x, groups, (100.0, 0.001)) == 100.0
    x[:, 0] = np.abs(x[:, 0]) * 5 + 1
    assert reward_training.choose_l2(x, groups, (100.0, 0.001)) == 0.001
    # Rows of one group stay together: copies cannot vouch for one another.
    copies = np.repeat(RNG.normal(size=(50, 100)), 8, 0)
    assert reward_training.choose_l2(copies, np.repeat(np.arange(50), 8), (100.0, 0.001)) == 100.0


def test_accuracy_counts_ties_half():
    assert accuracy(np.array([1.0, -1.0, 0.0, 2.0])) == 0.625


def pairs(count=24):
    """The chosen reply is made of low ids, the rejected of high ones."""

    def text(low, high):
        return RNG.integers(low, high, RNG.integers(1, 9)).tolist()

    return [EncodedPair(text(3, 97), text(3, 50), text(50, 97)) for _ in range(count)]  # fmt: skip


def test_pooled_features_of_a_data_set(tiny):
    data, seen = pairs(), []
    policy = Policy(tiny, tiny.params)
    pooled = reward_training.pair_features(policy, data, NAMES, batch=5, progress=seen.append)
    assert pooled.shape == (24, 2, 129) and seen == [5, 10, 15, 20, 24]
    from pairgrpo_jax.lm.models.scoring import completion_hidden

    for i in (0, 7, 23):
        tokens = pad_pairs([data[i]])
        want = features(completion_hidden(policy, *tokens[:4]), tokens.lengths, NAMES)
        np.testing.assert_allclose(pooled[i], want[0], rtol=1e-4, atol=1e-4)
    part = np.where(np.arange(24)[:, None, None] % 7 == 3, np.nan, np.full_like(pooled, 5.0))
    reward_training.pair_features(policy, data, NAMES, batch=5, into=part)
    kept = (part == 5).all((1, 2))  # batches that were whole are not run again
    assert kept.any() and not kept.all()
    np.testing.assert_array_equal(part[~kept], pooled[~kept])
    head, _ = reward_training.fit_head(pooled, np.arange(24), NAMES)
    both = np.asarray(rewards(head, jnp.asarray(pooled)))
    assert accuracy(both[:, 0] - both[:, 1]) == 1.0 and abs(both.mean()) < 1e-4


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_training_of_the_trunk_learns_and_agrees_when_accumulated(tiny, mode):
    config = lora.LoraConfig(rank=2, targets=("q", "v"))
    tokens = pad_pairs(pairs())
    optimizer = optax.adam(3e-3)
    start = reward_model.init_head(64, NAMES)

    def trained(accumulate, steps):
        trainable = reward_training.init_trainable(mode, tiny, start, config, jax.random.key(0))
        loss = reward_training.make_reward_loss(tiny, tiny.params, config)
        update = make_update_step(loss, optimizer, accumulate=accumulate)
        state = TrainState.create(trainable, optimizer, jax.random.key(1))
        for _ in range(steps):
            state, metrics = update(state, tokens)
        return state.params, metrics

    params, metrics = trained(1, 20)
    assert metrics["accuracy"] > 0.95 and metrics["bradley_terry"] < 0.4
    trunk = reward_training.trunk(params, tiny, tiny.params, config)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trunk.params, tiny.params)
    assert (max(jax.tree.leaves(moved)) > 0) == (mode == "full")
    once, apart = trained(1, 1), trained(4, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), once[1], apart[1])
    with pytest.raises(ValueError, match="choose from lora, full"):
        reward_training.init_trainable("frozen", tiny, start, config, jax.random.key(0))


def test_every_micro_batch_drops_inputs_of_its_own(tiny):
    config = lora.LoraConfig(rank=2, dropout=0.5)
    trainable = reward_training.init_trainable("lora", tiny, random_head(), config, jax.random.key(0))
    trainable["adapters"] = jax.tree.map(lambda x: x + 0.1, trainable["adapters"])  # B is 0 at first
    loss = reward_training.make_reward_loss(tiny, tiny.params, config)
    one, keys = pad_pairs([EncodedPair([5, 9], [7, 8, 20], [60, 70, 80])]), jax.random.split(jax.random.key(1), 4)
    each = [float(loss(trainable, one._replace(keys=keys[i : i + 1]))["bradley_terry"].mean) for i in range(4)]
    assert len({*each, float(loss(trainable, one)["bradley_terry"].mean)}) == 5
    update = make_update_step(loss, optax.sgd(0.0), accumulate=4)
    four = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), one)._replace(keys=keys)
    _, metrics = update(TrainState.create(trainable, optax.sgd(0.0), jax.random.key(2)), four)
    np.testing.assert_allclose(metrics["bradley_terry"], np.mean(each), rtol=1e-5)


def test_encoding_keeps_the_order_and_marks_what_does_not_fit(smollm2):
    rows = load_preferences("tiny").rows[:6]
    encoded = encode_preferences(smollm2, rows, 48, 8)
    assert [pair is None for pair in encoded].count(False) >= 4
    assert all(len(pair.prompt) <= 48 and max(map(len, pair.replies)) <= 8 for pair in encoded if pair)
    with pytest.raises(ValueError, match="prompt_tokens=4"):
        encode_preferences(smollm2, rows, 4, 8)


@pytest.mark.parametrize("domain", ["helpful", "harmless", "ultrafeedback"])
def test_shipped_heads_are_two(domain):
    a, b = load_head(f"{domain}-a"), load_head(f"{domain}-b")
    assert a.features == b.features and len(a.weight) == reward_model.feature_count(a.features, 576)
    assert 0.1 < np.corrcoef(a.weight, b.weight)[0, 1] < 0.95  # of the same kind, not the same


@pytest.mark.slow
@pytest.mark.parametrize("head", ["harmless-a", "helpful-b"])
def test_shipped_head_on_the_real_model_prefers_our_good_replies(smollm2, head):
    """The tiny set shares no text with the heads' training data: a test of transfer."""
    rows = load_preferences(f"tiny-{head.split('-')[0]}").rows[:40]
    policy = Policy(smollm2, smollm2.params)
    pairs = encode_preferences(smollm2, rows, 128, 128)
    loaded = load_head(head)
    pooled = reward_training.pair_features(policy, pairs, loaded.features, batch=20)
    both = np.asarray(rewards(loaded, jnp.asarray(pooled)))
    print(f"\n{head}: {accuracy(both[:, 0] - both[:, 1]):.2f} of our pairs")
    assert accuracy(both[:, 0] - both[:, 1]) > 0.6
