import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AGGREGATES, make

import pairgrpo_jax as pg
from pairgrpo_jax.core.terms import with_more

pytestmark = pytest.mark.usefixtures("x64")


def soft(aggregate):
    return lambda logp, old_logp, mask, kl, pairs: pg.soft_pair_grpo_loss.objective(
        logp, old_logp, pairs, mask=mask, kl=kl, beta=0.3, aggregate=aggregate
    )


def hard(**options):
    return lambda logp, old_logp, mask, kl, pairs: pg.hard_pair_grpo_loss.objective(
        logp, old_logp, pairs, 0.1, mask=mask, kl=kl, alpha=2.0, beta=1e-3, **options
    )


OBJECTIVES = {
    **{f"soft_{rule}": soft(rule) for rule in AGGREGATES},
    "grpo": lambda logp, old_logp, mask, kl, pairs: pg.grpo_loss.objective(
        logp, old_logp, pg.pair_rewards(pairs, 4), mask=mask, aggregate="token_mean"
    ),
    "hard": lambda logp, old_logp, mask, kl, pairs: hard()(logp, old_logp, mask, None, pairs),
    "hard_kl": hard(aggregate="token_mean"),
    "lagrangian": hard(trust_region="lagrangian", multiplier=2.0),
    "ppo": lambda logp, old_logp, mask, kl, pairs: pg.ppo_loss.objective(
        logp, old_logp, kl, kl, old_logp, logp, mask=mask, entropy=kl, entropy_weight=0.1
    ),
    "dpo": lambda logp, old_logp, mask, kl, pairs: pg.dpo_loss.objective(
        logp[:, 0, 0], logp[:, 1, 0], old_logp[:, 0, 0], old_logp[:, 1, 0]
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_whole_batch(name):
    """Unequal lengths, groups without a pair; and the mean of means is *not* it."""
    case = make(3, (4, 4, 3))
    pairs = case.pairs("all")
    arrays = (case.logp, case.old_logp, case.mask, case.kl, pairs)
    whole = OBJECTIVES[name](*arrays)
    parts = [OBJECTIVES[name](*jax.tree.map(lambda x, s=s: x[s], arrays)) for s in (slice(0, 2), slice(2, 4))]
    summed = {
        key: term._replace(total=sum(part[key].total for part in parts), count=sum(part[key].count for part in parts))
        for key, term in whole.items()
    }
    exact = pg.evaluate(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), exact, pg.evaluate(summed))
    naive = np.mean([pg.evaluate(part)[0] for part in parts])
    assert name == "dpo" or abs(naive - exact[0]) > 1e-6  # DPO's parts are of equal size


def test_the_loss_is_its_objective_evaluated():
    case = make(0)
    arguments = (case.logp, case.old_logp, case.rewards)
    loss = pg.grpo_loss(*arguments, mask=case.mask)
    jax.tree.map(np.testing.assert_array_equal, loss, pg.evaluate(pg.grpo_loss.objective(*arguments, mask=case.mask)))


@pytest.mark.parametrize(
    "term, mean, value",
    [
        (pg.Term(6.0, 3.0, 0.5), 2.0, 1.0),
        (pg.Term(6.0, 3.0), 2.0, 0.0),
        (pg.Term(6.0, 3.0, 0.5, 0.5), 2.0, 0.75),
        (pg.Term(6.0, 3.0, 0.5, 3.0), 2.0, 0.0),
        (pg.Term(0.0, 0.0, 1.0), 0.0, 0.0),
        (pg.Term(np.inf, 3.0), np.inf, 0.0),
        (pg.Term(np.inf, 3.0, np.float32(0)), np.inf, 0.0),
    ],
)
def test_terms(term, mean, value):
    term = term._replace(total=jnp.asarray(term.total), count=jnp.asarray(term.count))
    assert (float(term.mean), float(term.value)) == (mean, value)
    loss, metrics = pg.evaluate({"one": term, "two": pg.Term(jnp.asarray(1.0), jnp.asarray(1.0), 1.0)})
    assert loss == value + 1 and metrics["one"] == mean
    if term.threshold is not None:
        assert metrics["one_active"] == (mean > term.threshold)


def test_an_objective_without_a_weight_or_with_a_taken_name_is_refused():
    total, hinged = jnp.asarray(1.0), pg.Term(jnp.asarray(1.0), jnp.asarray(1.0), 1.0, 0.5)
    for objective, message in (
        ({"kl": pg.mean_term(total), "fit": pg.mean_term(total)}, r"no term has a weight \(kl, fit\)"),
        ({"loss": hinged}, "loss is what the update"),
        ({"kl": hinged, "kl_active": pg.mean_term(total)}, "kl_active is what the update"),
    ):
        for call in (pg.evaluate, pg.core.terms.loss(lambda objective: objective)):
            with pytest.raises(ValueError, match=message):
                call(objective)
    assert pg.evaluate({"kl_active": hinged})[1].keys() == {"kl_active", "kl_active_active"}
    jax.jit(lambda weight: pg.evaluate({"fit": hinged._replace(weight=weight)}))(0.0)  # traced: it may be any number


def test_mean_term():
    x, mask = jnp.asarray([[1.0, 2], [3, jnp.nan]]), jnp.asarray([[1, 1], [1, 0]])
    assert pg.mean_term(x, mask).mean == 2.0
    assert pg.mean_term(x[:1]).mean == 1.5
    assert pg.mean_term(x, 0 * mask).mean == 0.0
    assert pg.mean_term(x, jnp.array([[1], [0]])).mean == 1.5
    with pytest.raises(ValueError, match=r"mask must have as many axes as x, \(2, 2\), got \(2,\); add axes of size 1"):
        pg.mean_term(x, jnp.array([1, 0]))
    with pytest.raises(ValueError, match="mask must be >= 0, got -1"):
        pg.mean_term(x, -mask)


def test_only_the_total_of_a_term_carries_a_gradient():
    """So that an update, which differentiates totals, and `evaluate` agree."""

    def objective(a, _):
        x = a * jnp.arange(1.0, 4.0)
        return {"x": pg.Term(jnp.sum(x * x), jnp.sum(x), weight=a + 1), "y": pg.Term(x[0], 1.0 + a, a, threshold=a / 4)}

    a = jnp.asarray(0.7)
    slope = jax.grad(lambda a: pg.evaluate(objective(a, None))[0])(a)
    np.testing.assert_allclose(slope, (1 + a) * 2 * 14 * a / (6 * a) + a / (1 + a), rtol=1e-12)
    plain = optax.sgd(1.0)
    state = pg.TrainState.create(a, plain, jax.random.key(0))
    after, _ = pg.make_update_step(objective, plain, parallel=None)(state, None)
    np.testing.assert_allclose(a - after.params, slope, rtol=1e-12)


def test_a_loss_says_what_it_returns():
    assert inspect.signature(pg.grpo_loss).return_annotation == "tuple[jax.Array, Metrics]"
    assert list(inspect.signature(pg.grpo_loss).parameters)[:3] == ["logp", "old_logp", "advantages"]


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.uint8, jnp.bfloat16, jnp.float16])
def test_the_mean_of_booleans_integers_and_halves_is_that_of_float32(dtype):
    x = jnp.arange(1001) % 7 > 2 if dtype is bool else (400 * (jnp.arange(1001) % 2)).astype(dtype)
    for mask in (None, jnp.full(1001, 0.5, jnp.float32), jnp.arange(1001) % 3, jnp.arange(1001) < 999):
        found, expected = pg.mean_term(x, mask), pg.mean_term(x.astype(jnp.float32), mask)
        assert found.total.dtype == found.count.dtype == jnp.float32
        assert found == expected
        share = np.ones(1001) if mask is None else np.asarray(mask, float)
        np.testing.assert_allclose(found.mean, np.average(np.asarray(x, float), weights=share), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_mean_of_floats_is_their_sum_over_their_count_bit_for_bit(dtype):
    x = jax.random.normal(jax.random.key(0), (7, 143), dtype)
    mask = jax.random.uniform(jax.random.key(1), (7, 143), dtype)
    for found, total, count in (
        (pg.mean_term(x), jnp.sum(x), x.size),
        (pg.mean_term(x, mask), jnp.sum(x * mask), jnp.sum(mask)),
        (pg.mean_term(x, mask > 0.5), jnp.sum(jnp.where(mask > 0.5, x, 0)), jnp.sum(mask > 0.5)),
    ):
        assert found.total.dtype == found.count.dtype == dtype and (found.total, found.count) == (total, count)


def test_a_term_that_a_trainer_adds_does_not_replace_a_methods_own():
    own, more = {"surrogate": pg.mean_term(jnp.ones(3), weight=1.0)}, {"entropy": pg.mean_term(jnp.ones(3))}
    assert [*with_more(own, more)] == ["surrogate", "entropy"]
    with pytest.raises(ValueError, match="entropy is what the update itself reports; rename the term"):
        with_more(own | {"entropy": pg.mean_term(jnp.ones(3), weight=0.1)}, more)


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), np.zeros(()), jnp.float32(0)], ids=lambda x: type(x).__name__)
def test_a_weight_that_is_known_to_be_0_makes_a_metric(zero):
    far = jnp.asarray([[-1000.0, 0.0]])
    with pytest.raises(ValueError, match=r"no term has a weight \(a\)"):
        pg.evaluate({"a": pg.mean_term(far, weight=zero)})

    def loss(x):
        kl = pg.kl_k3(x, jnp.zeros((1, 2)))  # inf, as its gradient is
        return pg.soft_pair_grpo_loss(x, jnp.zeros((1, 2)), pg.chosen_rejected_pairs(1), kl=kl, beta=zero)[0]

    for run in (jax.grad(loss), jax.jit(jax.grad(loss))):
        np.testing.assert_array_equal(run(far), [[0.0, 0.5]])
