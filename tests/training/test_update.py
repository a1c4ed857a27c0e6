"""One update: exact accumulation, the same result on one device, under pmap and over a mesh, and the guard."""

import contextlib

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from pairgrpo_jax import (
    NonFiniteError,
    Pairs,
    Term,
    TrainState,
    check_finite,
    chosen_rejected_pairs,
    grpo_loss,
    hard_pair_grpo_loss,
    kl_k2,
    make_update_step,
    mean_term,
    pairs_from_rewards,
)
from pairgrpo_jax.core.surrogate import aggregate_steps
from pairgrpo_jax.training.placement import replicate

GROUPS, SIZE, STEPS, FEATURES = 16, 4, 5, 3


def make_batch(key):
    """Groups of very different lengths, some without a pair."""
    keys = jax.random.split(key, 5)
    lengths = jax.random.randint(keys[0], (GROUPS, SIZE, 1), 0, STEPS + 1)
    return {
        "x": jax.random.normal(keys[1], (GROUPS, SIZE, STEPS, FEATURES)),
        "old_logp": 0.3 * jax.random.normal(keys[2], (GROUPS, SIZE, STEPS)),
        "advantages": jax.random.normal(keys[3], (GROUPS, SIZE)),
        "mask": (jnp.arange(STEPS) < lengths).astype(jnp.float32),
        "pairs": Pairs(
            jnp.zeros((GROUPS, 1), jnp.int32),
            jnp.ones((GROUPS, 1), jnp.int32),
            jax.random.bernoulli(keys[4], 0.6, (GROUPS, 1)).astype(jnp.float32),
        ),
        "delta": jnp.float32(0.1),  # scalars are shared by all micro-batches
    }


def logp_of(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) - 1 + params["b"]


def token_mean(params, batch):
    logp = logp_of(params, batch)
    return grpo_loss.objective(
        logp, batch["old_logp"], batch["advantages"], mask=batch["mask"], kl=logp, beta=0.1, aggregate="token_mean"
    )


def hinged(params, batch):
    """The hinge acts on the mean KL of the whole batch; at 0.05 it is active, and some micro-batches alone are not."""
    logp = logp_of(params, batch)
    kl = kl_k2(logp, batch["old_logp"])
    return hard_pair_grpo_loss.objective(
        logp, batch["old_logp"], batch["pairs"], batch["delta"], mask=batch["mask"], kl=kl, alpha=3.0, beta=0.2
    )


def mean_and_metrics(params, batch):
    """A pair, whose micro-batches count alike."""
    return jnp.mean(logp_of(params, batch) ** 2), {"one": jnp.float32(1)}


OBJECTIVES = {"token_mean": token_mean, "hinged": hinged}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def make_state(optimizer=OPTIMIZER):
    params = {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.float32(0.1)}
    return TrainState.create(params, optimizer, jax.random.key(0))


def run(update, state, batches, read=lambda tree: tree):
    metrics = None
    for batch in batches:
        state, metrics = update(state, batch)
    return read(state.params), read(metrics)


@pytest.fixture(scope="module")
def batches():
    return [make_batch(key) for key in jax.random.split(jax.random.key(1), 3)]


def assert_close(ours, expected, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, expected)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("accumulate", [2, 8])
def test_micro_batches_equal_one_batch(objective, accumulate, batches):
    sgd = optax.sgd(0.1)  # Adam would hide a wrong scale
    one = run(make_update_step(objective, sgd), make_state(sgd), batches)
    several = run(make_update_step(objective, sgd, accumulate=accumulate), make_state(sgd), batches)
    assert_close(several, one, 1e-6)


def test_the_hinge_is_active_in_the_whole_but_not_in_all_parts(batches):
    state = make_state()
    _, metrics = make_update_step(hinged, OPTIMIZER, donate=False)(state, batches[0])
    assert metrics["kl_active"] == 1
    parts = [jax.tree.map(lambda x: x[i : i + 1] if x.ndim else x, batches[0]) for i in range(GROUPS)]  # noqa: B023
    active = [float(t["kl"].mean > 0.2) for t in (hinged(state.params, part) for part in parts)]
    assert 0 < np.mean(active) < 1


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_one_device_pmap_and_mesh_agree(objective, batches):
    assert jax.device_count() == 8
    expected = run(make_update_step(objective, OPTIMIZER), make_state(), batches)

    replicated = flax.jax_utils.replicate(make_state())
    sharded = [shard(batch) for batch in batches]
    pmapped = make_update_step(objective, OPTIMIZER, parallel="pmap")
    assert_close(run(pmapped, replicated, sharded, flax.jax_utils.unreplicate), expected, 1e-5)

    part = make_update_step(objective, OPTIMIZER, parallel="axis", axis_name="parts")
    named = jax.vmap(part, (None, 0), None, axis_name="parts")
    assert_close(run(jax.jit(named), make_state(), sharded), expected, 1e-5)

    for axis_type in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):  # the latter is jax's default
        mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
        meshed = make_update_step(objective, OPTIMIZER, mesh=mesh)
        assert_close(run(meshed, make_state(), batches), expected, 1e-5)
        accumulated = make_update_step(objective, OPTIMIZER, mesh=mesh, accumulate=2)
        assert_close(run(accumulated, make_state(), batches), expected, 1e-5)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), mean_and_metrics], ids=[*OBJECTIVES, "pair"])
def test_one_part_of_a_shard_map_has_the_gradient_of_the_whole(objective, accumulate, checked, batches):
    """`check_vma`, which is jax's default, sums the gradients of whatever is alike on all devices."""
    sgd, batch = optax.sgd(0.1), batches[0]
    expected = make_update_step(objective, sgd, accumulate=accumulate)(make_state(sgd), batch)
    part = make_update_step(objective, sgd, accumulate=accumulate, parallel="axis")
    split = jax.tree.map(lambda x: PartitionSpec("data") if x.ndim else PartitionSpec(), batch)
    specs = {"in_specs": (PartitionSpec(), split), "out_specs": PartitionSpec(), "check_vma": checked}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    state, metrics = jax.jit(jax.shard_map(part, mesh=mesh, **specs))(make_state(sgd), batch)
    assert_close(state.params, expected[0].params, 1e-5)
    assert_close(metrics["grad_norm"], expected[1]["grad_norm"], 1e-4)


def test_a_mesh_of_default_axis_types_needs_no_care():
    """Under `jax.set_mesh`, with a loss that makes its own arrays, and micro-batches that the axis does not divide."""

    def objective(params, batch):
        pairs = chosen_rejected_pairs(len(batch["x"]))
        logp = -jnp.sum((batch["x"] - params["centre"]) ** 2, axis=-1)
        return hard_pair_grpo_loss.objective(logp, jax.lax.stop_gradient(logp) + 0.1 * batch["x"][..., 0], pairs, 0.1)

    batch = {"x": jax.random.normal(jax.random.key(0), (32, 2, 3))}
    states = []
    for mesh in (None, jax.make_mesh((8,), ("data",))):
        state = TrainState.create({"centre": jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0))
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            states.append(make_update_step(objective, optax.sgd(0.1), mesh=mesh, accumulate=8)(state, batch)[0])
    np.testing.assert_allclose(states[1].params["centre"], states[0].params["centre"], rtol=1e-6)
    assert np.abs(states[0].params["centre"] - 1).max() > 1e-4


def test_a_sharded_state_stays_so_on_a_mesh_of_other_axis_types():
    auto = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(auto, jax.sharding.PartitionSpec("data"))
    state = {"w": jax.device_put(jnp.arange(8.0), split), "b": jnp.zeros(3)}
    placed = replicate(state, jax.make_mesh((8,), ("data",)))
    assert placed["w"].sharding.spec == split.spec and placed["b"].sharding.is_fully_replicated
    with pytest.raises(ValueError, match=r"sharded over axes \('data',\), and this one has \('fsdp',\)"):
        replicate(state, jax.make_mesh((8,), ("fsdp",)))


def shard(batch):
    def split(x):
        return x.reshape(8, -1, *x.shape[1:]) if x.ndim else jnp.broadcast_to(x, 8)

    return jax.tree.map(split, batch)


def test_a_loss_and_metrics_pair_is_taken_too(batches):
    def loss_fn(params, batch):
        return grpo_loss(logp_of(params, batch), batch["old_logp"], batch["advantages"])

    def exact(params, batch):
        return grpo_loss.objective(logp_of(params, batch), batch["old_logp"], batch["advantages"])

    params, metrics = run(make_update_step(loss_fn, OPTIMIZER), make_state(), batches)
    expected, expected_metrics = run(make_update_step(exact, OPTIMIZER), make_state(), batches)
    assert_close((params, metrics["clip_fraction"]), (expected, expected_metrics["clip_fraction"]), 1e-6)


def test_the_update_minimises():
    update = make_update_step(lambda p, batch: (jnp.sum(jnp.square(p["w"])), {}), optax.sgd(0.1))
    state = make_state(optax.sgd(0.1))
    for _ in range(50):
        state, metrics = update(state, {"x": jnp.zeros(2)})
    assert metrics["loss"] < 1e-6


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_a_non_finite_update_is_skipped_counted_and_finally_refused(poison, batches):
    update = make_update_step(token_mean, OPTIMIZER, donate=False)
    state, _ = update(make_state(), batches[0])
    bad = batches[0] | {
        "advantages": batches[0]["advantages"].at[0, 0].set(poison),
        "mask": jnp.ones_like(batches[0]["mask"]),
    }
    after, metrics = update(state, bad)
    assert_close((after.params, after.opt_state), (state.params, state.opt_state), 0)
    assert metrics["skipped"] == 1 and after.skipped == 1 and after.step == state.step + 1
    check_finite(after, limit=2)
    after, _ = update(after, bad)
    with pytest.raises(NonFiniteError, match="2 updates in a row"):
        check_finite(after, limit=2)
    recovered, _ = update(after, batches[1])
    assert recovered.skipped == 2 and recovered.skipped_in_row == 0


def test_compiles_once_and_donates(batches, compiles_nothing):
    update = make_update_step(token_mean, OPTIMIZER)
    first = make_state()
    state, _ = update(first, batches[0])
    assert first.params["w"].is_deleted()
    with compiles_nothing():
        for batch in batches * 2:
            state, _ = update(state, batch)


@pytest.mark.parametrize("setup", ["one batch", "pmap", "mesh"])
def test_a_donated_state_is_named_with_the_way_out(setup, batches):
    update, state, batch = set_up(setup, token_mean, OPTIMIZER, make_state(), batches[0])
    update(state, batch)
    for use in (lambda: update(state, batch), lambda: check_finite(state)):
        with pytest.raises(ValueError, match=r"state: its memory.* was donated.*donate=False"):
            use()


@pytest.mark.parametrize("limit", [None, ("approx_kl", 0.01)])
def test_a_step_to_a_parameter_that_is_not_finite_is_skipped(limit, batches):
    """The gradient is finite; the optimizer divides by it, and the bias has none."""
    optimizer = optax.stateless(lambda grads, params: jax.tree.map(lambda g: 1e-3 / g, grads))
    loss = lambda params, batch: token_mean({**params, "b": 0.1}, batch)  # noqa: E731
    state = TrainState.create({**make_state().params, "barred": -jnp.inf * jnp.ones(2)}, optimizer, jax.random.key(0))
    update = make_update_step(loss, optimizer, limit=limit, donate=False)
    after, metrics = update(state, batches[0])
    assert_close(after.params, state.params, 0)
    assert jnp.isfinite(metrics["grad_norm"]) and metrics["skipped"] == after.skipped == after.skipped_in_row == 1


def test_parameters_that_are_not_finite_from_the_start_do_not_stop_the_others(batches):
    params = {**make_state().params, "barred": jnp.array([-jnp.inf, 0.0])}
    state = TrainState.create(params, OPTIMIZER, jax.random.key(0))
    after, metrics = make_update_step(token_mean, OPTIMIZER, donate=False)(state, batches[0])
    assert metrics["skipped"] == 0 and np.abs(after.params["w"] - params["w"]).max() > 1e-3


@pytest.mark.parametrize("setup", ["one batch", "accumulate", "pmap", "mesh, accumulate"])
def test_a_batch_without_a_signal_makes_no_step_and_is_counted(setup, batches):
    """Adam's momentum would go on moving the policy. One group in one micro-batch of one device is signal enough."""
    state, _ = make_update_step(hinged, OPTIMIZER)(make_state(), batches[0])
    pairs = batches[1]["pairs"]
    none = pairs._replace(weight=0 * pairs.weight)
    one = pairs._replace(weight=none.weight.at[3].set(1.0))
    for given, moved in ((none, False), (one, True)):
        before = jax.device_get(state.replace(key=None))
        update, placed, batch = set_up(setup, hinged, OPTIMIZER, state, batches[1] | {"pairs": given}, donate=False)
        after, metrics = update(placed, batch)
        if setup == "pmap":
            after, metrics = flax.jax_utils.unreplicate((after, metrics))
        assert metrics["no_signal"] == (not moved) and metrics["skipped"] == after.skipped == 0 and after.step == 2
        assert (np.abs(after.params["w"] - before.params["w"]).max() > 1e-4) == moved
        if not moved:
            assert_close((after.params, after.opt_state), (before.params, before.opt_state), 0)


def test_a_batch_without_a_signal_is_not_a_good_update_either(batches):
    update = make_update_step(hinged, OPTIMIZER, donate=False)
    pairs = batches[0]["pairs"]
    bad, none = (batches[0] | {"pairs": pairs._replace(weight=pairs.weight * x)} for x in (1.0, 0.0))
    bad["old_logp"] = bad["old_logp"] * jnp.nan
    state, _ = update(make_state(), bad)
    state, _ = update(state, none)
    assert state.skipped == state.skipped_in_row == 1
    state, metrics = update(state, none | {"old_logp": bad["old_logp"]})
    assert metrics["no_signal"] == 1 and metrics["skipped"] == 0 and state.skipped == 1


def test_one_diverged_seed_of_several_is_frozen_and_warned_of_once(caplog):
    """Vmapped seeds, of which one has batches of nan; the error comes when all have."""
    optimizer = optax.sgd(0.1)
    step = jax.jit(jax.vmap(make_update_step(lambda p, x: (jnp.sum(jnp.square(p)) * x, {}), optimizer, parallel=None)))
    state = jax.vmap(lambda key: TrainState.create(jnp.ones(2), optimizer, key))(jax.random.split(jax.random.key(0), 3))
    reported = frozenset()
    for _ in range(5):
        state, _ = step(state, jnp.array([1.0, jnp.nan, 1.0]))
        reported = check_finite(state, limit=2, reported=reported)
    assert reported == {1} and caplog.text.count("seed 1 has diverged") == 1 and "the others go on" in caplog.text
    np.testing.assert_allclose(state.params[:, 0], [0.8**5, 1, 0.8**5], rtol=1e-6)
    state, _ = step(step(state, jnp.full(3, jnp.nan))[0], jnp.full(3, jnp.nan))
    with pytest.raises(NonFiniteError, match="7 updates in a row"):
        check_finite(state, limit=2, reported=reported)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be >= 1"),
        ({"parallel": "tpu"}, "parallel='tpu'"),
        ({"parallel": "pmap", "mesh": object()}, "mesh="),
        ({"mesh": jax.make_mesh((8,), ("fsdp",))}, "axis_name='data' is none of the mesh's axes"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_update_step(token_mean, OPTIMIZER, **options)


def test_a_batch_that_does_not_divide_is_refused(batches):
    with pytest.raises(ValueError, match="accumulate=3 must divide"):
        make_update_step(token_mean, OPTIMIZER, accumulate=3)(make_state(), batches[0])


def weighted(x, name="main", **more):
    return {name: Term(x, jnp.ones(()), 1.0), **more}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x, "loss_fn must return"),
        (lambda x: (x, {"loss": x}), "loss is what the update"),
        (lambda x: (x, {"no_signal": x}), "no_signal is what the update"),
        (lambda x: weighted(x, "grad_norm"), "grad_norm is what the update"),
        (lambda x: weighted(x, kl=Term(x, x, 1.0, 0.1), kl_active=mean_term(x)), "kl_active is what the update"),
        (lambda x: {"kl": mean_term(x), "fit": Term(x, x, np.float32(0))}, r"no term has a weight \(kl, fit\)"),
        (lambda x: {}, "no term has a weight"),
        (lambda x: (jnp.ones(8) * x, {}), r"loss must be a scalar, got shape \(8,\)"),
        (lambda x: ((x > 0).astype(int), {}), "loss must be a float, got int32"),
        (lambda x: (x, {"one": x, "each": x * jnp.ones((2, 3))}), r"each must be a scalar, got shape \(2, 3\)"),
        (lambda x: (x, {"deep": {"one": x}}), "deep must be a scalar, got dict"),
        (lambda x: (x, x), "loss_fn must return"),
        (lambda x: (x, {}, {}), "loss_fn must return"),
        (lambda x: {"mse": x}, r"mse must be a Term, such as core\.mean_term\(x\), got .*; or return a pair"),
        (lambda x: weighted(x, deep={"one": mean_term(x)}), "deep must be a Term, .* got dict"),
        (lambda x: weighted(x, kl=Term(jnp.ones(3), x)), r"total of kl must be a scalar, got shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_would_be_misread_is_refused(result, message, accumulate):
    update = make_update_step(lambda params, batch: result(jnp.sum(params["w"])), OPTIMIZER, accumulate=accumulate)
    with pytest.raises(ValueError, match=message):
        update(make_state(), {"x": jnp.zeros(2)})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("as_terms", [True, False])
def test_boolean_integer_and_plain_metrics_are_numbers(as_terms, accumulate):
    def loss_fn(params, batch):
        loss = jnp.mean(params["w"] * batch["x"][:, None])
        right = batch["x"] > 1
        if as_terms:
            one = jnp.ones(())
            counted = Term(jnp.sum(right), jnp.asarray(right.size))
            return weighted(loss, right=mean_term(right), counted=counted, all=Term(jnp.all(right), one))
        return loss, {"right": right[0], "counted": jnp.sum(right), "all": jnp.all(right), "plain": 2}

    update = make_update_step(loss_fn, OPTIMIZER, accumulate=accumulate)
    state, metrics = update(make_state(), {"x": jnp.arange(4.0)})
    expected = (
        {"right": 0.5, "counted": 0.5, "all": 0} if as_terms else {"right": 0, "counted": 2 / accumulate, "all": 0}
    )
    assert {name: float(metrics[name]) for name in expected} == expected and state.skipped == 0
    assert as_terms or metrics["plain"] == 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_metric_that_overflows_does_not_reach_the_gradient(accumulate):
    def objective(params, batch):
        total, one = jnp.sum(params["w"]), jnp.ones(())
        return {"main": Term(total, one, 1.0), "metric": Term(jnp.exp(1000 * jnp.square(total)), one)}

    update = make_update_step(objective, optax.sgd(0.1), accumulate=accumulate)
    state, metrics = update(make_state(optax.sgd(0.1)), {"x": jnp.zeros(2)})
    assert jnp.isinf(metrics["metric"]) and metrics["skipped"] == 0 and state.skipped == 0


def squared(params, batch):
    """A GRPO-like pull far away, with the KL estimate of the whole masked batch as a term of its own."""
    logp = logp_of(params, batch)
    kl = aggregate_steps(kl_k2(logp, batch["old_logp"]), batch["mask"], "token_mean")
    return token_mean(params, batch) | {"kl_old": kl}


def on_policy(batch, params):
    return batch | {"old_logp": logp_of(params, batch)}


SETUPS = {
    "one batch": {},
    "accumulate": {"accumulate": 4},
    "pmap": {"parallel": "pmap"},
    "pmap, accumulate": {"parallel": "pmap", "accumulate": 2},
    "mesh": {"mesh": True},
    "mesh, accumulate": {"mesh": True, "accumulate": 2},
}


def set_up(setup, loss, optimizer, state, batch, **options):
    """The update of a setup, with the state and the batch where it wants them."""
    options |= SETUPS[setup]
    if "mesh" in options:
        options["mesh"] = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    if options.get("parallel") == "pmap":
        state, batch = flax.jax_utils.replicate(state), shard(batch)
    return make_update_step(loss, optimizer, **options), state, batch


@pytest.mark.parametrize("options", SETUPS.values(), ids=SETUPS)
def test_a_limited_step_keeps_the_kl_of_the_whole_batch(options, batches):
    """To the radius where the whole step is too long, alike on one device, on eight, and over micro-batches."""
    optimizer, radius = optax.sgd(3.0), 0.01
    pmapped = options.get("parallel") == "pmap"
    if "mesh" in options:
        options = options | {"mesh": jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))}
    update = make_update_step(squared, optimizer, limit=("kl_old", radius), **options)
    state = flax.jax_utils.replicate(make_state(optimizer)) if pmapped else make_state(optimizer)
    start = make_state(optimizer).params
    for batch in batches:
        batch = on_policy(batch, start)
        state, metrics = update(state, shard(batch) if pmapped else batch)
        one = flax.jax_utils.unreplicate((state, metrics)) if pmapped else (state, metrics)
        realised = squared(one[0].params, batch)["kl_old"].mean
        assert 0.99 * radius < realised < radius * (1 + 1e-5) and 0 < one[1]["step_fraction"] < 1
        assert one[1]["kl_old"] < 1e-9  # metrics are those before the step
        start = jax.device_get(one[0].params)
    free, _ = make_update_step(squared, optimizer)(make_state(optimizer), on_policy(batches[0], make_state().params))
    assert squared(free.params, on_policy(batches[0], make_state().params))["kl_old"].mean > 2 * radius


def test_a_step_inside_the_limit_is_made_whole(batches):
    free = run(make_update_step(hinged, OPTIMIZER), make_state(), batches)
    held, metrics = run(make_update_step(hinged, OPTIMIZER, limit=("kl", 100.0)), make_state(), batches)
    assert_close((held, {name: metrics[name] for name in free[1]}), free, 1e-6)
    assert metrics["step_fraction"] == 1


def test_a_limited_step_goes_the_optimizers_way_and_leaves_its_state_whole(batches):
    batch = on_policy(batches[0], make_state().params)
    free, _ = make_update_step(squared, OPTIMIZER)(make_state(), batch)
    held, metrics = make_update_step(squared, OPTIMIZER, limit=("kl_old", 1e-6))(make_state(), batch)
    old = make_state().params
    expected = jax.tree.map(lambda a, b: a + metrics["step_fraction"] * (b - a), old, free.params)
    assert_close((held.params, held.opt_state), (expected, free.opt_state), 1e-7)
    assert 0 < metrics["step_fraction"] < 0.5 and held.step == 1


def test_what_the_limit_does_not_cut_goes_its_whole_way(batches):
    """A critic learns on while the policy is at the radius."""

    def objective(params, batch):
        error = mean_term((params["critic"] - 5) ** 2)
        return squared(params["policy"], batch) | {"error": error._replace(weight=1.0)}

    params, optimizer = {"policy": make_state().params, "critic": jnp.zeros(())}, optax.adam(0.1)
    batch = on_policy(batches[0], params["policy"])
    found = {}
    for mask in (None, {"policy": True, "critic": False}):
        update = make_update_step(objective, optimizer, limit=("kl_old", 1e-4), limit_mask=mask)
        state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(0))
        for _ in range(100):
            state, metrics = update(state, batch)
        found[mask is None] = float(state.params["critic"])
        assert metrics["step_fraction"] < 1 and squared(state.params["policy"], batch)["kl_old"].mean <= 1e-4
    assert found[True] < 1 and abs(found[False] - 5) < 0.2, found


def test_a_mask_of_the_limit_fits_the_parameters_and_has_one(batches):
    with pytest.raises(ValueError, match="limit_mask has no effect without limit"):
        make_update_step(squared, OPTIMIZER, limit_mask=True)
    with pytest.raises(ValueError, match="limit_mask must be the top of the parameters' tree"):
        make_update_step(squared, OPTIMIZER, limit=("kl_old", 0.1), limit_mask={"x": True})(make_state(), batches[0])


def test_beyond_the_limit_only_a_step_back_inside_is_made(batches):
    """pi_old is far away: a step on the reward alone stays out and is dropped; one on the KL comes back."""

    def pull_back(params, batch):
        return {"kl_old": squared(params, batch)["kl_old"]._replace(weight=1.0)}

    before = squared(make_state().params, batches[0])["kl_old"].mean
    update = make_update_step(squared, OPTIMIZER, limit=("kl_old", 0.1 * float(before)))
    state, metrics = update(make_state(), batches[0])
    assert metrics["step_fraction"] == 0
    assert_close(state.params, make_state().params, 0)
    update = make_update_step(pull_back, optax.sgd(0.05), limit=("kl_old", 0.999 * float(before)))
    state, metrics = update(make_state(optax.sgd(0.05)), batches[0])
    assert metrics["step_fraction"] == 1 and pull_back(state.params, batches[0])["kl_old"].mean < 0.999 * before


def test_a_non_finite_update_is_skipped_under_a_limit_too(batches):
    update = make_update_step(token_mean, OPTIMIZER, limit=("approx_kl", 0.01), donate=False)
    bad = batches[0] | {"advantages": jnp.full((GROUPS, SIZE), jnp.nan)}
    after, metrics = update(make_state(), bad)
    assert_close(after.params, make_state().params, 0)
    assert metrics["skipped"] == 1


def test_limited_steps_learn_and_never_leave_the_trust_region():
    """A bandit with Hard-Pair-GRPO and steps far too long for it: limited, it learns as far, and stays inside."""
    rewards, radius = jnp.linspace(0, 1, 8)[None], 0.02
    pairs = pairs_from_rewards(rewards, scheme="all")

    def logp(params):
        return jax.nn.log_softmax(params)[None]

    def objective(params, batch):
        kl = jnp.sum(jnp.exp(logp(params)) * (logp(params) - batch["old_logp"]))
        terms = hard_pair_grpo_loss.objective(
            logp(params), batch["old_logp"], pairs, 0.1, candidates="likelihood", floor=1e-6
        )
        return terms | {"exact_kl": mean_term(kl)}

    optimizer, worst = optax.adam(0.5), {}
    for name, limit in {"free": None, "limited": ("exact_kl", radius)}.items():
        update = make_update_step(objective, optimizer, limit=limit)
        state, worst[name] = TrainState.create(jnp.zeros(8), optimizer, jax.random.key(0)), 0.0
        for _ in range(100):
            old = {"old_logp": logp(state.params)}
            for _ in range(3):
                state, _ = update(state, old)
            worst[name] = max(worst[name], float(objective(state.params, old)["exact_kl"].mean))
        assert jax.nn.softmax(state.params) @ rewards[0] > 0.85, name
    assert worst["free"] > 3 * radius and worst["limited"] <= radius * (1 + 1e-5)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (("approx_kl", 0.0), "radius must be > 0"),
        (("kl_old", 0.1), "no term 'kl_old'"),
        (("candidate_kl", 0.1), 'limit "approx_kl"'),
    ],
)
def test_a_bad_limit_is_named(limit, message, batches):
    with pytest.raises(ValueError, match=message):
        make_update_step(token_mean, OPTIMIZER, limit=limit)(make_state(), batches[0])


@pytest.mark.parametrize("name", ["loss", "grad_norm", "skipped"])
def test_a_term_called_like_what_the_update_reports_is_named(name):
    update = make_update_step(lambda params, batch: {name: mean_term(params * batch, weight=1.0)}, optax.sgd(0.1))
    state = TrainState.create(jnp.ones(2), optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(ValueError, match=f"objective: {name} is what the update itself reports"):
        update(state, jnp.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ({"w": {"ids": jnp.arange(3)}}, optax.sgd(0.1), jax.random.key(0)),
            r"params\['w'\]\['ids'\]: int32 has no gradient",
        ),
        ((jnp.ones(2), None, jax.random.key(0)), "optimizer must be an optax transformation, got NoneType"),
        ((jnp.ones(2), jax.random.key(0), optax.sgd(0.1)), "optimizer must be an optax transformation, got PRNGKey"),
        ((jnp.ones(2), optax.sgd(0.1), 0), r"key must be a typed PRNG key, jax.random.key\(seed\), got int"),
        ((jnp.ones(2), optax.sgd(0.1), jax.random.PRNGKey(0)), "key must be a typed PRNG key"),
    ],
)
def test_a_state_of_what_cannot_train_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainState.create(*arguments)


def test_a_state_of_another_optimizer_and_what_is_no_state_are_named():
    params, batch = jnp.ones(2), jnp.ones(2)
    state = TrainState.create(params, optax.adam(0.1), jax.random.key(0))
    update = make_update_step(lambda params, batch: {"fit": mean_term(params * batch, weight=1.0)}, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"its opt_state is that of another optimizer.*optimizer.init"):
        update(state, batch)
    renewed, _ = update(state.replace(opt_state=optax.sgd(0.1).init(params)), batch)
    assert not np.allclose(renewed.params, 1)
    with pytest.raises(ValueError, match=r"state must be a TrainState, as of TrainState.create, got dict"):
        update({"w": jnp.ones(2)}, batch)


@pytest.mark.parametrize("optimizer", [optax.contrib.prodigy(1.0), optax.contrib.schedule_free_sgd(0.1)])
def test_optimizers_that_keep_the_parameters_are_donated_too(optimizer):
    """A gradient of 0 at the start, of a group of equal rewards, makes Prodigy's step nan: it is left out."""

    def loss(params, advantages):
        logp = jax.nn.log_softmax(params)[None]
        return grpo_loss.objective(logp, logp, advantages)

    state, update = TrainState.create(jnp.zeros(4), optimizer, jax.random.key(0)), make_update_step(loss, optimizer)
    for advantages in ([0.0, 0, 0, 0], [1.0, -1, 0, 0], [1.0, -1, 0, 0]):
        state, _ = update(state, jnp.array([advantages]))
    assert np.isfinite(state.params).all() and state.params[0] > 0


def test_an_objective_that_trains_nothing_is_named():
    update = make_update_step(lambda params, batch: {"fit": mean_term(params * batch)}, optax.sgd(0.1))
    state = TrainState.create(jnp.ones(2), optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(ValueError, match=r"no term has a weight \(fit\)"):
        update(state, jnp.ones(2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_norm_of_gradients_in_half_precision_is_summed_in_float32(dtype):
    """bfloat16 sums stand still at 160,000 beside 16, and float16 ones overflow: taken for a bad step."""
    slopes = {f"layer {i}": jnp.full(4, 200.0 if i == 0 else 2.0) for i in range(40)}

    def linear(params, batch):
        return sum((params[name].astype(jnp.float32) * slope).sum() for name, slope in slopes.items()), {}

    params = {name: jnp.zeros(4, dtype) for name in slopes}
    update = make_update_step(linear, optax.sgd(1e-3))
    _, metrics = update(TrainState.create(params, optax.sgd(1e-3), jax.random.key(0)), jnp.zeros(2))
    assert metrics["skipped"] == 0
    np.testing.assert_allclose(metrics["grad_norm"], (4 * 200.0**2 + 39 * 4 * 2.0**2) ** 0.5, rtol=1e-5)
