"""Every objective of the specification once more, in plain numpy float64 loops.

Written from sections 2 and 3 of the specification, not from `pairgrpo_jax`; slow and obvious on purpose. Shapes:
`[B,K,T]` everywhere, `mask` always given. Pairs are lists per group of `(preferred, rejected, weight)`.
"""

import numpy as np
from scipy import optimize
from scipy.special import logsumexp


def advantages(rewards, baseline="mean", scale="group", ddof=0, eps=1e-4):
    out = np.zeros(rewards.shape)
    for b, group in enumerate(rewards):
        std = {"group": group.std(ddof=ddof), "batch": rewards.std(ddof=ddof), "none": 1.0 - eps}[scale]
        for i, reward in enumerate(group):
            others = np.delete(group, i)
            out[b, i] = (reward - (group if baseline == "mean" else others).mean()) / (std + eps)
    return out


def pairs(rewards, scheme, margin=0.0):
    """Pairs of the deterministic schemes; a gap at or below `margin` makes none."""
    out = []
    for group in rewards:
        best_first = sorted(range(len(group)), key=lambda i: -group[i])
        if scheme == "best_worst":
            found = [(int(np.argmax(group)), int(np.argmin(group)), 1.0)]
        elif scheme == "matched":
            found = [(best_first[i], best_first[-1 - i], 1.0) for i in range(len(group) // 2)]
        else:
            found = [(i, j, 1 / (len(group) - 1)) for i in best_first for j in best_first if group[i] > group[j]]
        out.append([(i, j, w) for i, j, w in found if group[i] - group[j] > margin])
    return out


def listed(pairs):
    """`Pairs` arrays as lists, without the slots of weight 0."""
    return [[(p, r, w) for p, r, w in zip(*map(np.asarray, group)) if w] for group in zip(*pairs)]


def pair_rewards(pairs, size):
    out = np.zeros((len(pairs), size))
    for b, group in enumerate(pairs):
        for preferred, rejected, weight in group:
            out[b, preferred] += weight
            out[b, rejected] -= weight
    return out


def reduce_steps(x, mask, rule, groups, max_length=None):
    """`sequence_mean`, `token_mean` or `constant` over the candidates of `groups`; 0 where nothing counts."""
    candidates = [(b, i) for b in groups for i in range(x.shape[1])]
    sums = [sum(x[b, i, t] for t in range(x.shape[2]) if mask[b, i, t]) for b, i in candidates]
    steps = [mask[b, i].sum() for b, i in candidates]
    if rule == "sequence_mean":
        sums, count = [s / max(n, 1) for s, n in zip(sums, steps)], len(candidates)
    else:
        count = sum(steps) if rule == "token_mean" else len(candidates) * (max_length or x.shape[2])
    return sum(sums) / count if count else 0.0


def clipped(ratio, advantage, low, high, dual_clip=None):
    value = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return value if dual_clip is None or advantage >= 0 else max(value, dual_clip * advantage)


def surrogate(
    logp, old_logp, advantages, mask, *, clip=0.2, dual_clip=None, policy_loss="clip", kl=None, beta=0.0,
    level="token", aggregate="sequence_mean", max_length=None, groups=None,
):  # fmt: skip
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    groups = range(len(logp)) if groups is None else groups
    losses = np.zeros(logp.shape)
    for b, i, t in np.argwhere(mask):
        log_ratio = logp[b, i, t] - old_logp[b, i, t]
        if level == "sequence":
            log_ratio = np.mean((logp - old_logp)[b, i][mask[b, i] > 0])
        ratio, advantage = np.exp(log_ratio), advantages[b, i, t] if advantages.ndim == 3 else advantages[b, i]
        if policy_loss == "cispo":
            losses[b, i, t] = -min(ratio, 1 + clip) * advantage * logp[b, i, t]
        else:
            losses[b, i, t] = -clipped(ratio, advantage, low, high, dual_clip)
    loss = reduce_steps(losses, mask, aggregate, groups, max_length)
    return loss if kl is None else loss + beta * reduce_steps(kl, mask, aggregate, groups, max_length)


def soft(logp, old_logp, pairs, mask, *, beta=0.01, **options):
    active = [b for b, group in enumerate(pairs) if group]
    return surrogate(logp, old_logp, pair_rewards(pairs, logp.shape[1]), mask, beta=beta, groups=active, **options)


def kl_divergence(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q) if a > 0)


def hard_target(p0, pairs, delta, floor=1e-3, max_kl=None):
    """One group. Pairs that overdraw a rejected candidate share what it can give, in proportion."""
    flow = np.zeros(len(p0))
    for preferred, rejected, weight in pairs:
        asked = sum(w * delta for _, r, w in pairs if r == rejected)
        given = min(asked, max(p0[rejected] - floor, 0.0))
        moved = weight * delta * given / asked if asked else 0.0
        flow[preferred] += moved
        flow[rejected] -= moved
    if max_kl is not None and kl_divergence(p0 + flow, p0) > max_kl:
        flow = flow * optimize.brentq(lambda s: kl_divergence(p0 + s * flow, p0) - max_kl, 0, 1, xtol=1e-14)
    return p0 + flow


def hard(
    logp, old_logp, pairs, delta, mask, *, kl=None, alpha=0.5, beta=0.01, fit="reverse", candidates="empirical",
    floor=1e-3, trust_region="hinge", multiplier=None, project_target=False, aggregate="sequence_mean",
):  # fmt: skip
    active = [b for b, group in enumerate(pairs) if group]
    fits, kls = [], []
    for b in active:
        old = np.sum(old_logp[b] * mask[b], axis=-1)
        rho = np.sum((logp - old_logp)[b] * mask[b], axis=-1)
        p0 = np.full(len(old), 1 / len(old)) if candidates == "empirical" else np.exp(old - logsumexp(old))
        p = np.exp(np.log(p0) + rho - logsumexp(np.log(p0) + rho))
        q = hard_target(p0, pairs[b], delta, floor, beta if project_target else None)
        fits.append(kl_divergence(p, q) if fit == "reverse" else kl_divergence(q, p))
        kls.append(kl_divergence(p, p0))
    if not active:
        return 0.0
    distance = np.mean(kls) if kl is None else reduce_steps(kl, mask, aggregate, active)
    trust = multiplier * distance if trust_region == "lagrangian" else alpha * max(distance - beta, 0.0)
    return np.mean(fits) + trust


def ppo(
    logp, old_logp, advantages, values, old_values, returns, mask, *, clip=0.2, dual_clip=None, value_clip=None,
    value_weight=0.5, entropy=None, entropy_weight=0.0,
):  # fmt: skip
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    total = 0.0
    for where in map(tuple, np.argwhere(mask)):
        ratio = np.exp(logp[where] - old_logp[where])
        total -= clipped(ratio, advantages[where], low, high, dual_clip)
        error = (values[where] - returns[where]) ** 2
        if value_clip is not None:
            near = old_values[where] + min(max(values[where] - old_values[where], -value_clip), value_clip)
            error = max(error, (near - returns[where]) ** 2)
        total += value_weight * error
        if entropy is not None:
            total -= entropy_weight * entropy[where]
    return total / max(mask.sum(), 1)


def gae(rewards, values, last_value, discounts, gae_lambda):
    """The definition: a sum over all later steps."""
    steps = rewards.shape[-1]
    following = np.append(values[..., 1:], last_value[..., None], axis=-1)
    errors = rewards + discounts * following - values
    out = np.zeros(rewards.shape)
    for t in range(steps):
        for later in range(t, steps):
            out[..., t] += np.prod(discounts[..., t:later] * gae_lambda, axis=-1) * errors[..., later]
    return out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1, label_smoothing=0.0):
    logit = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return np.mean(-(1 - label_smoothing) * np.log(sigmoid(logit)) - label_smoothing * np.log(sigmoid(-logit)))


def ipo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    return np.mean(((chosen - ref_chosen) - (rejected - ref_rejected) - 1 / (2 * beta)) ** 2)


def kto(logp, ref_logp, desirable, mismatched_logp, mismatched_ref_logp, beta=0.1, lambda_d=1.0, lambda_u=1.0):
    """Value and gradient in logp of eq. 8, one sequence after another."""
    z = max(0.0, float(np.mean(np.asarray(mismatched_logp) - np.asarray(mismatched_ref_logp))))
    losses, slopes = [], []
    for ours, theirs, good in zip(logp, ref_logp, desirable):
        sign, weight = (1, lambda_d) if good else (-1, lambda_u)
        logit = sign * beta * (ours - theirs - z)
        losses.append(weight * sigmoid(-logit))  # lambda - v, without its cancellation
        slopes.append(-weight * sign * beta * sigmoid(logit) * sigmoid(-logit))
    return np.mean(losses), np.array(slopes) / len(losses)


def orpo(chosen, rejected, weight=0.1):
    odds = lambda x: np.exp(x) / (1 - np.exp(x))  # noqa: E731
    return np.mean(-chosen - weight * np.log(sigmoid(np.log(odds(chosen) / odds(rejected)))))
