"""One update, `state, batch -> state, metrics`, compiled for one device, for pmap or for a mesh."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pairgrpo_jax.core.step import interpolate, largest_step
from pairgrpo_jax.core.terms import (
    Metrics,
    Objective,
    Term,
    as_float,
    has_signal,
    loss_and_means,
    require_names,
    require_objective,
)
from pairgrpo_jax.training.optimizer import global_norm
from pairgrpo_jax.training.placement import replicate, split
from pairgrpo_jax.training.state import TrainState, require_alive

logger = logging.getLogger(__name__)
LossFn = Callable[[Any, Any], Any]
UpdateStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a non-finite loss, gradient or parameter, in every seed."""


def make_update_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    limit: tuple[str, float] | None = None,
    limit_mask: Any = None,
    parallel: str | None = "jit",
    mesh: Mesh | None = None,
    axis_name: str = "data",
    donate: bool = True,
) -> UpdateStep:
    """Builds the update step of a loss.

    Args:
      loss_fn: `loss_fn(params, batch)`. It returns an `Objective` (`grpo_loss.objective(...)`), whose terms are
        summed exactly over micro-batches and devices, or a pair `(loss, metrics)`, whose micro-batches count alike.
      optimizer: an optax transformation; clip gradients there.
      accumulate: number of micro-batches that the leading axis of every batch leaf is split into (scalars are shared).
      limit: `(name, radius)`: the optimizer's step is cut short so that the objective's term `name`, a KL between
        pi_theta and pi_old such as "approx_kl" of every loss with a ratio to pi_old, stays at or below `radius` nats
        over the whole batch. Only parameters are cut; the optimizer's state keeps the whole step. Where the batch's KL
        is above the radius already, no step is made that does not end below it. Costs a forward pass over the batch,
        and 12 more when the step is cut.
      limit_mask: which parameters a limit cuts, a tree of booleans or the top of one, as of `optax.masked`; default:
        all. A critic that the KL does not depend on would stand still while the policy is at the radius:
        `{"policy": True, "critic": False}`.
      parallel: "jit"; "pmap", for a state replicated over devices (`flax.jax_utils.replicate`) and batch leaves
        `[devices, ...]`; None for the pure function, to call under your own jit, scan or vmap; or "axis" for the
        pure function of one device's part, to call under `jax.shard_map` or `jax.vmap` that name the axis.
      mesh: with "jit", shard batch leaves over `axis_name` of this mesh; the state keeps the sharding that it has.
      axis_name: the mesh, pmap or named axis.
      donate: let the update reuse the old state's memory; the old state is then gone.

    Returns:
      `update(state, batch) -> (state, metrics)`; with "jit" and no mesh, and with "pmap", the compiled function is
      its `__wrapped__`. Metrics are the objective's means plus `loss`, `grad_norm`, `skipped` (1 if the loss, a
      gradient or a parameter after the step was not finite; counted in the state) and `no_signal` (1 if no term with a
      weight counts anything). After either, parameters and optimizer state are left alone. With `limit` also
      `step_fraction`, the part of the step made.

    Raises:
      ValueError: for accumulate < 1, a radius that is not positive, a limit on the candidates' KL, a mask without a
        limit or an unknown `parallel`; on the first call, for a leading axis that does not divide, a state made for
        another optimizer, a `limit` on a term that the objective does not have, an objective without a weight or with
        a name that the update reports itself, what is no scalar or no `Term`; on any call, for what is no state, or one
        that was donated.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be >= 1, got {accumulate}")
    if limit is not None and not limit[1] > 0:
        raise ValueError(f"limit=(name, radius): radius must be > 0 nats, got {limit[1]}")
    if limit is not None and limit[0] == "candidate_kl":
        raise ValueError(
            'limit: "candidate_kl" is that of the K candidates and says little of the policy\'s; limit "approx_kl"'
        )
    if limit_mask is not None and limit is None:
        raise ValueError("limit_mask has no effect without limit")
    if parallel not in ("jit", "pmap", "axis", None):
        raise ValueError(f'parallel={parallel!r} is unknown; choose "jit", "pmap", "axis" or None')
    if mesh is not None and parallel != "jit":
        raise ValueError('mesh= goes with parallel="jit"')
    if mesh is not None and axis_name not in mesh.axis_names:
        raise ValueError(f"axis_name={axis_name!r} is none of the mesh's axes {mesh.axis_names}")

    def everywhere(tree):
        return jax.lax.psum(tree, axis_name) if parallel in ("pmap", "axis") else tree

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        terms_of = _micro_batches(_as_objective(loss_fn), batch, accumulate)
        own = functools.partial(_own, batch, axis_name) if parallel == "axis" else lambda tree: tree
        after, metrics = _apply(optimizer, state, *_gradients(terms_of, state.params, accumulate, everywhere, own))
        if limit is None:
            return after, metrics

        def whole(params):
            return _whole(terms_of, params, accumulate, everywhere)

        after, step = _limited(whole, _uncut(limit_mask, state.params, after.params), after, *limit)
        return after, metrics | step

    donated = (0,) if donate else ()
    if parallel in ("axis", None):
        return update
    if parallel == "pmap":
        return _on_living(jax.pmap(update, axis_name=axis_name, donate_argnums=donated))
    if mesh is None:
        return _on_living(jax.jit(update, donate_argnums=donated))
    return _on_living(_on_mesh(update, mesh, axis_name, donated))


def _on_living(compiled: UpdateStep) -> UpdateStep:
    @functools.wraps(compiled)
    def update(state, batch):
        if not isinstance(state, TrainState):
            raise ValueError(f"state must be a TrainState, as of TrainState.create, got {type(state).__name__}")
        require_alive(state)
        return compiled(state, batch)

    return update


def _on_mesh(update, mesh, axis_name, donated):
    """The state enters and leaves replicated unless it is sharded already; batch leaves are split over the axis."""
    compiled = jax.jit(update, donate_argnums=donated)
    mesh = Mesh(mesh.devices, mesh.axis_names)  # the compiler places what lies between, whatever the mesh's axis types

    def sharded_update(state, batch):
        with jax.set_mesh(mesh):
            return compiled(replicate(state, mesh), split(batch, mesh, axis_name))

    return sharded_update


def _as_objective(loss_fn: LossFn) -> Callable[[Any, Any], Objective]:
    def objective(params, batch):
        result = loss_fn(params, batch)
        if isinstance(result, dict):
            require_objective(result)
            for name, term in result.items():
                _require_scalars({f"{field} of {name}": x for field, x in term._asdict().items() if x is not None})
            return {name: term._replace(total=_real(term.total)) for name, term in result.items()}
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
            raise ValueError(
                "loss_fn must return an Objective or a pair (loss, metrics), a scalar and a dict of scalars"
            )
        loss, metrics = result
        require_names(metrics)
        _require_scalars({"loss": loss, **metrics})
        if not _is_real(loss):
            raise ValueError(f"loss_fn: loss must be a float, got {jnp.result_type(loss)}")
        one = jnp.ones((), jnp.float32)
        return {"loss": Term(loss, one, one)} | {name: Term(_real(x), one) for name, x in metrics.items()}

    return objective


def _require_scalars(values: Mapping[str, Any]) -> None:
    """Raises ValueError that names the first that is no scalar, and its shape."""
    for name, x in values.items():
        if not isinstance(x, (jax.Array, np.ndarray, np.generic, bool, int, float)):
            raise ValueError(f"loss_fn: {name} must be a scalar, got {type(x).__name__}")
        if jnp.ndim(x):
            raise ValueError(f"loss_fn: {name} must be a scalar, got shape {jnp.shape(x)}; take its mean")


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _real(x: Any) -> Any:
    """`x`, booleans and integers as float32: gradients are taken of real numbers alone."""
    return x if _is_real(x) else as_float(x)


def _micro_batches(objective, batch, accumulate) -> Callable[[Any, Any], Objective]:
    """`(params, index) -> terms` of one micro-batch."""
    size = _micro_size(batch, accumulate)

    def terms_of(params, index):
        def take(x):  # every `accumulate`-th row, so that each micro-batch of a sharded batch has rows on all devices
            if not jnp.ndim(x):
                return x
            return jax.lax.dynamic_index_in_dim(x.reshape(size, accumulate, *x.shape[1:]), index, 1, keepdims=False)

        return objective(params, batch if accumulate == 1 else jax.tree.map(take, batch))

    return terms_of


def _whole(terms_of, params, accumulate, everywhere) -> Objective:
    """The terms of the whole batch, over micro-batches and devices."""
    if accumulate == 1:
        return _reduce(terms_of(params, 0), everywhere)
    return _reduce(_summed(jax.lax.map(lambda i: terms_of(params, i), jnp.arange(accumulate))), everywhere)


def _own(batch, axis_name, tree):
    """`tree` as this device's own, where `jax.shard_map` knows that the batch is: it sums gradients of what is not."""

    def known(x):
        return axis_name in jax.typeof(x).manual_axis_type.varying

    if not any(map(known, jax.tree.leaves(batch))):
        return tree
    return jax.tree.map(lambda x: x if known(x) else jax.lax.pcast(x, axis_name, to="varying"), tree)


def _gradients(terms_of, params, accumulate, everywhere, own):
    """The exact gradient of the whole batch, whether anything counts, loss and metrics, over all of its parts.

    An objective is a function of sums, so its gradient is that of `sum_k factor_k * total_k`, with factor
    `weight / count`, or 0 where a hinge is inactive. The factors belong to the whole batch and come from a first
    pass over it; where no term is hinged they need the counts alone, and the compiler drops that pass.
    """
    params = own(params)
    if accumulate == 1:

        def parts(params):
            totals, terms = _totals_and_terms(terms_of(params, 0))
            return own(totals), terms

        totals, pull_back, local = jax.vjp(parts, params, has_aux=True)
        terms = _reduce(local, everywhere)
        grads = pull_back(own(_factors(terms, totals)))[0]
    else:
        before = _whole(terms_of, params, accumulate, everywhere)
        factors = _factors(before, {name: term.total for name, term in before.items()})

        def weighted(params, index):
            totals, terms = _totals_and_terms(terms_of(params, index))
            return sum(jnp.sum(factors[name] * total) for name, total in totals.items()), terms

        def add(grads, index):
            more, terms = jax.grad(weighted, has_aux=True)(params, index)
            return jax.tree.map(jnp.add, grads, more), terms

        # Sums of bfloat16 gradients are kept in float32.
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
        grads, stacked = jax.lax.scan(add, own(zeros), jnp.arange(accumulate))
        terms = _reduce(_summed(stacked), everywhere)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), everywhere(grads), params)
    return grads, has_signal(terms), *loss_and_means(terms)


def _uncut(mask: Any, old_params, new_params):
    """The old parameters, but the new ones where the mask says that they are not cut."""
    if mask is None:
        return old_params
    try:
        return jax.tree.map(lambda cut, old, new: old if cut else new, mask, old_params, new_params)
    except ValueError as error:
        raise ValueError(f"limit_mask must be the top of the parameters' tree: {error}") from None


def _limited(whole, old_params, after: TrainState, name: str, radius: float) -> tuple[TrainState, Metrics]:
    """The state with its step cut back to where the mean of the term `name` of `whole(params)` is at most `radius`."""

    def divergence(params):
        terms = whole(params)
        if name not in terms:
            raise ValueError(f"limit: the objective has no term {name!r}; it has {', '.join(terms)}")
        return terms[name].mean

    fraction = largest_step(divergence, old_params, after.params, radius)
    return after.replace(params=interpolate(old_params, after.params, fraction)), {"step_fraction": fraction}


def _micro_size(batch, accumulate):
    sizes = {x.shape[0] for x in jax.tree.leaves(batch) if jnp.ndim(x)}
    if accumulate > 1 and (len(sizes) != 1 or min(sizes) % accumulate):
        raise ValueError(
            f"accumulate={accumulate} must divide the leading axis, the same in every batch leaf; got {sorted(sizes)}"
        )
    return min(sizes, default=0) // accumulate


def _totals_and_terms(terms: Objective):
    # A metric that overflowed must not reach the gradient as 0 * inf.
    return {n: jax.lax.stop_gradient(t.total) if t.is_metric else t.total for n, t in terms.items()}, terms


def _summed(stacked: Objective) -> Objective:
    """Terms whose fields are stacked over micro-batches, added up; weights and thresholds are all alike."""
    return {
        name: Term(
            jnp.sum(term.total, axis=0),
            jnp.sum(term.count, axis=0),
            *jax.tree.map(lambda x: x[0], (term.weight, term.threshold)),
        )
        for name, term in stacked.items()
    }


def _reduce(terms: Objective, everywhere) -> Objective:
    return {
        name: term._replace(total=everywhere(term.total), count=everywhere(term.count)) for name, term in terms.items()
    }


def _factors(terms: Objective, totals):
    """d loss / d total of every term."""

    def loss_of(totals):
        return loss_and_means({name: term._replace(total=totals[name]) for name, term in terms.items()})[0]

    reduced = {name: jnp.asarray(term.total, totals[name].dtype) for name, term in terms.items()}
    return jax.grad(loss_of)(reduced)


def _apply(optimizer, state: TrainState, grads, signal, loss, metrics) -> tuple[TrainState, Metrics]:
    """Optimizer step, or none at all where nothing counts or the loss, a gradient or a parameter is not finite."""
    _require_own(optimizer, state)
    grad_norm = global_norm(grads)

    def step(grads):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    # A computation of its own: fused with the answer, the step itself would be rounded otherwise.
    stay_finite = _stay_finite(state.params, step(jax.lax.optimization_barrier(grads))[0])
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & stay_finite
    made, bad = finite & signal, (~finite & signal).astype(jnp.int32)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(made, new, old), step(grads), (state.params, state.opt_state)
    )
    state = state.replace(
        params=params,
        opt_state=opt_state,
        step=state.step + 1,
        skipped=state.skipped + bad,
        skipped_in_row=jnp.where(made, 0, state.skipped_in_row + bad),
    )
    counts = {"skipped": bad.astype(jnp.float32), "no_signal": 1 - signal.astype(jnp.float32)}
    return state, metrics | {"loss": loss, "grad_norm": grad_norm} | counts


def _require_own(optimizer, state: TrainState) -> None:
    """Raises ValueError unless the state was made for an optimizer like this one."""
    own = jax.tree.structure(jax.eval_shape(optimizer.init, state.params))
    if jax.tree.structure(state.opt_state) != own:
        raise ValueError(
            "state: its opt_state is that of another optimizer than the update's; make both of one, "
            "or begin anew: state.replace(opt_state=optimizer.init(state.params))"
        )


def _stay_finite(old, new) -> jax.Array:
    """Whether every parameter that was finite still is: an optimizer may divide a finite gradient by 0."""
    stay = jax.tree.map(lambda old, new: jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old)), old, new)
    return jnp.all(jnp.stack(jax.tree.leaves(stay)))


def check_finite(state: TrainState, limit: int = 20, reported: frozenset[int] = frozenset()) -> frozenset[int]:
    """Raises NonFiniteError once `limit` updates in a row were skipped. Reads the device: call it between programs.

    Where the counters of the state have a leading axis of seeds, a diverged seed keeps its last good parameters and
    is warned of, and the others go on; the error comes when all have diverged.

    Args:
      state: after an update.
      limit: how many skipped updates in a row mean that a seed has diverged.
      reported: seeds of which there was a warning already.

    Returns:
      `reported` with the seeds that have diverged, for the next call.
    """
    require_alive(state)
    in_row = np.atleast_1d(jax.device_get(state.skipped_in_row))
    diverged = {int(seed) for seed in np.flatnonzero(in_row >= limit)}
    what = (
        "updates in a row had a non-finite loss, gradient or parameter and were skipped; the parameters are those "
        "of the last good update. Lower the learning rate, or look at the batch that starts it"
    )
    if len(diverged) == in_row.size:
        raise NonFiniteError(f"{in_row.max()} {what}")
    for seed in sorted(diverged - reported):
        logger.warning("seed %d has diverged, the others go on: its last %d %s", seed, in_row[seed], what)
    return reported | diverged
