"""One update, `state, batch -> state, metrics`, compiled for one device, for pmap or for a mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pairgrpo_jax.core.step import interpolate, largest_step
from pairgrpo_jax.core.terms import Metrics, Objective, Term, evaluate
from pairgrpo_jax.training.placement import replicate, split
from pairgrpo_jax.training.state import TrainState

LossFn = Callable[[Any, Any], Any]
UpdateStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a non-finite loss or gradient."""


def make_update_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    limit: tuple[str, float] | None = None,
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
      limit: `(name, radius)`: the optimizer's step is cut short so that the objective's term `name`, a KL(pi_theta ||
        pi_old) such as "kl" or "approx_kl", stays at or below `radius` nats over the whole batch. Only parameters are
        cut; the optimizer's state keeps the whole step. Where the batch's KL is above the radius already, no step is
        made that does not end below it. Costs a forward pass over the batch, and 12 more when the step is cut.
      parallel: "jit"; "pmap", for a state replicated over devices (`flax.jax_utils.replicate`) and batch leaves
        `[devices, ...]`; or None for the pure function, to call under your own jit, scan or vmap.
      mesh: with "jit", shard batch leaves over `axis_name` of this mesh; the state keeps the sharding that it has.
      axis_name: the mesh or pmap axis.
      donate: let the update reuse the old state's memory; the old state is then gone.

    Returns:
      `update(state, batch) -> (state, metrics)`. Metrics are the objective's means plus `loss`, `grad_norm` and
      `skipped` (1 if the loss or a gradient was not finite; parameters and optimizer state are then left alone, and
      counted in the state); with `limit` also `step_fraction`, the part of the step that was made.

    Raises:
      ValueError: for accumulate < 1, a radius that is not positive or an unknown `parallel`; on the first call, for a
        leading axis that does not divide, a `limit` on a term that the objective does not have, an objective without a
        weight, or a name that the update reports itself.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be >= 1, got {accumulate}")
    if limit is not None and not limit[1] > 0:
        raise ValueError(f"limit=(name, radius): radius must be > 0 nats, got {limit[1]}")
    if parallel not in ("jit", "pmap", None):
        raise ValueError(f'parallel={parallel!r} is unknown; choose "jit", "pmap" or None')
    if mesh is not None and parallel != "jit":
        raise ValueError('mesh= goes with parallel="jit"')
    if mesh is not None and axis_name not in mesh.axis_names:
        raise ValueError(f"axis_name={axis_name!r} is none of the mesh's axes {mesh.axis_names}")

    def everywhere(tree):
        return jax.lax.psum(tree, axis_name) if parallel == "pmap" else tree

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        terms_of = _micro_batches(_as_objective(loss_fn), batch, accumulate)
        after, metrics = _apply(optimizer, state, *_gradients(terms_of, state.params, accumulate, everywhere))
        if limit is None:
            return after, metrics

        def whole(params):
            return _whole(terms_of, params, accumulate, everywhere)

        after, step = _limited(whole, state.params, after, *limit)
        return after, metrics | step

    donated = (0,) if donate else ()
    if parallel is None:
        return update
    if parallel == "pmap":
        return jax.pmap(update, axis_name=axis_name, donate_argnums=donated)
    if mesh is None:
        return jax.jit(update, donate_argnums=donated)
    return _on_mesh(update, mesh, axis_name, donated)


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
            _require_objective(result)
            return result
        if not isinstance(result, tuple):
            raise ValueError("loss_fn must return an Objective or a pair (loss, metrics)")
        loss, metrics = result
        _require_names(metrics)
        one = jnp.ones((), jnp.float32)
        return {"loss": Term(loss, one, one)} | {name: Term(x, one) for name, x in metrics.items()}

    return objective


def _require_objective(terms: Objective) -> None:
    """Raises ValueError that names the terms if none has a weight: such an objective trains nothing."""
    _require_names(terms, {f"{name}_active" for name, term in terms.items() if term.threshold is not None})
    if all(isinstance(term.weight, (int, float)) and term.weight == 0 for term in terms.values()):
        raise ValueError(f"objective: no term has a weight ({', '.join(terms)}); give one, Term(..., weight=1.0)")


def _require_names(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises ValueError if a term or metric is called like what the update reports itself, or like one of `others`."""
    if taken := sorted({"loss", "grad_norm", "skipped", "step_fraction", *others} & {*names}):
        raise ValueError(f"objective: {', '.join(taken)} is what the update itself reports; rename the term or metric")


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


def _gradients(terms_of, params, accumulate, everywhere):
    """The exact gradient, loss and metrics of the whole batch, over micro-batches and devices.

    An objective is a function of sums, so its gradient is that of `sum_k factor_k * total_k`, with factor
    `weight / count`, or 0 where a hinge is inactive. The factors belong to the whole batch and come from a first
    pass over it; where no term is hinged they need the counts alone, and the compiler drops that pass.
    """
    if accumulate == 1:
        totals, pull_back, local = jax.vjp(lambda p: _totals_and_terms(terms_of(p, 0)), params, has_aux=True)
        terms = _reduce(local, everywhere)
        grads = pull_back(_factors(terms, totals))[0]
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
        grads, stacked = jax.lax.scan(add, zeros, jnp.arange(accumulate))
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        terms = _reduce(_summed(stacked), everywhere)
    loss, metrics = evaluate(terms)
    return everywhere(grads), loss, metrics


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
    metrics = {name for name, term in terms.items() if isinstance(term.weight, (int, float)) and term.weight == 0}
    totals = {name: term.total for name, term in terms.items()}
    return {name: jax.lax.stop_gradient(x) if name in metrics else x for name, x in totals.items()}, terms


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
        return evaluate({name: term._replace(total=totals[name]) for name, term in terms.items()})[0]

    reduced = {name: jnp.asarray(term.total, totals[name].dtype) for name, term in terms.items()}
    return jax.grad(loss_of)(reduced)


def _apply(optimizer, state: TrainState, grads, loss, metrics) -> tuple[TrainState, Metrics]:
    """Optimizer step, or none at all where the loss or a gradient is not finite."""
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    bad = (~finite).astype(jnp.int32)
    state = state.replace(
        params=params,
        opt_state=opt_state,
        step=state.step + 1,
        skipped=state.skipped + bad,
        skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
    )
    return state, metrics | {"loss": loss, "grad_norm": grad_norm, "skipped": bad.astype(jnp.float32)}


def check_finite(state: TrainState, limit: int = 20) -> None:
    """Raises NonFiniteError once `limit` updates in a row were skipped. Reads the device: call it between programs."""
    worst = int(jnp.max(state.skipped_in_row))
    if worst >= limit:
        raise NonFiniteError(
            f"{worst} updates in a row had a non-finite loss or gradient and were skipped; the parameters are those "
            "of the last good update. Lower the learning rate, or look at the batch that starts it"
        )
