"""Reward models: a linear head on what a causal LM's layers hold of a reply."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pairgrpo_jax.core.bounds import from_values
from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.lm.data import SHIPPED as SHIPPED_DATA
from pairgrpo_jax.lm.data import Half
from pairgrpo_jax.lm.files.adapters import load_adapters
from pairgrpo_jax.lm.files.checkpoint import load_model
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.lm.models.scoring import Policy, Scores, completion_hidden, score_hidden

SHIPPED = tuple(f"{domain}-{half}" for domain in ("helpful", "harmless", "ultrafeedback") for half in "ab")
FEATURES = ("mean", "last", "length")
DEFAULT = ("mean", "last")  # as the shipped heads
_FUNCTIONS = "a function of your own is --reward module:function"


class RewardHead(flax.struct.PyTreeNode):
    """A linear reward, `weight . features + bias`; differences are logits of the Bradley-Terry model.

    Attributes:
      weight: float32 `[F]`.
      bias: float32 scalar; puts the mean reward of the training replies at 0.
      features: what F is made of, see `features`; static under jit.
    """

    weight: jax.Array
    bias: jax.Array
    features: tuple[str, ...] = flax.struct.field(pytree_node=False)


def features(hidden: jax.Array, lengths: jax.Array, names: tuple[str, ...] = DEFAULT) -> jax.Array:
    """Pools the hidden states of replies.

    The states are those that predict a reply's tokens, as `completion_hidden` returns them: the first belongs to the
    last token of the prompt, the last to the reply's last token but one, which is all of its text if it has ended.

    Args:
      hidden: `[B, K, T, d]`.
      lengths: `[B, K]`, at least 1 each.
      names: out of "mean" and "last" (d numbers each) and "length" (log of the number of tokens).

    Returns:
      float32 `[B, K, F]`.

    Raises:
      ValueError: for an unknown name.
    """
    check_features(names)
    hidden, count = hidden.astype(jnp.float32), jnp.maximum(lengths, 1)[..., None]
    real = (jnp.arange(hidden.shape[2]) < count)[..., None]
    pooled = {
        "mean": lambda: jnp.where(real, hidden, 0).sum(2) / count,
        "last": lambda: jnp.take_along_axis(hidden, count[..., None] - 1, axis=2)[:, :, 0],
        "length": lambda: jnp.log(count.astype(jnp.float32)),
    }
    return jnp.concatenate([pooled[name]() for name in names], axis=-1)


def check_features(names: Sequence[str]) -> None:
    """Raises ValueError for a name that `features` does not know, or for none."""
    unknown = set(names) - set(FEATURES)
    if unknown or not names:
        raise ValueError(f"features: unknown {sorted(unknown)}; choose from {', '.join(FEATURES)}")


def feature_count(names: Sequence[str], width: int) -> int:
    """Returns F for a model of hidden size `width`."""
    return sum(1 if name == "length" else width for name in names)


def init_head(width: int, names: tuple[str, ...] = DEFAULT) -> RewardHead:
    """Returns a head of zeros for a model of hidden size `width`."""
    return RewardHead(jnp.zeros(feature_count(names, width)), jnp.zeros(()), names)


def check_head(head: RewardHead, config: ModelConfig) -> None:
    """Raises ValueError if the head was made for features of another size, as those of another model are."""
    count = feature_count(head.features, config.hidden_size)
    if len(head.weight) != count:
        what = f"head: made for {len(head.weight)} features, and this model gives {count}"
        raise ValueError(f"{what}; fit one on it with pairgrpo reward-model, or reward it otherwise")


def rewards(head: RewardHead, features: jax.Array) -> jax.Array:
    """Returns rewards `[B, K]` of features `[B, K, F]`.

    Raises:
      ValueError: if the head was made for features of another size, as those of another model are.
    """
    if features.shape[-1] != head.weight.shape[0]:
        raise ValueError(f"head: made for {head.weight.shape[0]} features, this model gives {features.shape[-1]}")
    return features @ head.weight + head.bias


def score_and_reward(
    reference: Policy,
    head: RewardHead,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    completions: jax.Array,
    lengths: jax.Array,
    *,
    sampling: Sampling | None = None,
    kept: jax.Array | None = None,
    chunk: int = 256,
) -> tuple[Scores, jax.Array]:
    """Reference log-probabilities and rewards out of one forward pass of the shared base.

    Args:
      reference: the base that the head was trained on.
      head: the reward head.
      prompts: as the next three, see `scoring.score`.
      prompt_lengths: `[B]`.
      completions: `[B, K, T]`.
      lengths: `[B, K]`.
      sampling: see `scoring.score`, as the next; the rewards do not depend on them.
      kept: `[B, K, T, ceil(V / 8)]`.
      chunk: positions projected to the vocabulary at a time.

    Returns:
      `Scores` `[B, K, T]` and rewards `[B, K]`.
    """
    hidden = completion_hidden(reference, prompts, prompt_lengths, completions, lengths)
    scores = score_hidden(reference, hidden, completions, lengths, sampling=sampling, kept=kept, chunk=chunk)
    return scores, rewards(head, features(hidden, lengths, head.features))


def reward(
    policy: Policy, head: RewardHead, prompts, prompt_lengths, completions, lengths, *, dropout_key=None
) -> jax.Array:
    """Rewards `[B, K]` alone; arguments as those of `score_and_reward`. Differentiable in the policy and the head."""
    hidden = completion_hidden(policy, prompts, prompt_lengths, completions, lengths, dropout_key=dropout_key)
    return rewards(head, features(hidden, lengths, head.features))


def save_head(head: RewardHead, path: Path | str, **about: Any) -> None:
    """Writes a head as safetensors.

    Args:
      head: what to write.
      path: a file that ends in .safetensors.
      **about: JSON-able facts to keep beside it: the model, the data, the accuracy.
    """
    tensors = {"weight": np.asarray(head.weight, np.float32), "bias": np.asarray(head.bias, np.float32).reshape(1)}
    metadata = {"features": json.dumps(head.features)} | {k: json.dumps(v) for k, v in about.items()}
    save_file(tensors, path, metadata=metadata)


def load_head(name_or_path: Path | str) -> RewardHead:
    """Loads a shipped head for SmolLM2-135M-Instruct, or a file of `save_head`, made on a frozen trunk.

    "helpful-a", "harmless-a" and "ultrafeedback-a" were trained on one half of their data, by first turn, "-b" on the
    other: one to train a policy on, the other to judge it.

    Raises:
      ValueError: if there is no such head, the file does not hold one, or its trunk was trained with it.
    """
    if (mode := about_head(name_or_path).get("mode", "frozen")) != "frozen":
        remedy = "name with --judge a head on a frozen trunk, or '' for none; in code, load_reward_model loads it"
        raise ValueError(f"{name_or_path}: its trunk was trained too (mode {mode!r}), and a judge is a head; {remedy}")
    return _load_head(name_or_path)[0]


def about_head(name_or_path: Path | str) -> dict[str, Any]:
    """The facts that `save_head` was given: model, data, accuracy; raises as `load_head`."""
    return _load_head(name_or_path)[1]


def fitted_on(name_or_path: Path | str, data: str) -> Half | None:
    """The half of all first turns that a head was fitted on, and whose rows of `data` it cannot judge as held out.

    None where it has seen none of them (a shipped head has seen no shipped data), or where the file does not say.
    """
    about = about_head(name_or_path)
    if "half" not in about or (str(name_or_path) in SHIPPED and data in SHIPPED_DATA):
        return None
    return Half(about["half"], about["seed"])


def load_reward_model(
    name_or_path: Path | str, model: Model, *, ignore_fields: Iterable[str] = ()
) -> tuple[Policy, RewardHead]:
    """Loads a head with the trunk it was trained on, as `pairgrpo reward-model` leaves them side by side.

    Args:
      name_or_path: a shipped head, or a file NAME.safetensors of any mode.
      model: the base; the trunk itself (frozen), or what the adapters of NAME-adapters.safetensors go on (lora). A
        whole trunk comes from the folder NAME-trunk (full). A trained trunk (lora, full) reads conversations as in its
        training; as `model` does where a file does not say how that was.
      ignore_fields: of the trunk's config, see `load_model`.

    Raises:
      ValueError: as `load_head`, for files that are missing, and for a head or adapters that do not fit the model.
    """
    path, (head, about) = Path(name_or_path), _load_head(name_or_path)
    mode, policy = about.get("mode", "frozen"), Policy(model, model.params)
    if mode == "lora":
        file = path.with_name(f"{path.stem}-adapters.safetensors")
        config = lora.LoraConfig(**about["lora"])
        config = dataclasses.replace(config, targets=tuple(config.targets))  # JSON has no tuples
        adapters = load_adapters(file, config, model.config)
        policy = policy._replace(lora=lora.variables(config, adapters))
    elif mode == "full":
        options = {"ignore_fields": ignore_fields, "end_of_turn": about.get("end_of_turn")}
        trunk = load_model(path.with_name(f"{path.stem}-trunk"), **options)
        policy = Policy(trunk, trunk.params)
    if mode != "frozen":
        chat = from_values(Chat, about["chat"]) if "chat" in about else model.chat
        policy = policy._replace(model=dataclasses.replace(policy.model, chat=chat))
    check_head(head, policy.model.config)
    return policy, head


def _load_head(name_or_path: Path | str) -> tuple[RewardHead, dict[str, Any]]:
    name = str(name_or_path)
    path = Path(name)
    if name in SHIPPED:
        path = Path(str(resources.files("pairgrpo_jax.lm").joinpath(f"assets/{name}.safetensors")))
    elif not path.is_file():
        hint = did_you_mean(name, SHIPPED, _FUNCTIONS)
        raise ValueError(f"{name}: no such file, and not one of {', '.join(SHIPPED)}; {hint}")
    try:
        with safe_open(path, "numpy") as file:
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            names = tuple(about.pop("features"))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as e:
        raise ValueError(f"{name}: not a reward head: {_FUNCTIONS if path.suffix == '.py' else e}") from e
    if weight.ndim != 1 or bias.shape != (1,) or not set(names) <= set(FEATURES) or not names:
        raise ValueError(f"{name}: not a reward head: weight {weight.shape}, bias {bias.shape}, features {names}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"{name}: the weights are not finite")
    return RewardHead(jnp.asarray(weight, jnp.float32), jnp.asarray(bias[0], jnp.float32), names), about
