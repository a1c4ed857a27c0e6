"""Groups that teach nothing are replaced, and replies that were cut off are left out or paid less for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairgrpo_jax.core import Pairs, evaluate
from pairgrpo_jax.lm.alignment import Batch, Placement, make_trainer, objective, online
from pairgrpo_jax.lm.alignment import trainer as trainer_module
from pairgrpo_jax.lm.alignment.batch import halved, trimmed_width
from pairgrpo_jax.lm.alignment.draws import Draw, best, joined, overlong_penalty, teaching, told
from pairgrpo_jax.lm.alignment.programs import minibatch
from pairgrpo_jax.lm.alignment.signals import learning_signal
from pairgrpo_jax.lm.models.generation import generate
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.lm.models.scoring import Policy, Scores, completion_hidden, kept_tokens, score
from pairgrpo_jax.lm.rewards.sources import judge, reward_function
from pairgrpo_jax.methods import Adaptive, Verdict

from .test_alignment import BASE, decode, digest, make_data, run, small, trainer_of, without_times

ADAPTIVE = Adaptive(jnp.int32(0), jnp.float32(1.0))
GRPO = small("grpo").method
ENDLESS = BASE.replace(method=GRPO, epochs=1)
ROUNDED = {"rtol": 1e-4, "atol": 1e-5}  # before any update, mass that moved is the rounding of log-probabilities


def draw_of(rewards, pairs=None, alive=None, counted=None):
    """Groups of replies of one token, each prompt with its number."""
    b, k = len(rewards), len(rewards[0])
    tokens = (np.arange(b)[:, None], np.ones(b, int), np.zeros((b, k, 1), int), np.ones((b, k), int))
    alive = np.ones(b, np.float32) if alive is None else np.asarray(alive, np.float32)
    batch = Batch(*tokens, alive=alive, counted=counted)
    rewards = np.asarray(rewards, np.float32)
    return Draw(batch, rewards, rewards, pairs, np.ones((b, k), np.float32))


@pytest.mark.parametrize(("length", "lost"), [(1, 0.0), (12, 0.0), (13, 0.25), (14, 0.5), (15, 0.75), (16, 1.0)])
def test_the_soft_punishment_is_dapos(length, lost):
    """0 up to L_max - L_cache tokens, (|y| - (L_max - L_cache)) / L_cache beyond (arXiv 2503.14476, eq. 13)."""
    assert overlong_penalty(np.array([length]), 16, 4)[0] == lost


@given(limit=st.integers(1, 4096), share=st.floats(0, 1))
def test_halves_hold_the_count_and_are_few(limit, share):
    count = max(1, round(share * limit))
    size = halved(limit, count)
    assert count <= size <= limit and size < 2 * count
    assert len({halved(limit, n) for n in range(1, limit + 1)}) <= np.log2(limit) + 2


@given(limit=st.integers(1, 4096), share=st.floats(0, 1))
def test_a_trimmed_width_holds_the_longest_and_is_of_few(limit, share):
    longest = max(1, round(share * limit))
    width = trimmed_width(longest, limit)
    assert longest <= width <= limit and (width <= max(2 * longest, 7) or width == limit)
    assert len({trimmed_width(n, limit) for n in range(1, limit + 1)}) <= max(np.log2(limit), 1)


def short_after(length):
    """Replies of up to 16 tokens, none of which is longer than `length`."""

    def change(out):
        lengths = np.minimum(np.asarray(out.lengths), length)
        keep = np.arange(16) < lengths[..., None]
        return out._replace(tokens=np.where(keep, out.tokens, 0), lengths=lengths, logp=np.where(keep, out.logp, 0))

    return change


@pytest.mark.parametrize("algo", ["grpo", "ppo", "hard"])
def test_a_trimmed_batch_teaches_what_the_whole_one_does(tiny, algo, monkeypatch):
    """Of replies of 7 tokens at most, with the reference's penalty, a critic and a cut distribution."""
    config = small(algo, completion_tokens=16, ref_beta=0.1, top_k=8, keep_sampling_mask=True, learning_rate=1e-3)
    cut, lengths = short_after(7), set()
    monkeypatch.setattr(online, "generate", lambda *args, **options: cut(generate(*args, **options)))
    rows, states = [], []
    for trim in (False, True):
        trainer = trainer_of(tiny, config.replace(trim=trim))
        own, update = trainer.iterate.__self__, trainer.iterate.__self__.update
        own.update = lambda state, frozen, batch, run=update: (
            lengths.add(batch.mask.shape[-1]),
            run(state, frozen, batch),
        )[1]
        state, (row,) = run(trainer, 1)
        rows.append(without_times(row))
        states.append(state.params)
    assert lengths == {16, 8}
    chex.assert_trees_all_close(rows[0], rows[1], **ROUNDED)
    chex.assert_trees_all_close(
        states[0], states[1], atol=2e-4
    )  # Adam moved them by 2e-3; where a gradient is 0, anywhere


def test_draws_of_several_lengths_are_joined(tiny, monkeypatch):
    longest = iter([7, 3, 16, 2, 2, 2])
    cuts = map(short_after, longest)
    monkeypatch.setattr(online, "generate", lambda *args, **options: next(cuts)(generate(*args, **options)))
    config = ENDLESS.replace(resample=2, trim=True, completion_tokens=16)
    _, (row,) = run(trainer_of(tiny, config, reward_function(odd_alone)), 1)
    assert row["resampled"] >= 1 and np.all(row["grad_norm"] > 0)


def test_a_constant_length_is_not_trimmed():
    with pytest.raises(ValueError, match="trim: aggregate='constant' divides by completion_tokens"):
        small("grpo", aggregate="constant", trim=True)


def test_groups_of_equal_rewards_or_without_a_verdict_teach_nothing():
    rewards = [[1, 1], [0, 1], [0, 0], [0, 1]]
    counted = np.ones((4, 2), np.float32)
    assert teaching(GRPO, draw_of(rewards)).tolist() == [False, True, False, True]
    assert teaching(GRPO, draw_of(rewards, alive=[1, 0, 1, 1])).tolist() == [False, False, False, True]
    counted[3] = 0
    assert teaching(GRPO, draw_of(rewards, counted=counted)).tolist() == [False, True, False, False]
    zeros = np.zeros((4, 1), int)
    pairs = Pairs(zeros, zeros + 1, np.array([[0.0], [0.0], [1.0], [0.0]], np.float32))
    assert teaching(GRPO, draw_of(rewards, pairs)).tolist() == [False, False, True, False]


def test_the_first_groups_that_teach_are_kept_then_the_first_others():
    draws = joined([draw_of([[1, 1], [0, 1]]), draw_of([[0, 0], [1, 0]])])
    kept = best(draws, teaching(GRPO, draws), 3)
    assert kept.batch.prompts[:, 0].tolist() == [1, 1, 0] and kept.rewards.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert kept.batch.alive.tolist() == [1, 1, 0] and kept.batch.stands_for is None
    draws = draws._replace(batch=draws.batch._replace(stands_for=np.ones(4, np.float32)))
    assert best(draws, teaching(GRPO, draws), 3).batch.stands_for.tolist() == [1.5] * 3
    assert best(draws, teaching(GRPO, draws), 2).batch.stands_for.tolist() == [1] * 2


def test_figures_of_several_draws_are_those_of_all_their_groups():
    rows = [
        {"judge_questions": 3.0, "judge_latency": 1.0, "judge_seconds": 2.0, "reward/f": 0.25, "reward/g": np.nan},
        {"judge_questions": 1.0, "judge_latency": 5.0, "judge_seconds": 1.0, "reward/f": 1.0, "reward/g": 2.0},
    ]
    assert told(rows, [4, 2]) == {
        "judge_questions": 4.0, "judge_latency": 2.0, "judge_seconds": 3.0, "reward/f": 0.5, "reward/g": 2.0,
    }  # fmt: skip
    assert np.isnan(told(rows[:1], [4])["reward/g"])


def test_a_gap_within_the_margin_teaches_a_method_of_pairs_nothing():
    rewards = [[0.0, 0.5], [0.0, 2.0]]
    for margin, found in ((0.0, [True, True]), (0.5, [False, True])):
        method = small("soft", margin=margin).method
        assert teaching(method, draw_of(rewards)).tolist() == found
        pairs = method.pairs(Verdict(jnp.asarray(rewards)), jax.random.key(0))
        assert (pairs.weight > 0).any(-1).tolist() == found


@pytest.mark.parametrize(
    "config",
    [
        small("grpo", top_k=2, keep_sampling_mask=True, mask_truncated=True, resample=1),
        small("ppo", ref_beta=0.1),
        small("hard", watch_kl=True, resample=1),
        small("dpo"),
        small("orpo"),
    ],
    ids=lambda config: config.method.name,
)
def test_a_plan_is_made_for_the_arrays_that_a_run_has(tiny, config):
    """Of the run the first batch, as updates are given it."""
    trainer, seen = trainer_of(tiny, config), []
    own = trainer.iterate.__self__
    own.passes.signal = lambda *args, make=own.passes.signal: (batch := make(*args), seen.append(batch))[0]
    own.fit = lambda state, *rest: (state, {})
    trainer.iterate(trainer.init(jax.random.key(0)), 1)
    planned = minibatch(config, tiny.config.vocab_size, Placement())
    assert jax.tree.structure(planned) == jax.tree.structure(seen[0])
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (planned, seen[0])]
    assert shapes[0] == shapes[1]


def odd_alone(prompts, completions):
    """Replies to even prompts are all alike; to odd ones they are not."""
    odd = [int(prompt[-1]["content"]) % 2 for prompt in prompts]
    return [[x * is_odd for x in range(len(group))] for group, is_odd in zip(completions, odd)]


@pytest.mark.parametrize("most", [0, 1, 4])
def test_groups_without_a_signal_are_drawn_again(tiny, most):
    trainer = trainer_of(tiny, ENDLESS.replace(resample=most), reward_function(odd_alone))
    state, rows = run(trainer, 2)
    drawn = 2 + sum(int(row.get("resampled", 0)) for row in rows)
    assert int(state.extra["position"]) == drawn and drawn <= 2 * (most + 1)
    shown = [number % 2 for place in range(drawn) for number in numbers(place)]
    first = drawn if most == 0 else 1 + int(rows[0]["resampled"])
    assert rows[0]["flat_groups"] == pytest.approx(1 - np.mean(shown[: 4 * (1 if most == 0 else first)]))
    if most == 4:
        assert all(row["resampled"] > 0 for row in rows) and sum(shown[: 4 * first]) >= 4
        again, _ = run(trainer, 1, run(trainer, 1)[0])
        assert digest(again) == digest(state)


@pytest.mark.parametrize(("algo", "told_apart", "teach"), [("grpo", "123", 4), ("soft", "12", 3), ("hard", "123", 4)])
def test_groups_that_teach_nothing_have_no_place_in_an_update(tiny, algo, told_apart, teach, monkeypatch):
    """Updates in the least size that holds the others, here 4, are those of the whole size."""
    config = small(algo, prompts=8, resample=1, ref_beta=0.1, epochs=1, learning_rate=1e-3)
    rows, states, sizes = [], [], []
    for size in (halved, lambda limit, count: limit):
        monkeypatch.setattr(trainer_module, "halved", size)
        trainer = trainer_of(tiny, config, reward_function(only(told_apart)))
        own, update = trainer.iterate.__self__, trainer.iterate.__self__.update
        own.update = lambda state, frozen, batch, run=update: (
            sizes.append((len(batch.lengths), int(batch.alive.sum()))),
            run(state, frozen, batch),
        )[1]
        state, (row,) = run(trainer, 1)
        row.pop("pair_accuracy", None)  # of margins that are 0 before any update, but for rounding
        rows.append(without_times(row))
        states.append(state.params)
    assert {size for size, _ in sizes} == {4, 8} and {alive for _, alive in sizes} == {teach}
    assert rows[0]["groups_without_pair"] == 1 - teach / 8 if algo != "grpo" else "groups_without_pair" not in rows[0]
    chex.assert_trees_all_close(rows[0], rows[1], **ROUNDED)
    chex.assert_trees_all_close(states[0], states[1], atol=2e-4)


@pytest.mark.parametrize("algo", ["grpo", "rank", "soft", "hard"])
def test_groups_without_a_place_are_counted_as_the_method_counts_them(tiny, algo, monkeypatch):
    """An update is the one in which every group has a place: advantages of 0 are averaged over, groups without a pair
    are not."""
    config = small(algo, prompts=8, resample=1, epochs=1, learning_rate=1e-3)
    rows, states = [], []

    def all_alive(draw, teaches, count):
        kept = best(draw, teaches, count)
        batch = kept.batch._replace(alive=np.ones(count, np.float32))
        return kept._replace(batch=batch._replace(stands_for=None if batch.stands_for is None else batch.alive))

    for choose in (best, all_alive):
        monkeypatch.setattr(online, "best", choose)
        state, (row,) = run(trainer_of(tiny, config, reward_function(only("123"))), 1)
        rows.append({name: row[name] for name in ("surrogate", "grad_norm")})
        states.append(state.params)
    assert rows[0]["grad_norm"] > 0
    chex.assert_trees_all_close(rows[0], rows[1], **ROUNDED)
    chex.assert_trees_all_close(states[0], states[1], atol=2e-4)


def only(told_apart):
    """Replies to these prompts differ; to all others they are alike."""
    return lambda prompts, completions: [
        [x * (prompt[-1]["content"] in told_apart) for x in range(len(group))]
        for prompt, group in zip(prompts, completions)
    ]


def numbers(place):
    """The prompts of a batch by their numbers."""
    data = make_data()
    return [int(prompt.messages[0]["content"]) for prompt in data.batch(place, BASE.texts.prompts, 0)]


def test_the_bound_holds_where_nothing_ever_teaches(tiny):
    flat = reward_function(lambda prompts, completions: [[1.0] * len(group) for group in completions])
    _, rows = run(trainer_of(tiny, ENDLESS.replace(resample=2), flat), 1)
    assert rows[0]["resampled"] == 2 and rows[0]["flat_groups"] == 1 and "grad_norm" not in rows[0]


def test_draws_without_any_verdict_are_counted_all_the_same(tiny):
    silent = reward_function(
        lambda prompts, completions: [[np.nan] * len(group) for group in completions], on_error="skip"
    )
    _, (row,) = run(trainer_of(tiny, ENDLESS.replace(resample=1), silent), 1)
    assert row["resampled"] == 1 and row["failed_groups"] == 8 and np.isnan(row["reward/<lambda>"])


def test_replies_that_were_cut_off_can_be_left_out(tiny):
    """No reply of the tiny model ends with its first token here, so that nothing is left."""
    found = [
        run(trainer_of(tiny, ENDLESS.replace(completion_tokens=1, mask_truncated=masked)), 1)[1][0]
        for masked in (False, True)
    ]
    assert found[0]["truncated"] == found[1]["truncated"] == 1 and found[0]["grad_norm"] > 0 == found[1]["grad_norm"]


@pytest.mark.parametrize("algo", ["grpo", "soft", "hard", "ppo"])
def test_what_is_not_counted_moves_no_loss(fixed_groups, algo):
    batch, scores, moved = fixed_groups
    config = small(algo)
    rewards = jnp.arange(12.0).reshape(3, 4) % 5
    values = jnp.zeros(batch.old_logp.shape) if config.critic else None
    whole = learning_signal(config, batch._replace(old_values=values), rewards, None, jax.random.key(0), ADAPTIVE)
    losses = [evaluate(objective(config, whole, x, values, ADAPTIVE))[0] for x in (scores, moved)]
    assert losses[0] == losses[1]
    counted = whole._replace(counted=None)
    losses = [evaluate(objective(config, counted, x, values, ADAPTIVE))[0] for x in (scores, moved)]
    assert losses[0] != losses[1]


@pytest.fixture
def fixed_groups():
    """Three groups of four replies, of which reply 2 of each is not counted; scores, and others of that reply alone."""
    rng = np.random.default_rng(0)
    logp, old = (jnp.asarray(rng.normal(-2, 0.3, (3, 4, 5)), jnp.float32) for _ in range(2))
    counted = jnp.ones((3, 4)).at[:, 2].set(0)
    tokens = (jnp.zeros((3, 2), int), jnp.ones(3, int), jnp.zeros((3, 4, 5), int), jnp.full((3, 4), 5))
    batch = Batch(*tokens, old_logp=old, alive=jnp.ones(3), counted=counted)
    other = logp.at[:, 2].add(0.7)
    return batch, *(Scores(x, jnp.ones_like(x), None) for x in (logp, other))


def test_a_rewards_fall_reaches_the_signal_and_not_the_log(tiny):
    """With a buffer of all 6 tokens, each costs a sixth of the penalty."""
    flat = reward_function(lambda prompts, completions: [[1.0] * len(group) for group in completions])
    change = {"overlong_buffer": 6, "overlong_penalty": 2.0}
    _, (row,) = run(trainer_of(tiny, ENDLESS.replace(**change), flat), 1)
    assert row["reward"] == 1 and row["overlong_penalty"] == pytest.approx(row["length"] / 3)
    assert row["flat_groups"] == 1 and (row["grad_norm"] > 0) == (row["length"] < 6)


def test_a_judge_has_no_reward_that_could_fall(tiny):
    source = judge(lambda prompt, one, other: 1.0)
    with pytest.raises(ValueError, match="overlong_buffer: a judge that compares gives no rewards"):
        make_trainer(small("soft", overlong_buffer=2), tiny, make_data(), source, iterations=1, decode=decode)


def test_probabilities_of_kept_tokens_are_those_they_were_drawn_with(tiny):
    """Beside the sampler, a pass without a cache by hand, and another policy on the same tokens."""
    prompts = [[5, 6, 7], [8, 9, 10]]
    out = generate(tiny, tiny.params, prompts, max_new_tokens=4, key=jax.random.key(0), num_samples=3, top_k=3)
    tokens = (jnp.asarray(prompts), jnp.array([3, 3]), jnp.asarray(out.tokens), jnp.asarray(out.lengths))
    here = Policy(tiny, tiny.params)
    kept = kept_tokens(here, completion_hidden(here, *tokens), tokens[2], Sampling(top_k=3), chunk=5)
    bits = np.unpackbits(np.asarray(kept), axis=-1, count=tiny.config.vocab_size)
    assert kept.shape == (2, 3, 4, 13) and (bits.sum(-1) == 3).all()
    np.testing.assert_allclose(score(here, *tokens, kept=kept, chunk=5).logp, out.logp, atol=2e-5)
    moved = Policy(tiny, jax.tree.map(lambda x: 1.1 * x, tiny.params))
    scores = score(moved, *tokens, kept=kept, reference=here)
    assert np.isfinite(scores.logp).all() and (np.asarray(scores.kl) > -1e-6).all()
    for group, row in np.ndindex(2, 3):
        length = int(out.lengths[group, row])
        text = jnp.asarray([*prompts[group], *out.tokens[group, row, :length].tolist()])[None]
        logits = np.asarray(tiny.decoder.apply({"params": moved.params}, text, jnp.arange(text.shape[1])[None], [])[0])
        left = np.where(bits[group, row, :length] > 0, logits[0, 2:-1].astype(np.float64), -np.inf)
        left -= np.log(np.exp(left).sum(-1, keepdims=True))
        found = left[np.arange(length), out.tokens[group, row, :length]]
        np.testing.assert_allclose(scores.logp[group, row, :length], found, atol=2e-4)


@pytest.mark.parametrize("algo", ["grpo", "hard", "ppo"])
def test_the_kept_mask_makes_the_first_ratio_one(tiny, algo):
    """The policy that trains is the one that sampled; without the mask the two differ by what was cut."""
    config = small(algo, top_k=2, keep_sampling_mask=True, ref_beta=0.1, learning_rate=5e-2)
    state, (row,) = run(trainer_of(tiny, config), 1)
    assert row["sampler_gap"] < 1e-4 and abs(row["approx_kl"][0]) < 1e-9 < row["approx_kl"][1]
    assert all(np.isfinite(x).all() for x in row.values()) and int(state.step) == 2
    assert row["entropy"].max() <= np.log(2) + 1e-6  # of two tokens


def test_completions_that_make_room_for_the_next_are_the_same(tiny):
    rows = [run(trainer_of(tiny, ENDLESS.replace(slots=slots)), 1)[1][0] for slots in (None, 8)]
    for name in ("reward", "length", "truncated", "flat_groups"):
        assert rows[0][name] == rows[1][name], name
    np.testing.assert_allclose(rows[0]["grad_norm"], rows[1]["grad_norm"], rtol=1e-4)
    mesh = Placement(jax.make_mesh((4,), ("data",)))
    with pytest.raises(ValueError, match="slots=8: completions are not refilled on a mesh"):
        trainer_of(tiny, ENDLESS.replace(slots=8), placement=mesh)
