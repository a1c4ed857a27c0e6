"""Alignment on a tiny model: every method learns, and nothing depends on how the work is cut up."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pairgrpo_jax.core import chosen_rejected_pairs, evaluate, group_advantages
from pairgrpo_jax.lm import Policy, Sampling, score
from pairgrpo_jax.lm.alignment import (
    Adapters,
    AlignConfig,
    AlignOptimizer,
    Batch,
    Critic,
    Data,
    EncodedPair,
    EncodedPrompt,
    Placement,
    Reference,
    Samples,
    Texts,
    encode_prompts,
    make_optimizer,
    make_trainer,
    merged,
    objective,
    pair_batch,
    policy_of,
)
from pairgrpo_jax.lm.alignment.evaluation import implicit_margins, judge_replies, write_replies
from pairgrpo_jax.lm.alignment.laps import PARTS
from pairgrpo_jax.lm.alignment.parameters import init_trainable
from pairgrpo_jax.lm.alignment.signals import learning_signal
from pairgrpo_jax.lm.data import batch_indices, load_prompts
from pairgrpo_jax.lm.models.quantized import kind_of
from pairgrpo_jax.lm.rewards.reward_model import init_head
from pairgrpo_jax.lm.rewards.sources import Judgement, judge, reward_function
from pairgrpo_jax.methods import METHODS, ONLINE, Adaptive, Dpo, HardPair, Likelihoods, Ppo, Verdict, method_class
from pairgrpo_jax.training import Checkpoints

HARD = HardPair(scheme="matched", beta=0.05, delta_0=0.2)
BASE = AlignConfig(
    HARD,
    Samples(candidates=4),
    Texts(prompts=4, prompt_tokens=8, completion_tokens=6),
    AlignOptimizer(learning_rate=1e-2, warmup=0),
    adapters=Adapters(lora_rank=4),
)
SETTINGS = {
    "soft": {"scheme": "matched", "beta": 0.05},
    "hard": {"scheme": "matched", "beta": 0.05, "delta_0": 0.2},
    "dpo": {"beta": 0.05},
    "ipo": {"beta": 0.05},
    "orpo": {"weight": 0.05},
}
OFFLINE = tuple(method.name for method in METHODS if method.offline)


def small(name, offline=False, **changes):
    """BASE with a method, and what the method needs."""
    kept = {field: value for field, value in SETTINGS.get(name, {}).items() if not (offline and field == "scheme")}
    method = method_class(name)(**kept)
    samples = None if offline or not method.online else BASE.samples
    critic = Critic() if method.critic else None
    return BASE.replace(method=method, samples=samples, critic=critic).replace(**changes)


def test_the_lists_hold_every_method():
    assert set(ONLINE) == {"grpo", "soft", "hard", "ppo", "rank"}
    assert set(OFFLINE) == {"dpo", "ipo", "orpo", "simpo", "kto", "soft", "hard"}


def decode(rows):
    return [" ".join(map(str, row)) for row in rows]


def share_of_low_ids(prompts, completions):
    """Rewards tokens below 40; deterministic in its inputs."""
    return [[np.mean([int(x) < 40 for x in text.split()]) for text in group] for group in completions]


def make_data(count=12):
    rng = np.random.default_rng(0)
    ids = lambda low, high, n: rng.integers(low, high, n).tolist()  # noqa: E731
    prompts = [EncodedPrompt(({"role": "user", "content": str(i)},), ids(3, 97, 3 + i % 5)) for i in range(count)]
    pairs = [EncodedPair(p.ids, [*ids(3, 40, 4), 2], [*ids(60, 97, 3 + i % 2), 2]) for i, p in enumerate(prompts)]
    return Data(prompts, pairs)


def trainer_of(tiny, config, source=None, **options):
    source = source or reward_function(share_of_low_ids)
    return make_trainer(config, tiny, make_data(), source, iterations=10, decode=decode, **options)


def run(trainer, iterations, state=None):
    state, rows = trainer.init(jax.random.key(0)) if state is None else state, []
    for _ in range(iterations):
        state, metrics = trainer.iterate(state, 1)
        rows.append({name: value[0] for name, value in metrics.items()})
    return state, rows


def without_times(row):
    """All metrics but the clock's."""
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def digest(state):
    leaves = jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == state.key.dtype else x, state)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(leaves)]


def distance(one, two):
    """Euclidean distance of two arrays."""
    return np.linalg.norm(np.ravel(one) - np.ravel(two))


def margins(trainer, state):
    """Implicit rewards of the data's pairs, chosen minus rejected."""
    batch = pair_batch(make_data().pairs, 8, 6)
    ours, ref = (score(p, *batch.tokens).logp.sum(-1) for p in (trainer.policy(state), trainer.reference(state)))
    return np.asarray((ours - ref)[:, 0] - (ours - ref)[:, 1])


def some_slow(algos, quick):
    """One of them in every run of the tests, the others with the slow ones: each compiles for some ten seconds."""
    return [a if a == quick else pytest.param(a, marks=pytest.mark.slow) for a in algos]


@pytest.mark.parametrize("algo", some_slow(ONLINE, "hard"))
def test_an_online_method_raises_the_reward(tiny, algo, compiles_nothing):
    everywhere = ("q", "k", "v", "o", "gate", "up", "down")
    config = small(algo, completion_tokens=4, learning_rate=5e-2, prompts=8, lora_targets=everywhere)
    loaded = dataclasses.replace(tiny, params=jax.device_put(tiny.params, jax.devices()[0]))  # as files are
    trainer = trainer_of(loaded, config)
    state, rows = run(trainer, 1)
    with compiles_nothing():  # all in the first batch
        rows += run(trainer, 9, state)[1]
    rewards = [row["reward"] for row in rows]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1, rewards
    names = {"entropy", "approx_kl", "length", "truncated", "sampler_gap", "grad_norm", "surrogate"}
    assert names <= set(rows[0])
    assert max(row["sampler_gap"] for row in rows) < 1e-4
    assert rows[0]["approx_kl"].shape == (config.optimizer.updates_per_batch,)
    assert rows[0]["approx_kl"][0] < 1e-6 < rows[0]["approx_kl"][1]


@pytest.mark.parametrize("algo", some_slow(OFFLINE, "dpo"))
def test_an_offline_method_learns_the_pairs(tiny, algo):
    config = small(algo, offline=True, prompts=12, learning_rate=3e-3)
    trainer = trainer_of(tiny, config)
    state, _ = run(trainer, 8)
    assert np.mean(margins(trainer, state) > 0) >= 0.9 and margins(trainer, state).mean() > 1


def test_a_reward_head_is_scored_in_the_reference_pass(tiny):
    head = init_head(tiny.config.hidden_size)
    head = head.replace(weight=jax.random.normal(jax.random.key(0), head.weight.shape))
    _, rows = run(trainer_of(tiny, BASE.replace(watch_kl=True), head), 1)
    assert rows[0]["reward_std"] > 0 and rows[0]["kl_ref"][0] < 1e-6 and 0 < rows[0]["rank_correlation"] <= 1
    _, alone = run(trainer_of(tiny, BASE, head), 1)  # without the reference: the rewards are the same
    assert alone[0]["reward"] == rows[0]["reward"] and "kl_ref" not in alone[0]


def test_the_reference_is_scored_for_a_loss_or_when_asked_and_then_moves_nothing(tiny):
    (state, rows), (watched, told) = (run(trainer_of(tiny, BASE.replace(watch_kl=how)), 2) for how in (False, True))
    assert digest(state) == digest(watched) and set(told[1]) - set(rows[1]) == {"kl_ref", "pair_accuracy"}
    assert rows[0]["time/reference"] == 0 < told[0]["time/reference"]
    needing = {"dpo", "ipo", "kto"}
    assert all(config.scores_reference for config in (*map(small, needing), BASE.replace(ref_beta=0.1)))
    assert not any(small(name, name in OFFLINE).scores_reference for name in {*ONLINE, *OFFLINE} - needing)


def test_the_times_of_an_iteration_add_up(tiny):
    trainer = trainer_of(tiny, BASE)
    state, _ = run(trainer, 1)
    began = time.perf_counter()
    _, rows = run(trainer, 1, state)
    spent, times = time.perf_counter() - began, {name: rows[0][f"time/{name}"] for name in PARTS}
    assert 0.8 * spent < sum(times.values()) < spent
    assert all((seconds > 0) == (part != "reference") for part, seconds in times.items())


def test_a_judge_can_be_the_source(tiny):
    def shorter_ids(prompt, a, b):
        return int(share_of_low_ids([prompt], [[a, b]])[0][0] < share_of_low_ids([prompt], [[a, b]])[0][1])

    _, rows = run(trainer_of(tiny, small("soft"), judge(shorter_ids)), 2)
    assert rows[0]["pairs"] == 8 and "reward" not in rows[0]
    with pytest.raises(ValueError, match="grpo needs rewards"):
        run(trainer_of(tiny, small("grpo"), judge(shorter_ids)), 1)


@pytest.fixture(scope="module")
def fixed(tiny):
    """Tokens of unequal lengths with scores of a policy off the old one, for groups of 4 and of 2."""
    rng = np.random.default_rng(3)
    other = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape), tiny.params)
    scored = jax.jit(lambda params, batch: score(Policy(tiny, params), *batch.tokens))
    out = {}
    for k in (2, 4):
        batch = Batch(
            jnp.asarray(rng.integers(3, 97, (4, 8))),
            jnp.array([8, 5, 3, 7]),
            jnp.asarray(rng.integers(3, 97, (4, k, 6))),
            jnp.asarray(rng.integers(1, 7, (4, k))),
            alive=jnp.ones(4),
        )
        logp = scored(tiny.params, batch).logp
        batch = batch._replace(old_logp=logp, ref_logp=1.1 * logp, old_values=0.1 * jnp.ones_like(logp))
        rewards = jnp.asarray(rng.normal(size=(4, k)), jnp.float32)
        out[k] = batch, scored(other, batch), rewards
    return out


ADAPTIVE = Adaptive(jnp.int32(1), jnp.float32(1))


def terms_of(config, fixed):
    """The method's terms on the fixed batch, whole and of its two halves."""
    batch, scores, rewards = fixed[config.group_size]
    verdict = (rewards, None) if config.online else (None, chosen_rejected_pairs(4))
    others = Likelihoods(batch.ref_logp + 0.1, None, batch.ref_logp, batch.mask)
    batch = learning_signal(config, batch, *verdict, jax.random.key(0), ADAPTIVE, others)

    def terms(rows):
        part = jax.tree.map(lambda x: x[rows] if x.ndim else x, (batch, scores, 0.3 * batch.old_logp))
        return objective(config, *part, ADAPTIVE)

    return terms(slice(None)), [terms(slice(0, 2)), terms(slice(2, 4))]


def both_ways(name):
    """The method's configurations: online, offline, or both."""
    return [small(name, offline) for offline in (False, True) if (name in OFFLINE if offline else name in ONLINE)]


EVERY = [config for method in METHODS for config in both_ways(method.name)]


@pytest.mark.parametrize("ref_kl", ["k2", "k3"])
def test_the_penalty_reads_neither_padding_nor_groups_left_out(fixed, ref_kl):
    """Whatever lies there: an estimate that is infinite has a gradient of nan."""
    batch, scores, rewards = fixed[4]
    batch = batch._replace(alive=jnp.array([1.0, 0.0, 1.0, 1.0]))
    config = small("grpo").replace(ref_beta=0.1, ref_kl=ref_kl)
    batch = learning_signal(config, batch, rewards, None, jax.random.key(0), ADAPTIVE, None)

    def loss(logp, ref_logp):
        one = batch._replace(ref_logp=ref_logp)
        return evaluate(objective(config, one, scores._replace(logp=logp), None, ADAPTIVE))

    run = jax.value_and_grad(loss, has_aux=True)
    far = jnp.where(batch.alive_mask > 0, batch.ref_logp, jnp.inf)
    jax.tree.map(np.testing.assert_array_equal, run(scores.logp, far), run(scores.logp, batch.ref_logp))


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c.method.name + "-offline" * (not c.online))
def test_terms_of_micro_batches_add_up_to_those_of_the_batch(fixed, config):
    beta = {"beta": 1e-4} if config.has("beta") else {}
    whole, halves = terms_of(config.replace(ref_beta=0.1, **beta), fixed)
    sums = {
        name: term._replace(total=sum(h[name].total for h in halves), count=sum(h[name].count for h in halves))
        for name, term in whole.items()
    }
    (loss, metrics), (added, more) = evaluate(whole), evaluate(sums)
    np.testing.assert_allclose(loss, added, rtol=1e-6, atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], more[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "change", [{"temperature": 0.5}, {"top_k": 1}, {"top_p": 1e-3}], ids=lambda change: "-".join(change)
)
def test_options_of_sampling_change_the_samples(tiny, change):
    lengths = []
    for config in (BASE, BASE.replace(**change)):
        _, rows = run(trainer_of(tiny, config), 1)
        lengths.append(np.array([rows[0][name] for name in ("reward", "reward_std", "length")]))
    assert np.abs(lengths[0] - lengths[1]).max() > 1e-6
    assert not {"top_k", "top_p"} & set(change) or lengths[1][1] == 0  # one token is all that is left


def test_an_accumulated_update_equals_one_batch(tiny):
    ends = []
    for accumulate in (1, 2):
        config = BASE.replace(epochs=1, accumulate=accumulate, learning_rate=1e-2)
        state, rows = run(trainer_of(tiny, config), 1)
        ends.append((jax.tree.leaves(state.opt_state), rows[0]["grad_norm"]))
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-4)  # 1.03e-5 of a norm of 536 seen, in float32
    for x, y in zip(ends[0][0], ends[1][0]):  # float32 through three layers of large weights
        np.testing.assert_allclose(x, y, atol=1e-5)


# Fields that change the loss, under which other changes: "method.field" of a method, or "part.field" with a method.
PENALTY, TOKENS = {"ref_beta": 0.2}, {"hinge": "tokens", "beta": 0.0}
CHANGES = [
    ("grpo", "clip", 0.01, {}),
    ("grpo", "clip_high", 0.0, {}),
    ("grpo", "dual_clip", 1.01, {}),
    ("grpo", "policy_loss", "cispo", {}),
    ("grpo", "level", "sequence", {}),
    ("grpo", "aggregate", "token_mean", {}),
    ("grpo", "aggregate", "constant", {}),
    ("grpo", "baseline", "leave_one_out", {}),
    ("grpo", "scale", "none", {}),
    ("grpo", "scale", "batch", {}),
    ("grpo", "ref_beta", 0.1, {}),
    ("rank", "clip", 0.01, {}),
    ("rank", "clip_high", 0.0, {}),
    ("rank", "dual_clip", 1.01, {}),
    ("rank", "policy_loss", "cispo", {}),
    ("rank", "level", "sequence", {}),
    ("rank", "aggregate", "token_mean", {}),
    ("ppo", "clip", 0.01, {}),
    ("ppo", "clip_high", 0.0, {}),
    ("ppo", "dual_clip", 1.01, {}),
    ("ppo", "gae_lambda", 0.5, {}),
    ("ppo", "value_weight", 2.0, {}),
    ("ppo", "ref_beta", 0.2, {}),
    ("soft", "clip", 0.01, {}),
    ("soft", "clip_high", 0.0, {}),
    ("soft", "dual_clip", 1.01, {}),
    ("soft", "policy_loss", "cispo", {}),
    ("soft", "level", "sequence", {}),
    ("soft", "aggregate", "token_mean", {}),
    ("soft", "beta", 1.0, {}),
    ("soft", "scheme", "all", {}),
    ("soft", "margin", 2.0, {}),
    ("soft", "ref_kl", "k2", PENALTY),
    ("hard", "scheme", "all", {}),
    ("hard", "margin", 2.0, {}),
    ("hard", "alpha", 5.0, {"beta": 0.0}),
    ("hard", "beta", 0.0, {}),
    ("hard", "delta_0", 0.1, {}),
    ("hard", "delta_gamma", 0.5, {}),
    ("hard", "fit", "forward", {}),
    ("hard", "trust_region", "lagrangian", {}),
    ("hard", "hinge", "tokens", {"beta": 0.0}),
    ("hard", "project_target", True, {"beta": 0.01}),
    ("hard", "length_normalize", True, {}),
    ("hard", "aggregate", "token_mean", TOKENS),
    ("dpo", "beta", 0.5, {}),
    ("dpo", "label_smoothing", 0.2, {}),
    ("dpo", "length_normalize", True, {}),
    ("ipo", "beta", 0.5, {}),
    ("ipo", "length_normalize", True, {}),
    ("orpo", "weight", 0.9, {}),
    ("simpo", "beta", 0.9, {}),
    ("simpo", "gamma", 0.1, {}),
    ("kto", "beta", 0.5, {}),
    ("kto", "desirable_weight", 1.33, {}),
    ("kto", "undesirable_weight", 2.0, {}),
]


@pytest.mark.parametrize(("name", "field", "value", "base"), CHANGES, ids=[f"{a}-{b}-{c}" for a, b, c, _ in CHANGES])
def test_a_field_changes_the_loss(fixed, name, field, value, base):
    config = small(name, **base)
    losses = [float(evaluate(terms_of(c, fixed)[0])[0]) for c in (config, config.replace(**{field: value}))]
    assert abs(losses[0] - losses[1]) > 1e-7


@pytest.mark.parametrize("names", [ONLINE, OFFLINE], ids=["online", "offline"])
def test_every_two_methods_differ(fixed, names):
    losses = [float(evaluate(terms_of(small(name, names is OFFLINE), fixed)[0])[0]) for name in names]
    assert np.min(np.abs(np.diff(np.sort(losses)))) > 1e-5


def test_every_setting_is_in_a_list():
    """Of a method, in CHANGES; of the other parts, there or in one of the lists below, or in the test named."""
    elsewhere = {
        "prompts", "prompt_tokens", "completion_tokens", "candidates", "epochs", "minibatches",  # counts_and_lengths
        "accumulate",  # an_accumulated_update
        "temperature", "top_k", "top_p",  # scores_are_those, options_of_sampling
        "rescore",  # bfloat16
        "keep_sampling_mask", "slots",  # test_draws
        "resample", "mask_truncated", "overlong_buffer", "overlong_penalty", "trim",  # test_draws
        "reference_scores",  # cached_and_shared
        "watch_kl",  # the_reference_is_scored
        "quantize",  # lora_leaves_the_base_alone
        "sft_iterations",  # supervised_start
    }  # fmt: skip
    for method in METHODS:
        fields = {field.name for field in dataclasses.fields(method)}
        assert fields <= {field for name, field, *_ in CHANGES if name == method.name}, method.name
    parts = (Samples, Texts, AlignOptimizer, Reference, Critic, Adapters)
    others = {field.name for part in parts for field in dataclasses.fields(part)}
    others |= {field.name for field in dataclasses.fields(AlignConfig)} - {"method", "samples", "texts", "optimizer"}
    others -= {"reference", "critic", "adapters"}
    listed = {field for _, field, *_ in CHANGES} | {name for x in OPTIMIZER + ADAPTERS for name in x} | elsewhere
    assert others <= listed and elsewhere <= others


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_no_name_belongs_to_two_parts(name):
    """`replace` finds a field by its name alone."""
    parts = (AlignConfig, method_class(name), Samples, Texts, AlignOptimizer, Reference, Critic, Adapters)
    fields = [field.name for part in parts for field in dataclasses.fields(part)]
    assert len(fields) == len(set(fields))


def test_scores_are_those_of_the_distribution_before_the_cut():
    config = BASE.replace(temperature=0.5, top_k=3, top_p=0.9)
    assert config.scored == Sampling(0.5) and config.samples.rescores and not BASE.samples.rescores
    assert BASE.replace(temperature=0.5).replace(samples=None, scheme="all").scored == Sampling()
    for cut in ({"top_k": 3}, {"top_p": 0.9}, {"rescore": True}):
        assert BASE.replace(**cut).samples.rescores and BASE.replace(**cut).samples.cuts == ("rescore" not in cut)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["grpo", "soft", "hard", "ppo"])
def test_a_cut_distribution_can_be_trained_on(tiny, algo):
    """A sampled token that leaves the top k of the policy or the reference would have log-probability -inf."""
    config = small(algo, top_k=2, top_p=0.9, epochs=3, learning_rate=5e-2, ref_beta=0.1)
    trainer = trainer_of(tiny, config)
    state, rows = run(trainer, 3)
    assert all(np.isfinite(value).all() for row in rows for value in row.values())
    assert int(state.step) == 9 and sum(row["skipped"].sum() for row in rows) == 0


OPTIMIZER = [{"learning_rate": 1e-3}, {"anneal": True}, {"max_grad_norm": 1e-3}, {"warmup": 5}]


@pytest.mark.parametrize("change", OPTIMIZER)
def test_a_field_changes_the_optimizer(change):
    def steps(config):
        optimizer, params, moved = make_optimizer(config, 3), jnp.ones(3), []
        state = optimizer.init(params)
        for scale in (0.01, 5.0):
            update, state = optimizer.update(scale * jnp.arange(3.0), state, params)
            moved.append(update)
        return np.stack(moved)

    assert np.abs(steps(BASE) - steps(BASE.replace(**change))).max() > 1e-6


ADAPTERS = [{"lora_rank": 2}, {"lora_rank": 0}, {"lora_alpha": 1.0}, {"lora_dropout": 0.5}, {"lora_targets": ("up",)}]


def test_the_method_and_its_supervised_start_anneal_over_horizons_of_their_own():
    config = BASE.replace(anneal=True, warmup=0, sft_iterations=40, epochs=2, minibatches=2)
    for supervised, updates in ((True, 40), (False, 4 * 10)):
        optimizer = make_optimizer(config, 50, supervised=supervised)
        state, rates = optimizer.init(jnp.ones(3)), []
        for _ in range(updates + 1):
            update, state = optimizer.update(jnp.ones(3), state)
            rates.append(-float(update[0]) / config.optimizer.learning_rate)
        np.testing.assert_allclose(rates, 1 - np.arange(updates + 1) / updates, atol=1e-3)


def test_a_batch_without_a_verdict_does_not_hold_up_the_annealing(tiny):
    def source(prompts, completions):
        failed = np.full(len(prompts), source.calls == 0)
        source.calls += 1
        return Judgement(np.array([[len(x) for x in group] for group in completions], float), None, failed)

    source.calls = 0
    config = BASE.replace(anneal=True, warmup=0, epochs=2)
    state, _ = run(trainer_of(tiny, config, source), 3)
    (count,) = (x.count for x in jax.tree.leaves(state.opt_state, is_leaf=is_schedule) if is_schedule(x))
    assert int(state.step) == 4 and int(count) == 6


def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)


@pytest.mark.parametrize("change", ADAPTERS, ids=lambda change: "-".join(change))
def test_a_field_changes_the_adapters(tiny, change):
    def policy(config):
        trainable = init_trainable(config, tiny, jax.random.key(0))
        return policy_of(config, tiny, tiny.params, jax.tree.map(lambda x: x + 1, trainable))

    base = small("dpo")
    one, other = (jax.tree.leaves_with_path(policy(config)[1:]) for config in (base, base.replace(**change)))
    assert len(one) != len(other) or any(
        p != q or x.shape != y.shape or (x != y).any() for (p, x), (q, y) in zip(one, other)
    )


def test_counts_and_lengths_are_those_asked_for(tiny):
    config = BASE.replace(prompts=2, candidates=2, completion_tokens=5, epochs=3, minibatches=2)
    state, rows = run(trainer_of(tiny, config.replace(delta_gamma=0.5)), 2)
    assert int(state.step) == 12 and rows[0]["grad_norm"].shape == (6,)
    assert rows[0]["pairs"] + rows[0]["ties"] == 2 and rows[0]["length"] <= 5
    assert [float(row["delta"]) for row in rows] == pytest.approx([0.2, 0.1])


def test_cached_and_shared_references_agree(tiny):
    config = small("dpo")
    ends = [run(trainer_of(tiny, config.replace(reference_scores=how)), 4)[0].params for how in ("shared", "cached")]
    for x, y in zip(*map(jax.tree.leaves, ends)):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("algo", some_slow(["hard", "ppo", "dpo"], "hard"))
def test_resumed_is_bit_for_bit_the_same(tiny, tmp_path, algo):
    config = small(algo, sft_iterations=1, minibatches=2)
    config = config if config.method.ratio else config.replace(lora_dropout=0.1)
    config = config.replace(scheme="bradley_terry") if config.has("scheme") else config
    trainer = trainer_of(tiny, config)
    through, rows = run(trainer, 4)
    half, _ = run(trainer_of(tiny, config), 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, half)
    _, restored = checkpoints.restore(trainer.init(jax.random.key(7)))
    again, more = run(trainer_of(tiny, config), 2, restored)
    assert digest(again) == digest(through)
    assert all(np.array_equal(x[name], y[name]) for x, y in zip(rows[2:], more) for name in without_times(x))


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_lora_leaves_the_base_alone_and_merges_into_it(tiny, quantize):
    """Of a quantised base, too, sampler and trainer see one policy, and what is merged is that policy in float32."""
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(tiny.params)]
    config = BASE.replace(quantize=quantize, rescore=quantize != "none")
    trainer = trainer_of(tiny, config)
    assert kind_of(trainer.model.params) == quantize
    state, rows = run(trainer, 2)
    assert all(row.get("sampler_gap", 0) < 1e-4 for row in rows)
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(tiny.params)] == before
    assert trainer.reference(state).params is trainer.model.params  # no second copy
    batch = pair_batch(make_data().pairs, 8, 6)
    adapted = score(trainer.policy(state), *batch.tokens).logp
    whole = trainer.policy(state)._replace(params=merged(config, trainer.model, state.params), lora=None)
    np.testing.assert_allclose(adapted, score(whole, *batch.tokens).logp, atol=2e-4)


def test_bfloat16_compute_keeps_float32_parameters(tiny):
    model = dataclasses.replace(tiny, dtype=jnp.bfloat16)
    state, rows = run(trainer_of(model, BASE.replace(lora_rank=0, rescore=True)), 2)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    assert np.isfinite(rows[-1]["loss"]).all() and 0 <= rows[0]["sampler_gap"] < 0.2


def test_supervised_start_moves_the_reference(tiny):
    trainer = trainer_of(tiny, BASE.replace(sft_iterations=3, watch_kl=True))
    state, rows = run(trainer, 3)
    assert rows[2]["surrogate"] < rows[0]["surrogate"]
    batch = pair_batch(make_data().pairs, 8, 6)
    ours, ref = (score(p, *batch.tokens).logp for p in (trainer.policy(state), trainer.reference(state)))
    np.testing.assert_array_equal(ours, ref)
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))  # Adam begins anew
    state, rows = run(trainer, 1, state)
    assert rows[0]["kl_ref"][0] < 1e-6


class Padded(Placement):
    """Fills batches up as four devices would have them, on one: only the empty places differ."""

    splits = 4


def shaky(prompts, completions):
    """`share_of_low_ids`, without a verdict on two of the prompts."""
    each = zip(prompts, share_of_low_ids(prompts, completions))
    return [[None] * len(group) if prompt[0]["content"] in "37" else group for prompt, group in each]


FILLED = {
    "hard": {"scheme": "bradley_terry"},
    "grpo": {"minibatches": 3, "scale": "batch", "ref_beta": 0.1},
    "soft": {"accumulate": 2, "resample": 2, "mask_truncated": True, "overlong_buffer": 2, "watch_kl": True},
    "ppo": {"ref_beta": 0.1},
    "dpo": {"accumulate": 3, "lora_dropout": 0.2, "sft_iterations": 1, "minibatches": 2},
    "kto": {},
}


@pytest.mark.parametrize("algo", some_slow(FILLED, "hard"))
def test_empty_places_change_no_figure(tiny, algo):
    config = small(algo, prompts=6, learning_rate=1e-4, **FILLED[algo])
    source = reward_function(shaky, on_error="skip") if algo == "grpo" else None
    if algo == "ppo":
        head = init_head(tiny.config.hidden_size)
        source = dataclasses.replace(head, weight=jnp.ones(len(head.weight)))
    (_, whole), (_, filled) = (run(trainer_of(tiny, config, source, placement=x), 2) for x in (None, Padded()))
    for rows in (whole, filled):  # before the first update the signs of log-ratios that are 0
        rows[0] = {name: x[1:] if name == "pair_accuracy" else x for name, x in rows[0].items()}
    for here, there in zip(whole, filled):
        here, there = without_times(here), without_times(there)
        assert here.keys() == there.keys()
        for name, x in here.items():
            noise = 1e-3 if name == "grad_norm" else 1e-5  # gradients that cancel in float32
            np.testing.assert_allclose(there[name], x, rtol=noise, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_empty_places_beside_the_one_group_that_teaches_change_no_figure(tiny):
    """An update of one place, and of four."""
    config = small("grpo", prompts=8, resample=1, epochs=2, learning_rate=1e-3, ref_beta=0.1)
    source = reward_function(
        lambda prompts, completions: [
            [float(i * (prompt[0]["content"] == "2")) for i in range(len(group))]
            for prompt, group in zip(prompts, completions)
        ]
    )
    rows = [run(trainer_of(tiny, config, source, placement=x), 1)[1][0] for x in (None, Padded())]
    here, there = map(without_times, rows)
    assert here["flat_groups"] == 15 / 16 and here["approx_kl"][1] > 1e-5
    for name in here.keys() - {"pair_accuracy"}:
        noise = 1e-3 if name == "grad_norm" else 1e-5
        np.testing.assert_allclose(there[name], here[name], rtol=noise, atol=1e-5, err_msg=name)


def test_empty_places_are_told():
    told = {(6, 1, 1): "prompts=6 on 4 devices: 2 empty places in each batch", (8, 1, 2): "", (8, 2, 1): ""}
    told |= {(6, 2, 1): "prompts=6 on 4 devices: 1 empty place in each micro-batch of 3"}
    told |= {(12, 2, 3): "prompts=12 on 4 devices: 2 empty places in each micro-batch of 2"}
    for (prompts, minibatches, accumulate), line in told.items():
        config = BASE.replace(prompts=prompts, minibatches=minibatches, accumulate=accumulate)
        assert Padded().told(config) == line and not Placement().told(config)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "replicated", "quantize"), [(4, True, "none"), (0, False, "none"), (4, False, "nf4")])
def test_a_mesh_gives_what_one_device_gives(tiny, rank, replicated, quantize):
    """Six groups on four devices, and eight."""
    config = BASE.replace(lora_rank=rank, prompts=6 if replicated else 8, learning_rate=1e-4, quantize=quantize)
    start = trainer_of(tiny, config).init(jax.random.key(0)).params
    one, rows = run(trainer_of(tiny, config), 2)
    mesh = jax.make_mesh((4,), ("data" if replicated else "fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    placement = Placement(mesh)
    assert placement.replicates == replicated
    two, more = run(trainer_of(tiny, config, placement=placement), 2)
    for here, there in zip(rows, more):
        np.testing.assert_allclose(there["loss"], here["loss"], rtol=5e-4)
    # Adam turns the sign of a rounding error into a whole step, so parameters are compared by how far they went.
    for here, there, before in zip(*map(jax.tree.leaves, (one.params, two.params, start))):
        assert distance(there, here) < 0.01 * distance(here, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONLINE, "dpo", "kto"])
def test_devices_that_hold_all_parameters_add_up_one_gradient(tiny, name):
    """Six groups on four devices, in micro-batches; every figure of the first batch is one device's."""
    config = small(name, prompts=6, learning_rate=1e-4, accumulate=2, minibatches=1, epochs=1)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    _, (here,) = run(trainer_of(tiny, config), 1)
    _, (there,) = run(trainer_of(tiny, config, placement=Placement(mesh)), 1)
    assert here.keys() == there.keys()
    for figure, value in without_times(here).items():
        tolerance = {"grad_norm": 2e-3, "pair_accuracy": 1.0}.get(figure, 1e-4)  # sums that cancel; signs of 0
        np.testing.assert_allclose(there[figure], value, rtol=tolerance, atol=tolerance, err_msg=figure)


@pytest.mark.slow
def test_held_out_figures_are_the_same_on_a_mesh(tiny):
    """Three prompts and pairs on four devices."""
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    head = dataclasses.replace(init_head(tiny.config.hidden_size), weight=jnp.ones(2 * tiny.config.hidden_size))
    limits, data = {"prompt_tokens": 8}, make_data()
    prompts, found = data.prompts[:3], []
    for placement in (Placement(), Placement(mesh)):
        model = placement.model(tiny)
        policy, rows = Policy(model, model.params), placement.rows
        options = {"sampling": Sampling(), "batch": 2, "rows": rows}
        replies = write_replies(policy, prompts, completion_tokens=6, key=jax.random.key(0), samples=2, **options)
        judged = judge_replies(policy, head, prompts, replies, **limits, **options)
        other = Policy(model, jax.tree.map(lambda x: 1.01 * x, model.params))
        ranked = implicit_margins(policy, other, data.pairs[:3], **limits, completion_tokens=6, rows=rows)
        found.append((replies.tokens, replies.logp, *judged, ranked))
    for here, there in zip(*found):
        assert len(here) == 3
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


def test_iterations_of_both_phases_are_stacked(tiny):
    trainer = trainer_of(tiny, BASE.replace(sft_iterations=1))
    _, metrics = trainer.iterate(trainer.init(jax.random.key(0)), 2)
    assert metrics["loss"].shape == (2, 2) and np.isfinite(metrics["loss"]).all()
    assert metrics["reward"].shape == (2,) and np.isnan(metrics["reward"][0]) and np.isfinite(metrics["reward"][1])


def test_the_std_of_a_batch_leaves_failed_groups_out():
    config = small("grpo", scale="batch")
    rewards = jnp.array([[99.0, 101.0, 100.0, 100.0], [0.0, 0.0, 0.0, 0.0], [98.0, 100.0, 101.0, 99.0]])
    batch = Batch(*[jnp.zeros(())] * 2, jnp.zeros((3, 4, 2)), jnp.ones((3, 4)), alive=jnp.array([1.0, 0.0, 1.0]))
    found = learning_signal(config, batch, rewards, None, jax.random.key(0), ADAPTIVE).signal.advantages
    alive = jnp.array([0, 2])
    np.testing.assert_allclose(found[alive], group_advantages(rewards[alive], scale="batch"), rtol=1e-4)  # eps
    np.testing.assert_array_equal(found[1], 0)


def test_implicit_rewards_run_each_model_as_it_is(tiny):
    """The reference may be another model: here with another norm epsilon."""
    other = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, norm_eps=0.5))
    policies = Policy(tiny, tiny.params), Policy(other, tiny.params)
    pairs = make_data().pairs
    found = implicit_margins(*policies, pairs, prompt_tokens=8, completion_tokens=6)
    ours, ref = (score(p, *pair_batch(pairs, 8, 6).tokens).logp.sum(-1) for p in policies)
    np.testing.assert_allclose(found, (ours - ref)[:, 0] - (ours - ref)[:, 1], atol=1e-4)
    assert np.abs(found).max() > 1e-2


@pytest.mark.parametrize("algo", OFFLINE)
def test_pair_accuracy_starts_at_a_half_where_it_is_of_the_ratio_to_the_reference(tiny, algo):
    """ORPO's and SimPO's are of the log-probabilities themselves: all right where the likelier reply is the chosen."""
    data = make_data()
    tokens = pair_batch(data.pairs, 8, 6).tokens
    per_token = score(Policy(tiny, tiny.params), *tokens).logp.sum(-1) / tokens[-1]
    likelier = np.argmax(per_token, axis=1)
    swap = [EncodedPair(pair.prompt, pair.rejected, pair.chosen) for pair in data.pairs]
    pairs = [(pair, swapped)[i] for pair, swapped, i in zip(data.pairs, swap, likelier)]
    config = small(algo, offline=True, watch_kl=algo in ("soft", "hard"))
    trainer = make_trainer(config, tiny, data._replace(pairs=pairs), None, iterations=10)
    _, rows = run(trainer, 1)
    assert rows[0]["pair_accuracy"][0] == (1 if algo in ("orpo", "simpo") else 0.5)


def test_failed_groups_are_counted_and_take_no_part(tiny):
    def half_broken(prompts, completions):
        rewards = share_of_low_ids(prompts, completions)
        return [row if i % 2 else [float("nan")] * len(row) for i, row in enumerate(rewards)]

    state, rows = run(trainer_of(tiny, BASE, reward_function(half_broken, on_error="skip")), 1)
    assert rows[0]["failed_groups"] == 2 and np.isfinite(rows[0]["loss"]).all() and rows[0]["pairs"] == 4
    nothing = reward_function(lambda p, c: [[float("nan")] * 4 for _ in p], on_error="skip")
    state, rows = run(trainer_of(tiny, BASE, nothing), 1)
    assert rows[0]["failed_groups"] == 4 and int(state.step) == 0 and int(state.extra["position"]) == 1


def with_columns(data):
    """The data with the number of each prompt, which is its text too, as a column."""
    return data._replace(prompts=[prompt._replace(columns={"number": i}) for i, prompt in enumerate(data.prompts)])


def test_columns_stay_with_their_rows_through_shuffles_devices_and_resume(tiny, tmp_path):
    seen = []

    def numbered(prompts, completions, number):
        seen.append([(int(prompt[0]["content"]), i) for prompt, i in zip(prompts, number)])
        return [[float(i)] * 4 for i in number]

    def trainer(placement=None):
        source = reward_function(numbered)
        config = BASE.replace(prompts=8, completion_tokens=2, epochs=1)
        data = with_columns(make_data())
        return make_trainer(config, tiny, data, source, iterations=9, seed=5, decode=decode, placement=placement)

    state, _ = run(trainer(), 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state)
    _, restored = checkpoints.restore(trainer().init(jax.random.key(7)))
    run(trainer(), 1, restored)  # more than one epoch of 12 prompts
    once = list(seen)
    assert all(text == i for batch in once for text, i in batch) and len({i for b in once for _, i in b}) == 12
    seen.clear()
    run(trainer(Placement(jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)))), 3)
    assert seen == once


def test_a_column_that_some_prompts_lack_is_named_before_anything_runs(tiny):
    data = with_columns(make_data())
    lacking = data._replace(prompts=[*data.prompts, data.prompts[0]._replace(columns={"numbr": 1})])
    for some, message in ((make_data(), "there are no columns"), (lacking, "there are no columns")):
        with pytest.raises(ValueError, match=f"reward: it asks for a column 'number'; {message}"):
            make_trainer(BASE, tiny, some, reward_function(lambda p, c, number: number), iterations=1, decode=decode)


BAD = [
    ("hard", {"candidates": 3, "scheme": "matched"}, "candidates=3 must be even"),
    ("hard", {"prompts": 3, "minibatches": 2}, "must divide prompts=3"),
    ("hard", {"accumulate": 3}, "minibatches=1 x accumulate=3 must divide prompts=4"),
    ("grpo", {"samples": None}, "samples=None: grpo learns from its own samples"),
    ("hard", {"method": Dpo()}, "samples: dpo learns from a data set's pairs; use samples=None"),
    ("hard", {"method": Ppo()}, "critic: ppo needs"),
    ("hard", {"critic": Critic()}, "critic: hard has no"),
    ("hard", {"temperature": 0.0}, "temperature must be > 0"),
    ("hard", {"prompt_tokens": 6}, "prompt_tokens=6: a prompt has 7"),
    ("hard", {"completion_tokens": 127}, "exceed the model's context of 128"),
    ("dpo", {"reference_scores": "cached", "sft_iterations": 1}, "sft_iterations=0"),
    ("hard", {"reference_scores": "cached"}, "reference_scores='cached' has no effect on samples"),
    ("orpo", {"reference_scores": "cached"}, "no effect with orpo, which learns nothing from pi_ref"),
    ("dpo", {"watch_kl": True}, "watch_kl=True has no effect where pi_ref is scored for the loss"),
    ("hard", {"watch_kl": True, "ref_beta": 0.1}, "watch_kl=True has no effect"),
    ("hard", {"project_target": "no"}, "project_target must be True or False"),
    ("hard", {"reference_scores": "stored"}, "reference_scores='stored' is unknown"),
    ("hard", {"ref_kl": "k1", "ref_beta": 0.1}, "ref_kl='k1' is unknown"),
    ("hard", {"lora_targets": ("nose",)}, "targets"),
    ("hard", {"lora_dropout": 1.5}, "lora_dropout must be in [0, 1), got 1.5"),
    ("hard", {"quantize": "int4"}, "quantize='int4' is unknown"),
    ("hard", {"quantize": "nf4", "lora_rank": 0}, "quantize='nf4' has no effect with lora_rank=0"),
    ("dpo", {"lora_alpha": 8.0, "lora_rank": 0}, "lora_alpha=8.0 has no effect with lora_rank=0"),
    ("dpo", {"lora_targets": ("q",), "lora_rank": 0}, "lora_targets=('q',) has no effect with lora_rank=0"),
    ("dpo", {"lora_dropout": 0.1, "lora_rank": 0}, "lora_dropout=0.1 has no effect with lora_rank=0"),
    (
        "dpo",
        {"lora_dropout": 0.1, "lora_targets": ("q", "lm_head")},
        "lora_dropout=0.1 has no effect on the target lm_",
    ),
    ("grpo", {"ref_kl": "k2"}, "ref_kl='k2' has no effect without ref_beta"),
    ("ppo", {"ref_kl": "k2", "ref_beta": 0.1}, "ref_kl='k2' has no effect"),
    ("soft", {"samples": None, "scheme": "matched"}, "scheme='matched' has no effect on a data set's pairs"),
    ("hard", {"samples": None, "scheme": "all", "margin": 0.5}, "margin=0.5 has no effect on a data set's pairs"),
    ("hard", {"lora_dropout": 0.1}, "lora_dropout: hard learns from the ratio to pi_old"),
    ("hard", {"top_p": 1.5}, "top_p must be in (0, 1], got 1.5"),
    ("hard", {"top_k": 0}, "top_k must be >= 1, got 0"),
    ("grpo", {"keep_sampling_mask": True}, "keep_sampling_mask=True has no effect without top_k or top_p"),
    ("grpo", {"rescore": True, "top_k": 5}, "rescore=True has no effect with top_k or top_p"),
    ("ppo", {"resample": 1}, "resample=1 has no effect that ppo could need: its critic learns from every group"),
    ("soft", {"resample": -1}, "resample must be >= 0"),
    ("grpo", {"overlong_buffer": 7}, "overlong_buffer=7 must be at most completion_tokens=6"),
    ("grpo", {"overlong_penalty": 0.5}, "overlong_penalty=0.5 has no effect with overlong_buffer=0"),
    ("soft", {"clip_high": -1.0}, "clip_high must be >= 0"),
    ("ipo", {"beta": 0.0}, "beta must be > 0"),
    ("hard", {"sft_iterations": 10}, "sft_iterations=10 leave none of iterations=10"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[message[:20] for *_, message in BAD])
def test_bad_settings_are_named(tiny, name, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer_of(tiny, small(name, **change))


def test_a_source_that_does_not_fit_the_model_is_named(tiny):
    with pytest.raises(ValueError, match="head: made for 3 features"):
        trainer_of(tiny, BASE, init_head(3, ("mean",)))
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        make_trainer(BASE, tiny, make_data(), reward_function(share_of_low_ids), iterations=10)


@pytest.mark.slow
def test_one_real_update_of_smollm2(smollm2):
    config = AlignConfig().replace(prompts=2, candidates=2, completion_tokens=8, epochs=2)
    data = Data(encode_prompts(smollm2, load_prompts("tiny").rows[:4], config.texts.prompt_tokens))
    longer = reward_function(lambda prompts, completions: [[float(len(x)) for x in group] for group in completions])
    trainer = make_trainer(config, smollm2, data, longer, iterations=1)
    state, rows = run(trainer, 1)
    assert 0 < rows[0]["sampler_gap"] < 1e-3 and rows[0]["approx_kl"][0] < 1e-5 < rows[0]["approx_kl"][1]
    assert np.isfinite(rows[0]["loss"]).all() and int(state.step) == 2 and rows[0]["tokens"] > 0


def test_the_multiplier_answers_the_kl_after_the_last_update(tiny):
    """With one update a batch the KL before it is 0, and the multiplier could only fall."""
    config = small("hard", trust_region="lagrangian", beta=1e-6, epochs=1, learning_rate=5e-2)
    state, rows = run(trainer_of(tiny, config), 2)
    assert all(row["realised_kl"] > 1e-6 > row["approx_kl"][0] for row in rows)
    assert state.multiplier > trainer_of(tiny, config).init(jax.random.key(0)).multiplier


def test_ktos_reference_point_is_that_of_the_next_prompts_replies(tiny):
    """Reply after reply by hand, with a policy that has moved; all updates of a batch share it."""
    config = small("kto", epochs=2, minibatches=2, learning_rate=5e-2)
    trainer = trainer_of(tiny, config)
    state, _ = run(trainer, 1)
    pairs = [make_data().pairs[i] for i in batch_indices(12, 4, 1, 0)]
    wrong = [EncodedPair(pairs[i].prompt, *pairs[(i + 1) % 4].replies) for i in range(4)]
    tokens = pair_batch(wrong, 8, 6).tokens
    ours, ref = (score(policy, *tokens).logp for policy in (trainer.policy(state), trainer.reference(state)))
    expected = max(float(np.mean((ours - ref).sum(-1))), 0)
    points = run(trainer, 1, state)[1][0]["reference_point"]
    assert expected > 1e-3
    np.testing.assert_allclose(points, np.full(4, expected), rtol=1e-3)


@pytest.mark.parametrize(
    ("algo", "options"), [("dpo", {}), ("dpo", {"length_normalize": True}), ("orpo", {}), ("simpo", {})]
)
def test_pair_accuracy_is_that_of_the_loss(tiny, algo, options):
    config = small(algo, **options)
    trainer = trainer_of(tiny, config)
    state, _ = run(trainer, 2)
    batch = pair_batch(make_data().pairs[:4], 8, 6)
    ours, ref = (score(policy, *batch.tokens) for policy in (trainer.policy(state), trainer.reference(state)))
    adaptive = Adaptive(jnp.int32(0), jnp.float32(1))
    signal = config.method.signal(Verdict(pairs=chosen_rejected_pairs(4)), jax.random.key(0), adaptive)
    batch = batch._replace(ref_logp=ref.logp, signal=signal, alive=jnp.ones(4))
    metrics = evaluate(objective(config, batch, ours, None, adaptive))[1]
    ours, ref, lengths = (np.asarray(x, np.float64) for x in (ours.logp.sum(-1), ref.logp.sum(-1), batch.lengths))
    reward = {"orpo": ours / lengths, "simpo": ours / lengths}.get(algo, ours - ref)
    reward = reward / lengths if options else reward
    assert metrics["pair_accuracy"] == np.mean(reward[:, 0] > reward[:, 1])
