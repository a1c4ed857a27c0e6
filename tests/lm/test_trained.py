"""What a run trains on, number by number: temperature, penalties towards the reference, random keys, what fine-tuning
leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.core import evaluate
from pairgrpo_jax.core.surrogate import policy_kl
from pairgrpo_jax.lm.alignment import Batch, Data, Placement, make_trainer, objective
from pairgrpo_jax.lm.alignment.draws import best, joined, teaching
from pairgrpo_jax.lm.alignment.signals import learning_signal
from pairgrpo_jax.lm.models.scoring import Scores
from pairgrpo_jax.lm.rewards.reward_model import init_head

from .test_alignment import ADAPTIVE, BASE, Padded, make_data, run, small, trainer_of
from .test_draws import draw_of


def head_of(model):
    """A reward head that tells replies apart."""
    head = init_head(model.config.hidden_size)
    return head.replace(weight=jax.random.normal(jax.random.key(0), head.weight.shape))


def recorded(own, name, result=None):
    """The arguments of each call of a part of a run; with `result` in place of what it would do."""
    made, calls = getattr(own, name), []

    def call(*args):
        calls.append(args)
        return made(*args) if result is None else result(*args)

    setattr(own, name, call)
    return calls


def test_all_passes_score_at_the_temperature_of_the_samples(tiny):
    """Sampler, first update, pi_old, pi_ref and the pass of a reward head: before any update they are one policy."""
    trainer = trainer_of(tiny, BASE.replace(temperature=0.7, watch_kl=True, epochs=1))
    own = trainer.iterate.__self__
    seen = recorded(own.passes, "signal")
    params = jax.tree.map(jnp.copy, trainer.init(jax.random.key(0)).params)
    _, (row,) = run(trainer, 1)
    assert row["approx_kl"][0] < 1e-6 and row["sampler_gap"] < 1e-4 and row["kl_ref"][0] < 1e-6
    batch = seen[0][0]
    logp = np.where(batch.mask > 0, batch.old_logp, 0)
    found = [
        batch.ref_logp,
        own.passes.old_scores(params, own.passes.frozen, batch)[0],
        own.passes.judge_tokens(tiny.params, head_of(tiny), batch)[0],
    ]
    assert np.abs(logp).max() > 0.1
    for other in found:
        np.testing.assert_allclose(np.where(batch.mask > 0, other, 0), logp, atol=1e-4)


def random_batch(counted=None):
    """Two groups of three replies of up to four tokens, one group of which is not alive; log-probabilities of three
    policies."""
    rng = np.random.default_rng(0)
    logp, old, ref = (jnp.asarray(rng.normal(-2, 0.5, (3, 3, 4)), jnp.float32) for _ in range(3))
    lengths = jnp.array([[4, 1, 2], [3, 3, 4], [1, 4, 4]])
    tokens = jnp.zeros((3, 2), int), jnp.ones(3, int), jnp.zeros((3, 3, 4), int), lengths
    batch = Batch(*tokens, old_logp=old, ref_logp=ref, alive=jnp.array([1.0, 0.0, 1.0]), counted=counted)
    return batch, logp


def test_the_critics_return_pays_for_the_log_ratio_to_the_reference():
    """Token by token, by hand: the reward at the last, `ref_beta (log pi_old - log pi_ref)` off each, GAE backwards."""
    batch, values = random_batch()
    rewards = np.array([[1.0, -0.5, 2.0], [0.0, 3.0, 1.0], [1.0, 0.0, -1.0]])
    config = small("ppo", ref_beta=0.1, gae_lambda=0.9)
    batch = batch._replace(old_values=values)
    found = learning_signal(config, batch, jnp.asarray(rewards), None, jax.random.key(0), ADAPTIVE).returns
    expected = np.zeros(values.shape)
    for b, k in np.ndindex(rewards.shape):
        length, advantage, after = int(batch.lengths[b, k]), 0.0, 0.0
        for t in reversed(range(length)):
            reward = rewards[b, k] * (t == length - 1) - 0.1 * float(batch.old_logp[b, k, t] - batch.ref_logp[b, k, t])
            advantage = reward + after - float(values[b, k, t]) + 0.9 * advantage
            after = float(values[b, k, t])
            expected[b, k, t] = advantage + after
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_log_ratio_of_two_costs_a_fifth_of_a_reward_of_one():
    tokens = jnp.zeros((1, 1), int), jnp.ones(1, int), jnp.zeros((1, 1, 1), int), jnp.ones((1, 1), int)
    logp = jnp.full((1, 1, 1), -1.0)
    batch = Batch(*tokens, old_logp=logp, ref_logp=logp - 2, old_values=0 * logp, alive=jnp.ones(1))
    config = small("ppo", ref_beta=0.1)
    found = learning_signal(config, batch, jnp.ones((1, 1)), None, jax.random.key(0), ADAPTIVE)
    np.testing.assert_allclose(found.returns, 0.8, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_penalty_and_kl_ref_are_k3_of_the_policy_to_the_reference(masked):
    """exp(ref - logp) - (ref - logp) - 1 of each token, and for the penalty its gradient 1 - exp(ref - logp): a mean
    over tokens, then over completions; `kl_ref` a sum over tokens, then the mean over completions that count."""
    counted = jnp.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]) if masked else None
    batch, logp = random_batch(counted)
    config = small("grpo", ref_beta=0.1)
    batch = learning_signal(config, batch, jnp.arange(9.0).reshape(3, 3), None, jax.random.key(0), ADAPTIVE)

    def penalty(logp):
        terms = objective(config, batch, Scores(logp, jnp.ones_like(logp), None), None, ADAPTIVE)
        return terms["ref_penalty"].value, terms

    gradient, terms = jax.grad(penalty, has_aux=True)(logp)
    gap = np.asarray(batch.ref_logp - logp, np.float64)
    alive = np.array([True, False, True])
    mask = np.asarray(batch.mask) * alive[:, None, None]
    lengths = np.maximum(mask.sum(-1), 1)
    sums = ((np.exp(gap) - gap - 1) * mask).sum(-1)
    metrics = evaluate(terms)[1]
    np.testing.assert_allclose(metrics["ref_penalty"], (sums / lengths)[alive].mean(), rtol=1e-5)
    slope = 0.1 * (1 - np.exp(gap)) * mask / lengths[..., None] / (3 * alive.sum())
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)
    which = alive[:, None] & (np.ones((3, 3), bool) if counted is None else np.asarray(counted) > 0)
    np.testing.assert_allclose(metrics["kl_ref"], sums[which].mean(), rtol=1e-5)


def test_each_iteration_draws_with_a_key_of_its_own(tiny):
    """Two batches of one prompt, of a policy that does not move."""
    data = Data(make_data().some(1)[:1])
    trainer = make_trainer(BASE.replace(prompts=1), tiny, data, head_of(tiny), iterations=2)
    own = trainer.iterate.__self__
    seen = recorded(own, "fit", lambda state, *rest: (state, {}))
    state, keys = trainer.init(jax.random.key(0)), []
    for _ in range(2):
        keys.append(jax.random.key_data(state.key).tolist())
        state, _ = trainer.iterate(state, 1)
    keys.append(jax.random.key_data(state.key).tolist())
    assert len({tuple(key) for key in keys}) == 3
    (one, two) = (args[1] for args in seen)
    np.testing.assert_array_equal(one.prompts, two.prompts)
    assert np.any(np.asarray(one.completions) != np.asarray(two.completions))


def test_each_epoch_has_its_own_order_and_each_update_its_own_dropout(tiny):
    """Of fine-tuning too, whose keys are none of those that the first batch after it is made of."""
    config = small("dpo", prompts=8, minibatches=4, epochs=3, lora_dropout=0.2, sft_iterations=3)
    own = trainer_of(tiny, config).iterate.__self__
    updates = recorded(own, "update", lambda state, frozen, batch: (state, {"loss": jnp.zeros(())}))
    tokens = np.arange(8)[:, None], np.ones(8, int), np.zeros((8, 2, 1), int), np.ones((8, 2), int)
    state, batch = own.init(jax.random.key(0)), Batch(*tokens, alive=np.ones(8, np.float32))
    own.fit(state, batch, np.ones(8, bool), jax.random.key(1), jax.random.key(2))
    orders = np.reshape([args[2].prompts[:, 0] for args in updates], (3, 8))
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(8), (3, 1)))
    assert len({tuple(order) for order in orders.tolist()}) == 3
    keys = [jax.random.key_data(args[2].keys) for args in updates]
    assert len({tuple(x) for x in np.concatenate(keys).tolist()}) == 24
    updates.clear()
    given = recorded(own, "with_keys")
    for position in range(3):
        state = own.iteration(state.replace(extra=state.extra | {"position": jnp.asarray(position)}))[0]
    used = [key for _, key in given] + list(jax.random.split(state.key, 5))
    assert len(updates) == 3 and len({tuple(jax.random.key_data(key).tolist()) for key in used}) == 8


def test_beside_a_reward_head_the_reference_is_what_fine_tuning_made(tiny):
    """A policy that has moved, and is the reference: samples are as likely under either."""
    config = BASE.replace(sft_iterations=1, watch_kl=True)
    trainer = trainer_of(tiny, config, head_of(tiny))
    own = trainer.iterate.__self__
    seen = recorded(own, "fit", lambda state, *rest: (state, {}))
    state = trainer.init(jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 0.05, state.params)
    extra = state.extra | {"position": jnp.ones((), jnp.int32), "reference": moved}
    trainer.iterate(state.replace(params=moved, extra=extra), 1)
    batch = seen[0][1]
    mask, ours, ref = (np.asarray(x) for x in (batch.mask, batch.old_logp, batch.ref_logp))
    np.testing.assert_allclose(np.where(mask > 0, ref, 0), np.where(mask > 0, ours, 0), atol=1e-3)
    base = own.passes.judge_tokens(own.passes.model.params, own.batches.source, batch)[0]
    assert np.abs(np.where(mask > 0, base - ours, 0)).max() > 0.1


@pytest.mark.parametrize("placement", [Placement(), Padded()], ids=["one-device", "four"])
@pytest.mark.parametrize(("live", "minibatches"), [(1, 1), (4, 1), (3, 2), (6, 1)])
def test_of_groups_that_are_left_out_no_token_counts(tiny, placement, live, minibatches):
    """Whatever fills an update up: `approx_kl` is the mean over the tokens of those that teach."""
    config = small("grpo", prompts=6, minibatches=minibatches, resample=1)
    own = trainer_of(tiny, config, placement=placement).iterate.__self__
    draws = joined([draw_of([[0, 1]] * live + [[1, 1]] * (6 - live)), draw_of([[0, 0]] * 6)])
    batch = best(draws, teaching(config.method, draws), 6).batch.filled(own.passes.places)
    batch = batch._replace(prompts=np.arange(len(batch.prompts))[:, None])
    for part in np.split(np.arange(6), minibatches):
        update = own.piece(batch, part, batch.alive[:6] > 0)
        ratio = 0.1 * (1.0 + update.prompts[..., None]) * update.mask
        ratios = 0.1 * (1 + part[part < live])
        expected = np.mean(np.exp(ratios) - 1 - ratios) if len(ratios) else 0
        np.testing.assert_allclose(policy_kl(ratio, update.mask)["approx_kl"].mean, expected, rtol=1e-4)
        assert update.mask.sum() == 2 * len(ratios)
