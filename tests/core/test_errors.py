"""Bad input: a ValueError whose message names the argument, before any compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pairgrpo_jax as pg
from pairgrpo_jax.core.step import largest_step

X, LONG, ROW = jnp.zeros((2, 4)), jnp.zeros((2, 4, 3)), jnp.zeros(4)
PAIRS = pg.pairs_from_rewards(jnp.arange(8.0).reshape(2, 4))
FLOAT_PAIRS = PAIRS._replace(preferred=PAIRS.preferred.astype(jnp.float32))
NAN = X.at[0, 1].set(jnp.nan)
BAD_PAIRS = {  # one pair in [0, 4) x [0, 4), and what is wrong with it
    "index K": (4, 0, 1.0),
    "index -1": (0, -1, 1.0),
    "one candidate": (2, 2, 1.0),
    "negative": (0, 1, -1.0),
    "nan": (0, 1, np.nan),
    "inf": (0, 1, np.inf),
}
ONE_PAIRS = pg.Pairs(*(jnp.zeros((2, 1), dtype) for dtype in (jnp.int32, jnp.int32, jnp.float32)))


def pairs(rewards=X, **options):
    return pg.pairs_from_rewards(rewards, **options)


def grpo(logp=X, old_logp=None, advantages=X, **options):
    return pg.grpo_loss(logp, logp if old_logp is None else old_logp, advantages, **options)


def soft(pairs=PAIRS, logp=X, **options):
    return pg.soft_pair_grpo_loss(logp, logp, pairs, **options)


def hard(pairs=PAIRS, logp=X, delta=0.02, **options):
    return pg.hard_pair_grpo_loss(logp, logp, pairs, delta, **options)


def target(p0=X + 0.25, pairs=PAIRS, delta=0.02, **options):
    return pg.hard_pair_target(p0, pairs, delta, **options)


def ppo(*changed, **options):
    return pg.ppo_loss(*changed, *[X] * (6 - len(changed)), **options)


def dpo(ref_chosen_logp=ROW):
    return pg.dpo_loss(ROW, ROW, ref_chosen_logp, ROW)


def kto(logp=ROW, ref_logp=ROW, desirable=ROW > 0, reference_point=0.0, **options):
    return pg.kto_loss(logp, ref_logp, desirable, reference_point, **options)


BAD = [
    # no array
    ("mask", soft, dict(logp=LONG, mask=1.0)),
    ("mask", hard, dict(logp=LONG, mask=True)),
    ("logp", grpo, dict(logp=[[0.0] * 4] * 2)),
    ("advantages", grpo, dict(advantages=0.5)),
    ("rewards must be numbers", pg.group_advantages, dict(rewards=[[1.0, 2.0], [3.0]])),
    ("rewards must be numbers", pairs, dict(rewards=None)),
    ("must be real, got complex64", pg.group_advantages, dict(rewards=X.astype(complex))),
    ("eps must be >= 0", pg.group_advantages, dict(rewards=X, eps=-1.0)),
    (r"key=jax.random.key\(seed\), got 0", pairs, dict(rewards=X, scheme="bradley_terry", key=0)),
    ("delta must be a scalar, got function; of a schedule pass delta=schedule", hard, dict(delta=lambda t: t)),
    ("beta must be a scalar, got str", soft, dict(beta="0.1")),
    ("updates must be an integer", pg.travel_schedule, dict(budget=0.5, updates=2.5)),
    ("ref_chosen_logp must be .*reference_free=True", dpo, dict(ref_chosen_logp=None)),
    ("mask must have the shape of x", pg.mean_term, dict(x=X, mask=X[:, :-1])),
    ("alive", pg.group_advantages, dict(rewards=X, alive=[1.0, 0.0])),
    ("advantages", grpo, dict(advantages=X.tolist())),
    ("kl", grpo, dict(kl=X.tolist())),
    ("candidate_weight", grpo, dict(candidate_weight=X.tolist())),
    ("target", hard, dict(target=[[0.25] * 4] * 2)),
    ("rewards", pg.gae, dict(rewards=X.tolist(), values=X, last_value=X[:, 0], discounts=X)),
    ("last_value", pg.gae, dict(rewards=X, values=X, last_value=[0.0, 0.0], discounts=X)),
    ("other_logp", pg.kl_k1, dict(logp=ROW, other_logp=[0.0] * 4)),
    ("logits", pg.categorical_kl, dict(logits=[0.0] * 4, other_logits=ROW)),
    ("log_std", pg.gaussian_kl, dict(mean=ROW, log_std=[0.0] * 4, other_mean=ROW, other_log_std=ROW)),
    ("chosen_logp", pg.orpo_loss, dict(chosen_logp=[-1.0], rejected_logp=[-2.0])),
    ("returns", lambda x: pg.ppo_loss(*[X] * 5, x), dict(x=X.tolist())),
    # wrong shape
    ("delta must be a scalar", hard, dict(delta=X[:, 0])),
    ("delta must be a scalar", target, dict(delta=X[:, :1])),
    ("delta must be a scalar", target, dict(delta=ROW[:2])),
    ("delta must be a scalar", pg.transfers_fit, dict(p0=X + 0.25, pairs=PAIRS, delta=X[:, :1])),
    ("floor must be a scalar", target, dict(floor=X[:, :1] + 0.1)),
    ("max_kl must be a scalar", target, dict(max_kl=X[:, :1])),
    ("alpha must be a scalar", hard, dict(alpha=ROW)),
    ("beta must be a scalar", hard, dict(beta=ROW)),
    ("multiplier must be a scalar", hard, dict(trust_region="lagrangian", multiplier=ROW)),
    ("beta must be a scalar", grpo, dict(kl=X, beta=ROW[:2])),
    ("beta must be a scalar", soft, dict(kl=X, beta=[0.1, 0.2])),
    ("value_weight must be a scalar", ppo, dict(value_weight=ROW)),
    ("entropy_weight must be a scalar", ppo, dict(entropy=X, entropy_weight=ROW)),
    ("weight must be a scalar", pg.orpo_loss, dict(chosen_logp=ROW, rejected_logp=ROW, weight=ROW)),
    ("log_std", pg.gaussian_kl, dict(mean=ROW, log_std=ROW[:3], other_mean=ROW, other_log_std=ROW)),
    ("rewards", pairs, dict(rewards=ROW)),
    ("rewards", pg.group_advantages, dict(rewards=LONG)),
    ("rewards", pg.rank_advantages, dict(rewards=ROW)),
    ("rewards", pg.reward_rank_correlation, dict(rewards=ROW)),
    ("values", pg.midranks, dict(values=ROW)),
    ("logp", grpo, dict(logp=ROW)),
    ("old_logp", grpo, dict(old_logp=X[:1])),
    ("old_logp", grpo, dict(old_logp=LONG)),
    ("advantages", grpo, dict(advantages=X[:, :1])),
    ("advantages", grpo, dict(advantages=X[:, :3])),
    ("advantages", grpo, dict(advantages=ROW)),
    ("advantages", grpo, dict(advantages=LONG)),
    ("mask", grpo, dict(mask=X[:, :3])),
    ("mask", grpo, dict(logp=LONG, mask=X)),
    ("kl", grpo, dict(kl=X[:1])),
    ("kl", soft, dict(kl=LONG)),
    ("kl", hard, dict(kl=ROW)),
    ("candidate_weight", grpo, dict(candidate_weight=X[:1])),
    ("logp", soft, dict(logp=ROW)),
    ("pairs", soft, dict(logp=X[:1])),
    ("pairs", soft, dict(pairs=pg.Pairs(*(x[0] for x in PAIRS)))),
    ("pairs", soft, dict(pairs=PAIRS._replace(weight=PAIRS.weight[:, :1]))),
    ("pairs", hard, dict(logp=X[:1])),
    ("logp", hard, dict(logp=ROW)),
    ("p0", target, dict(p0=ROW)),
    ("pairs", target, dict(p0=X[:1] + 0.25)),
    ("pairs", pg.pair_rewards, dict(pairs=PAIRS._replace(weight=X), group_size=4)),
    ("mask", ppo, dict(mask=ROW)),
    ("entropy", ppo, dict(entropy=ROW)),
    ("other_logp", pg.kl_k1, dict(logp=X, other_logp=ROW)),
    ("other_logp", pg.kl_k2, dict(logp=X, other_logp=ROW)),
    ("other_logp", pg.kl_k3, dict(logp=X, other_logp=ROW)),
    ("other_logits", pg.categorical_kl, dict(logits=X, other_logits=ROW)),
    ("discounts", pg.gae, dict(rewards=X, values=X, last_value=X[:, 0], discounts=ROW)),
    ("rejected_logp", pg.orpo_loss, dict(chosen_logp=ROW, rejected_logp=ROW[:1])),
    ("ref_logp", kto, dict(ref_logp=ROW[:1])),
    ("desirable", kto, dict(desirable=jnp.ones(1, bool))),
    ("desirable", kto, dict(desirable=ROW)),
    ("logp", kto, dict(logp=X, ref_logp=X, desirable=X > 0)),
    ("beta", kto, dict(beta=0.0)),
    ("desirable_weight", kto, dict(desirable_weight=-0.1)),
    ("undesirable_weight", kto, dict(undesirable_weight=float("nan"))),
    ("ref_logp", pg.kto_reference_point, dict(logp=ROW, ref_logp=X)),
    ("chosen_logp", pg.orpo_loss, dict(chosen_logp=X, rejected_logp=X)),
    # wrong dtype
    ("preferred", soft, dict(pairs=FLOAT_PAIRS)),
    ("preferred", hard, dict(pairs=FLOAT_PAIRS)),
    # too small a group
    ("K", pairs, dict(rewards=X[:, :1])),
    ("K", pg.group_advantages, dict(rewards=X[:, :1])),
    ("K", pg.midranks, dict(values=X[:, :1])),
    ("K", soft, dict(logp=X[:, :1], pairs=ONE_PAIRS)),
    ("K", hard, dict(logp=X[:, :1], pairs=ONE_PAIRS)),
    ("K", target, dict(p0=X[:, :1] + 1, pairs=ONE_PAIRS)),
    ("K", pg.pair_rewards, dict(pairs=ONE_PAIRS, group_size=1)),
    ("even group size K", pairs, dict(rewards=X[:, :3])),
    # unknown names
    ("scheme", pairs, dict(scheme="worst")),
    ("baseline", pg.group_advantages, dict(rewards=X, baseline="median")),
    ("scale", pg.group_advantages, dict(rewards=X, scale="row")),
    ("ddof", pg.group_advantages, dict(rewards=X, ddof=2)),
    ("alive", pg.group_advantages, dict(rewards=X, alive=X[:, :1])),
    ("pairs must be Pairs", pg.pair_rewards, dict(pairs=X, group_size=4)),
    ("pairs.preferred must be an array", pg.pair_rewards, dict(pairs=pg.Pairs([[0]], [[1]], [[1.0]]), group_size=4)),
    ("level", grpo, dict(level="word")),
    ("aggregate", grpo, dict(aggregate="sum")),
    ("level", soft, dict(level="word")),
    ("aggregate", hard, dict(aggregate="sum", kl=X)),
    ("aggregate", hard, dict(aggregate="sum")),
    ("fit", hard, dict(fit="sideways")),
    ("candidates", hard, dict(candidates="all")),
    ("trust_region", hard, dict(trust_region="ball")),
    # out of range
    ("margin", pairs, dict(margin=-0.1)),
    ("margin", pairs, dict(margin=float("nan"))),
    ("delta", hard, dict(delta=-0.1)),
    ("delta", hard, dict(delta=np.float32(-0.1))),
    ("delta", target, dict(delta=-0.1)),
    ("floor", target, dict(floor=0.0)),
    ("floor", hard, dict(floor=1.0)),
    ("clip", grpo, dict(clip=-0.1)),
    ("clip", grpo, dict(clip=(0.1, -0.1))),
    ("clip", soft, dict(clip=(-0.1, 0.1))),
    ("clip", ppo, dict(clip=-0.1)),
    ("clip", grpo, dict(clip=(0.1, 0.2, 0.3))),
    ("reference_point", pg.kto_loss, dict(logp=ROW, ref_logp=ROW, desirable=ROW > 0, reference_point=jnp.zeros(1))),
    ("dual_clip", grpo, dict(dual_clip=1.0)),
    ("dual_clip", soft, dict(dual_clip=np.float32(0.5))),
    ("dual_clip", ppo, dict(dual_clip=float("nan"))),
    ("policy_loss", grpo, dict(policy_loss="reinforce")),
    ("dual_clip", grpo, dict(policy_loss="cispo", dual_clip=3.0)),
    ("clip", grpo, dict(policy_loss="cispo", clip=(0.1, 0.3))),
    ("clip", soft, dict(policy_loss="cispo", clip=-0.1)),
    ("value_clip", ppo, dict(value_clip=-0.1)),
    ("delta", hard, dict(delta=jnp.float32(-0.1))),
    ("delta", hard, dict(delta=jnp.float32(jnp.nan))),
    ("delta", target, dict(delta=float("inf"))),
    ("delta", pg.transfers_fit, dict(p0=X + 0.25, pairs=PAIRS, delta=-1.0)),
    ("delta", pg.transfers_fit, dict(p0=X + 0.25, pairs=PAIRS, delta=jnp.inf)),
    ("p0", pg.transfers_fit, dict(p0=X + 0.5, pairs=PAIRS, delta=0.1)),
    ("p0", pg.transfers_fit, dict(p0=X.at[:, 0].set(-1.0).at[:, 1].set(2.0), pairs=PAIRS, delta=0.1)),
    ("p0", pg.transfers_fit, dict(p0=X[0], pairs=PAIRS, delta=0.1)),
    ("p0", pg.transfers_fit, dict(p0=NAN + 0.25, pairs=PAIRS, delta=0.1)),
    ("floor", pg.transfers_fit, dict(p0=X + 0.25, pairs=PAIRS, delta=0.1, floor=1.0)),
    ("rewards", pg.scheme_cosine, dict(rewards=X[0], pairs=PAIRS)),
    ("rewards", pg.bradley_terry_bound, dict(rewards=X[:, :1])),
    ("rewards", pg.smallest_gap, dict(rewards=X[:, :1])),
    ("p0", target, dict(p0=X + 0.3)),
    ("p0", target, dict(p0=NAN + 0.25)),
    ("p0", target, dict(p0=X.at[:, :2].set(jnp.array([1.5, -0.5])))),
    ("max_kl", target, dict(max_kl=-0.1)),
    ("target", hard, dict(target=X + 0.3)),
    ("target", hard, dict(target=X.at[:, 0].set(1.0))),
    ("target", hard, dict(target=NAN + 0.25)),
    ("alpha", hard, dict(alpha=-1.0)),
    ("beta", hard, dict(beta=float("nan"))),
    ("beta", grpo, dict(kl=X, beta=-0.1)),
    ("multiplier", hard, dict(trust_region="lagrangian", multiplier=jnp.float32(-1))),
    ("mask", grpo, dict(mask=-X - 1)),
    ("mask", hard, dict(mask=NAN)),
    ("mask", ppo, dict(mask=NAN)),
    ("candidate_weight", grpo, dict(candidate_weight=-X - 1)),
    ("advantages", grpo, dict(advantages=NAN)),
    ("advantages", lambda x: pg.ppo_loss(X, X, x, X, X, X), dict(x=NAN)),
    ("max_length", grpo, dict(aggregate="constant", max_length=0)),
    ("value_weight", ppo, dict(value_weight=-0.5)),
    ("weight", pg.orpo_loss, dict(chosen_logp=ROW, rejected_logp=ROW, weight=-0.1)),
    ("discounts", pg.gae, dict(rewards=X, values=X, last_value=X[:, 0], discounts=X + 1.1)),
    ("gae_lambda", pg.gae, dict(rewards=X, values=X, last_value=X[:, 0], discounts=X, gae_lambda=1.1)),
    ("radius", largest_step, dict(divergence=jnp.sum, old_params=X, new_params=X, radius=float("nan"))),
    ("delta_0", pg.delta_schedule, dict(delta_0=-1.0, gamma=0.9)),
    ("gamma", pg.delta_schedule, dict(delta_0=1.0, gamma=1.1)),
    ("gamma", pg.delta_schedule, dict(delta_0=1.0, gamma=0.0)),
    # missing
    ("key", pairs, dict(scheme="bradley_terry")),
    ("multiplier", hard, dict(trust_region="lagrangian")),
]


@pytest.mark.parametrize(
    "name, function, arguments", BAD, ids=lambda x: getattr(x, "__name__", x if isinstance(x, str) else "")
)
def test_bad_input_names_the_argument(name, function, arguments):
    with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
        function(**arguments)
    assert "Chex" not in str(error.value)


def test_rewards_in_the_place_of_pairs_are_told_how_to_become_some():
    with pytest.raises(ValueError, match="pairs must be Pairs, got an array; pairs_from_rewards makes them of rewards"):
        pg.soft_pair_grpo_loss(jnp.zeros((2, 4)), jnp.zeros((2, 4)), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"with B = 2, got shapes \(3, 6\), \(3, 6\), \(3, 6\)"):
        pg.soft_pair_grpo_loss(jnp.zeros((2, 4)), jnp.zeros((2, 4)), pg.pairs_from_rewards(jnp.eye(3, 4), scheme="all"))


@pytest.mark.parametrize("position", range(1, 6))
def test_ppo_arrays_must_agree(position):
    name = ["old_logp", "advantages", "values", "old_values", "returns"][position - 1]
    with pytest.raises(ValueError, match=rf"\b{name}( \(1,|.* got \(1,)"):
        ppo(*[X] * position, X[:1])


@pytest.mark.parametrize("loss", [pg.dpo_loss, pg.ipo_loss])
def test_preference_arrays_must_agree(loss):
    for position, name in enumerate(("chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp")):
        arrays = [ROW] * position + [ROW[:1]] + [ROW] * (3 - position)
        with pytest.raises(ValueError, match=rf"\b{name} \(1,\)"):
            loss(*arrays)
    with pytest.raises(ValueError, match="chosen_logp"):
        loss(X, X, X, X)


def test_beta_of_a_preference_loss_is_named():
    with pytest.raises(ValueError, match="beta must be > 0"):
        pg.ipo_loss(ROW, ROW, ROW, ROW, beta=0.0)
    with pytest.raises(ValueError, match="beta must be >= 0"):
        pg.dpo_loss(ROW, ROW, ROW, ROW, beta=float("nan"))


def test_a_bootstrap_value_has_the_shape_of_a_step():
    with pytest.raises(ValueError, match=r"last_value must be \(2,\)"):
        pg.gae(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(()), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"discounts \(3,\)"):
        pg.core.discounted_returns(jnp.ones((2, 3)), jnp.ones(3))


def test_label_smoothing_is_below_one_half():
    for value in (-0.1, 0.5):
        with pytest.raises(ValueError, match="label_smoothing"):
            pg.dpo_loss(ROW, ROW, ROW, ROW, label_smoothing=value)


def with_pair(first, second, weight):
    """Two groups with the pair (0, 1), in the second the one given too."""
    extra = pg.Pairs(jnp.array([[0], [first]]), jnp.array([[1], [second]]), jnp.array([[0.0], [weight]]))
    good = pg.Pairs(jnp.zeros((2, 1), int), jnp.ones((2, 1), int), jnp.ones((2, 1)))
    return pg.Pairs(*(jnp.concatenate(both, axis=1) for both in zip(good, extra)))


@pytest.mark.parametrize("pair", BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_pair_that_makes_no_sense_is_refused_or_counted_where_it_is_traced(pair):
    logp = 0.1 * jnp.arange(8.0).reshape(2, 4)
    calls = {
        "soft": lambda pairs: pg.soft_pair_grpo_loss(logp, 0 * logp, pairs),
        "hard": lambda pairs: pg.hard_pair_grpo_loss(logp, 0 * logp, pairs, 0.1),
        "target": lambda pairs: pg.hard_pair_target(X + 0.25, pairs, 0.1),
        "rewards": lambda pairs: pg.pair_rewards(pairs, 4),
        "cosine": lambda pairs: pg.scheme_cosine(logp, pairs),
        "fit": lambda pairs: pg.transfers_fit(X + 0.25, pairs, 0.1),
    }
    bad, without = with_pair(*pair), with_pair(0, 1, 0.0)
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"pairs: two different indices in \[0, 4\).*at \(1, 1\)"):
            call(bad)
        if name in ("soft", "hard"):
            traced, expected = jax.jit(lambda x, call=call: call(x)[1])(bad), call(without)[1]
            assert traced.pop("invalid_pairs") == 0.25 and expected.pop("invalid_pairs") == 0
        else:
            traced, expected = jax.jit(call)(bad), call(without)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), traced, expected)


@pytest.mark.parametrize("slot", [(-1, 9), (0, 9), (9, 0)])
def test_an_unused_slot_may_hold_any_indices(slot):
    for call in (lambda x: pg.hard_pair_grpo_loss(X, X, x, 0.1), lambda x: pg.soft_pair_grpo_loss(X, X, x)):
        for run in (call, jax.jit(call)):
            unused, without = run(with_pair(*slot, 0.0)), run(with_pair(0, 1, 0.0))
            jax.tree.map(np.testing.assert_array_equal, unused, without)
            assert unused[1]["invalid_pairs"] == 0


def test_what_does_not_count_may_be_nan():
    mask = jnp.ones_like(X).at[0, 1].set(0)
    for loss in (grpo(advantages=NAN, mask=mask), pg.ppo_loss(X, X, NAN, X, X, X, mask=mask)):
        assert np.isfinite(loss[0])


def test_a_nan_has_no_rank():
    ranks = pg.midranks(jnp.array([[1.0, jnp.nan, 3.0]]))
    assert np.isnan(ranks[0, 1]) and np.isfinite(ranks[0, ::2]).all()
