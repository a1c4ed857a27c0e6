"""KL divergences and their estimators, named by value *and* by gradient.

With samples of the policy itself (theta = theta_old), differentiating an estimator as if it were a loss gives
(checked in tests/core/test_kl.py):

    ========= ============================= ==========================================
    estimator expected value                expected gradient
    ========= ============================= ==========================================
    kl_k1     KL(policy || other)           0: it does not pull at all
    kl_k2     close to KL(policy || other)  gradient of KL(policy || other)
    kl_k3     KL(policy || other)           gradient of KL(other || policy), the *forward* KL
    ========= ============================= ==========================================

Names after J. Schulman, "Approximating KL divergence" (2020).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pairgrpo_jax.core.checks import require_broadcast, require_no_list, require_nonnegative, require_same_shape
from pairgrpo_jax.core.terms import as_float, masked


def kl_k1(logp: jax.Array, other_logp: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`logp - other_logp`, elementwise. Unbiased value; its expected gradient on-policy is 0.

    Args:
      logp: log-probabilities of the samples under the policy, any shape.
      other_logp: the same under the other distribution.
      mask: like them, 1 where a step counts; elsewhere the estimate and its gradient are 0, whatever lies there.

    Raises:
      ValueError: if shapes differ, or a mask is negative.
    """
    require_no_list(logp=logp, other_logp=other_logp, mask=mask)
    logp, other_logp = as_float(logp), as_float(other_logp)
    require_same_shape(logp=logp, other_logp=other_logp, mask=mask)
    require_nonnegative(mask=mask)
    return masked(logp, mask) - masked(other_logp, mask)


def kl_k2(logp: jax.Array, other_logp: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`(logp - other_logp)^2 / 2`, elementwise. Biased value; its expected gradient is that of KL(policy || other).

    Arguments are those of `kl_k1`.
    """
    return jnp.square(kl_k1(logp, other_logp, mask)) / 2


def kl_k3(logp: jax.Array, other_logp: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`exp(other - logp) - (other - logp) - 1`, elementwise, never negative.

    Unbiased value; its expected gradient is that of the forward KL(other || policy), not of KL(policy || other).
    It overflows (float32) where a step is 88 nats less likely than under the other. Arguments are those of `kl_k1`.
    """
    difference = -kl_k1(logp, other_logp, mask)
    return jnp.expm1(difference) - difference


def categorical_kl(logits: jax.Array, other_logits: jax.Array) -> jax.Array:
    """Exact KL(softmax(logits) || softmax(other_logits)) over the last axis.

    Args:
      logits: `[..., V]`; -inf marks an impossible class.
      other_logits: `[..., V]`.

    Returns:
      `[...]` divergences in nats; the gradient is exact too.

    Raises:
      ValueError: if shapes differ.
    """
    require_same_shape(logits=logits, other_logits=other_logits)
    logits, other_logits = as_float(logits), as_float(other_logits)
    logp, other = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    possible = jnp.isfinite(logp)
    difference = jnp.where(possible, logp, 0) - jnp.where(possible, other, 0)
    return jnp.sum(jnp.where(possible, jnp.exp(logp), 0) * difference, axis=-1)


def gaussian_kl(mean: jax.Array, log_std: jax.Array, other_mean: jax.Array, other_log_std: jax.Array) -> jax.Array:
    """Exact KL(N(mean, std) || N(other_mean, other_std)) of diagonal Gaussians, summed over the last axis.

    A tanh squashing leaves it unchanged, so this is also the KL of two tanh-normals.

    Args:
      mean: `[..., A]`; the other three broadcast against it.
      log_std: `[..., A]`, natural logarithm of the standard deviation.
      other_mean: `[..., A]`.
      other_log_std: `[..., A]`.

    Returns:
      `[...]` divergences in nats.

    Raises:
      ValueError: for shapes that do not broadcast.
    """
    require_broadcast(mean=mean, log_std=log_std, other_mean=other_mean, other_log_std=other_log_std)
    mean, log_std = as_float(mean), as_float(log_std)
    other_mean, other_log_std = as_float(other_mean), as_float(other_log_std)
    ratio = log_std - other_log_std
    scaled = (mean - other_mean) * jnp.exp(-other_log_std)
    return jnp.sum((jnp.expm1(2 * ratio) + jnp.square(scaled)) / 2 - ratio, axis=-1)
