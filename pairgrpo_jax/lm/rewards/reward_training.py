"""Training of reward models: pooled features of a data set, Bradley-Terry fits, and updates of the trunk."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.sharding import NamedSharding

from pairgrpo_jax.core.terms import Objective, mean_term
from pairgrpo_jax.lm.data import EncodedPair, pad_texts, ranked_right
from pairgrpo_jax.lm.models import lora as lora_lib
from pairgrpo_jax.lm.models.generation import bucket
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.scoring import Policy, completion_hidden
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, feature_count, features, reward
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.placement import filled_up, put_rows

MODES = ("frozen", "lora", "full")
L2_GRID = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)


class PairTokens(NamedTuple):
    """Padded tokens of B pairs, the chosen reply first: the arguments of `scoring.score`, with K = 2.

    Attributes:
      prompts: int32 `[B, P]`.
      prompt_lengths: int32 `[B]`.
      completions: int32 `[B, 2, T]`.
      lengths: int32 `[B, 2]`.
      keys: `[B]`, for LoRA's dropout; one a pair, so that micro-batches drop different inputs. None: no dropout.
    """

    prompts: jax.Array
    prompt_lengths: jax.Array
    completions: jax.Array
    lengths: jax.Array
    keys: jax.Array | None = None


def pad_pairs(pairs: Sequence[EncodedPair], rows: int | None = None) -> PairTokens:
    """Pads pairs to common lengths, rounded up so that few shapes compile; and to `rows` rows, repeating them."""
    pairs = [pairs[i % len(pairs)] for i in range(rows or len(pairs))]
    replies = [reply for pair in pairs for reply in pair.replies]
    prompts, prompt_lengths = pad_texts([pair.prompt for pair in pairs])
    completions, lengths = pad_texts(replies)
    parts = prompts, prompt_lengths, completions.reshape(len(pairs), 2, -1), lengths.reshape(-1, 2)
    return PairTokens(*map(jnp.asarray, parts))


def batches_by_length(pairs: Sequence[EncodedPair], batch: int) -> Iterator[np.ndarray]:
    """Yields indices of pairs of about the same length, `batch` at most: little padding, and few shapes."""
    order = sorted(range(len(pairs)), key=lambda i: (bucket(len(pairs[i].prompt), 32), _reply_length(pairs[i])))
    for start in range(0, len(order), batch):
        yield np.array(order[start : start + batch])


def _reply_length(pair: EncodedPair) -> int:
    return max(map(len, pair.replies))


def pair_features(
    policy: Policy,
    pairs: Sequence[EncodedPair],
    names: tuple[str, ...],
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
    into: np.ndarray | None = None,
    rows: NamedSharding | None = None,
) -> np.ndarray:
    """Returns float32 features `[N, 2, F]` of the chosen and the rejected replies, from one pass of the frozen trunk.

    Args:
      policy: the trunk.
      pairs: what to pool.
      names: see `reward_model.features`.
      batch: pairs at a time.
      progress: called with the number of pairs done.
      into: the array to fill, as `np.lib.format.open_memmap` opens one; what is finite in it is not computed again.
      rows: splits a batch, rounded up, over the devices of a mesh; needed where the policy lives on one.
    """
    batch = batch if rows is None else filled_up(batch, rows.num_devices)
    if into is None:
        into = empty_features(policy.model, len(pairs), names)
    done = 0
    for index in batches_by_length(pairs, batch):
        if not np.isfinite(into[index]).all():
            tokens = put_rows(pad_pairs([pairs[i] for i in index], batch), rows)
            values = _pooled(policy.model.skeleton, names, *policy[1:], tokens)
            into[index] = processes.fetch(values)[: len(index)]
        done += len(index)
        if progress is not None:
            progress(done)
    return into


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled(model: Model, names: tuple[str, ...], params, lora, tokens: PairTokens) -> jax.Array:
    hidden = completion_hidden(Policy(model, params, lora), *tokens[:4])
    return features(hidden, tokens.lengths, names)


def empty_features(model: Model, count: int, names: tuple[str, ...]) -> np.ndarray:
    """NaN for features `[N, 2, F]` to come."""
    return np.full((count, 2, feature_count(names, model.config.hidden_size)), np.nan, np.float32)


def fit_bradley_terry(differences: np.ndarray, l2: float) -> np.ndarray:
    """Returns the weight `[F]` that makes `weight . (chosen - rejected)` the logit of the preference.

    Logistic regression without intercept, on features divided by the root mean square of their differences, with
    penalty `l2 / 2 |weight|^2` beside the mean loss, by L-BFGS.

    Args:
      differences: chosen minus rejected, `[N, F]`.
      l2: strength of the penalty.

    Raises:
      ValueError: for no row, values that are not finite, or l2 <= 0.
    """
    if differences.ndim != 2 or not len(differences) or not np.isfinite(differences).all():
        raise ValueError(f"differences: expected finite [N, F] with N >= 1, got {differences.shape}")
    if not l2 > 0:
        raise ValueError(f"l2 must be positive, got {l2}")
    scale = np.sqrt(np.square(differences).mean(0))
    scale = np.where(scale > 0, scale, np.inf)  # a feature that never differs gets no weight
    x = (differences / scale).astype(np.float32)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margin = (x @ weight.astype(np.float32)).astype(np.float64)
        wrong = np.exp(-np.logaddexp(0, margin)) / len(x)
        gradient = (wrong.astype(np.float32) @ x).astype(np.float64)
        return np.logaddexp(0, -margin).mean() + l2 / 2 * weight @ weight, l2 * weight - gradient

    how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": {"maxiter": 1000}}
    return scipy.optimize.minimize(loss, np.zeros(x.shape[1]), **how).x / scale


def log_loss(margins: np.ndarray) -> float:
    """Mean of `-log sigmoid(margin)`."""
    return float(np.logaddexp(0, -margins).mean())


def choose_l2(differences: np.ndarray, groups: np.ndarray, grid: Sequence[float] = L2_GRID, folds: int = 4) -> float:
    """Returns the strength of the grid with the least log-loss, cross-validated over groups.

    Args:
      differences: `[N, F]`.
      groups: `[N]` integers; rows of one group (first turn) stay on one side.
      grid: strengths to try.
      folds: of the cross-validation; group g is in fold g % folds.
    """
    if len(grid) == 1:
        return grid[0]
    fold = groups % folds
    losses = np.zeros(len(grid))
    for held in np.unique(fold):
        train, test = differences[fold != held], differences[fold == held]
        if len(train):
            losses += [log_loss(test @ fit_bradley_terry(train, l2)) * len(test) for l2 in grid]
    return grid[int(losses.argmin())]


def fit_head(pooled: np.ndarray, groups: np.ndarray, names: tuple[str, ...], grid: Sequence[float] = L2_GRID):
    """Fits a head to features `[N, 2, F]`, its penalty chosen by cross-validation; returns it and the penalty."""
    differences = pooled[:, 0] - pooled[:, 1]
    l2 = choose_l2(differences, groups, grid)
    weight = fit_bradley_terry(differences, l2)
    bias = -float((pooled.reshape(-1, pooled.shape[-1]) @ weight).mean())
    return RewardHead(jnp.asarray(weight, jnp.float32), jnp.float32(bias), names), l2


def init_trainable(mode: str, model: Model, head: RewardHead, config: lora_lib.LoraConfig, key: jax.Array) -> Any:
    """Returns what "lora" or "full" training updates: the head, and the adapters or the parameters.

    Raises:
      ValueError: for another mode.
    """
    head = RewardHead(jnp.array(head.weight), jnp.array(head.bias), head.features)  # an update may donate them
    if mode == "lora":
        return {"head": head, "adapters": lora_lib.init(config, model.config, key)}
    if mode == "full":
        return {"head": head, "params": jax.tree.map(jnp.copy, model.params)}
    raise ValueError(f"mode={mode!r} is not trained by updates; choose from {', '.join(MODES[1:])}")


def trunk(trainable: Any, model: Model, frozen: Any, config: lora_lib.LoraConfig) -> Policy:
    """Returns the policy of a trainable, over the frozen parameters where it has adapters."""
    if "adapters" in trainable:
        return Policy(model, frozen, lora_lib.variables(config, trainable["adapters"]))
    return Policy(model, trainable["params"])


def make_reward_loss(model: Model, frozen: Any, config: lora_lib.LoraConfig):
    """Returns `loss(trainable, PairTokens) -> Objective` of the Bradley-Terry model, for `training.make_update_step`.

    `-log sigmoid(r_chosen - r_rejected)`, averaged over pairs (https://arxiv.org/abs/2203.02155, eq. 1).

    Args:
      model: the trunk.
      frozen: its parameters; under jit, pass them in rather than closing over them.
      config: of the adapters.
    """

    def loss(trainable: Any, tokens: PairTokens) -> Objective:
        key = None if tokens.keys is None else tokens.keys[0]
        both = reward(trunk(trainable, model, frozen, config), trainable["head"], *tokens[:4], dropout_key=key)
        margin = both[:, 0] - both[:, 1]
        return {
            "bradley_terry": mean_term(jax.nn.softplus(-margin), weight=1.0),
            "accuracy": mean_term(ranked_right(margin)),
            "margin": mean_term(margin),
        }

    return loss
