"""The first iterations of every method, at small sizes, for `test_golden_metrics.py`; frozen before the methods moved.

`PAIRGRPO_GOLDEN=write python -m pytest tests/test_golden_metrics.py` freezes them anew: in a commit that says why.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

FILE = Path(__file__).with_name("metrics.json")
CHEETAH = [f"cheetah {algo} {adv}" for algo in ("ppo", "grpo", "rank", "soft", "hard") for adv in ("value", "segment")]
CHEETAH.remove("cheetah ppo segment")
CHEETAH += ["cheetah hard reward_to_go", "cheetah hard options"]
METHODS = ("grpo", "rank", "ppo", "soft", "hard", "dpo", "ipo", "orpo", "soft-offline", "hard-offline")
SMOLLM2 = [f"smollm2 {name}" for name in ("hard", "ppo", "dpo")]  # the others take the same paths, at 25 seconds each
TINY = [f"tiny {name}" for name in METHODS]
TINY += ["tiny grpo options", "tiny rank options", "tiny soft options", "tiny hard options", "tiny ppo options"]
TINY += ["tiny hard sft", "tiny dpo options", "tiny hard full", "tiny soft judge", "tiny hard head"]

CLOCK = ("judge_latency", "judge_seconds")


def rows(metrics) -> dict:
    found = jax.device_get({name: x for name, x in metrics.items() if name not in CLOCK and "time/" not in name})
    return {name: np.asarray(x, np.float64).tolist() for name, x in sorted(found.items())}


def cheetah(algo: str, mode: str) -> dict:
    from pairgrpo_jax.control import make_env, make_trainer, tuned

    options = mode == "options"
    config = tuned(algo, "value" if options else mode)
    config = config.replace(groups=4, candidates=4, horizon=10, epochs=2, minibatches=4, hidden=(16,))
    if options:
        method = dict(scheme="matched", trust_region="lagrangian", project_target=True, fit="forward", delta_gamma=0.9)
        method |= dict(alpha=0.5, hinge="candidates")  # which the multiplier leaves idle
        how = dict(limit_kl=0.02, entropy_weight=0.01, anneal=False, target_kl=0.0)
        config = config.replace(fork=True, squash=True, **method, **how)
    trainer = make_trainer(config, make_env("mujoco", threads=1), 3)
    state = jax.jit(trainer.init)(jax.random.key(0))
    return rows(jax.jit(trainer.iterate, static_argnums=1)(state, 3)[1])


SMALL = {"prompts": 2, "candidates": 4, "prompt_tokens": 64, "completion_tokens": 8, "lora_rank": 2, "warmup": 2}
OPTIONS = {
    "grpo": dict(clip_high=0.28, level="sequence", aggregate="token_mean", scale="batch", ref_beta=0.05, ref_kl="k2"),
    "rank": dict(aggregate="constant", ref_beta=0.1, anneal=True, minibatches=2, top_k=20),
    "soft": dict(scheme="matched", margin=0.1, aggregate="token_mean", ref_beta=0.05, accumulate=2, rescore=True),
    "hard": dict(
        scheme="best_worst",
        trust_region="lagrangian",
        project_target=True,
        fit="forward",
        length_normalize=True,
        ref_beta=0.02,
        delta_gamma=0.9,
    ),
    "ppo": dict(ref_beta=0.05, gae_lambda=0.9, value_weight=0.3, clip_high=0.3),
    "dpo": dict(reference_scores="cached", length_normalize=True, ref_beta=0.01),
}


def align(model, data, name: str, option: str, decode=None) -> dict:
    from pairgrpo_jax.lm.alignment import make_trainer, tuned
    from pairgrpo_jax.lm.rewards.sources import judge, reward_function

    algo, _, offline = name.partition("-")
    config = tuned(algo, bool(offline))
    config = config.replace(**{k: v for k, v in SMALL.items() if config.has(k)})
    if option == "options":
        config = config.replace(**OPTIONS[algo])
    if option == "sft":
        config = config.replace(sft_iterations=1)
    if option == "full":
        config = config.replace(lora_rank=0)
    config = config if config.scores_reference else config.replace(watch_kl=True)
    source = reward_function(
        lambda prompts, completions: [[float(sum(map(ord, t)) % 97) for t in g] for g in completions]
    )
    if option == "judge":
        source = judge(lambda prompt, a, b: int(sum(map(ord, a)) % 97 < sum(map(ord, b)) % 97))
    if option == "head":
        from pairgrpo_jax.lm.rewards.reward_model import init_head

        head = init_head(model.config.hidden_size)
        source = head.replace(weight=jax.random.normal(jax.random.key(0), head.weight.shape))
    trainer = make_trainer(config, model, data, source, iterations=2, decode=decode)
    return rows(trainer.iterate(trainer.init(jax.random.key(0)), 2)[1])


def smollm2_data(model):
    from pairgrpo_jax.lm.alignment import Data, encode_pairs, encode_prompts
    from pairgrpo_jax.lm.data import load_preferences, load_prompts

    prompts = encode_prompts(model, load_prompts("tiny").rows[:8], 64)
    return Data(prompts, encode_pairs(model, load_preferences("tiny").rows[:8], 64, 8))


def tiny_data():
    from pairgrpo_jax.lm.alignment import Data, EncodedPair, EncodedPrompt

    rng = np.random.default_rng(0)
    ids = lambda low, high, n: rng.integers(low, high, n).tolist()  # noqa: E731
    prompts = [EncodedPrompt(({"role": "user", "content": str(i)},), ids(3, 97, 3 + i % 5)) for i in range(8)]
    return Data(
        prompts, [EncodedPair(p.ids, [*ids(3, 40, 4), 2], [*ids(60, 97, 3 + i % 2), 2]) for i, p in enumerate(prompts)]
    )
