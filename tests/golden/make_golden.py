"""Freezes the values and gradients of TRL's own losses into `trl_losses.json`. Run by hand; no test needs torch.

    python3.11 -m venv /tmp/trl && /tmp/trl/bin/pip install torch==2.13.0 trl==1.16.0
    /tmp/trl/bin/python tests/golden/make_golden.py

Every entry runs TRL 1.16's real code on random numbers: `GRPOTrainer._compute_loss`, `DPOTrainer._compute_loss`,
`KTOTrainer._compute_loss` and `ORPOTrainer.get_batch_loss_metrics` are called on a bare namespace that carries the few
attributes they read, with the forward pass replaced by the stored log-probabilities. Nothing is re-derived here. Two
things to know:

- TRL's rows are `N = B * K`; ours are `[B, K, T]`. Its `kl` is k3 to `ref_logp`, weighted by `beta`.
- ORPO casts to float32 inside TRL, so its entries are exact to float32 only. `ipo` and `sigmoid_norm` divide summed
  log-probabilities by the length inside TRL; the frozen inputs are the per-token means that our losses take.
"""

import json
import types
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

B, K, T, P = 3, 4, 5, 6
LENGTHS = np.array([[5, 3, 0, 2], [1, 5, 4, 5], [2, 2, 5, 3]])  # one fully masked candidate
ACCELERATOR = SimpleNamespace(
    num_processes=1,
    device="cpu",
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
)


def trainer(**fields):
    common = {"model": SimpleNamespace(training=True), "accelerator": ACCELERATOR, "aux_loss_enabled": False}
    return SimpleNamespace(_metrics=defaultdict(lambda: defaultdict(list)), **common, **fields)


def rows(x):
    return torch.as_tensor(x).reshape(-1, *x.shape[2:])


def trl_grpo(x, *, loss_type, clip=(0.2, 0.2), beta=0.0, level="token", max_length=T, delta=None, keep=slice(None)):
    """GRPOTrainer._compute_loss on the groups `keep`; `x` holds logp, old_logp, ref_logp, advantages, mask."""
    x = {name: value[keep] for name, value in x.items()}
    logp = rows(x["logp"])
    self = trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        max_completion_length=max_length,
        importance_sampling_level=level,
        loss_type=loss_type,
        beta=beta,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
    )
    ids = torch.zeros(logp.shape, dtype=torch.int64)
    mask = rows(x["mask"])
    return GRPOTrainer._compute_loss(
        self,
        None,
        {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1],
            "completion_ids": ids,
            "completion_mask": mask,
            "advantages": rows(x["advantages"]),
            "old_per_token_logps": rows(x["old_logp"]),
            "ref_per_token_logps": rows(x["ref_logp"]),
            "num_items_in_batch": mask.sum(),
        },
    )


def trl_dpo(x, *, loss_type, beta=0.1, label_smoothing=0.0, lengths=1):
    """DPOTrainer._compute_loss; inputs are sums over tokens, or per-token means where `lengths` [2P] is given."""
    logp = torch.cat([x["chosen_logp"], x["rejected_logp"]])
    ref = torch.cat([x["ref_chosen_logp"], x["ref_rejected_logp"]])
    lengths = torch.as_tensor(lengths).expand(len(logp))
    steps = int(lengths.max())
    mask = (torch.arange(steps) < lengths[:, None]).long()
    ref_chosen, ref_rejected = (ref * lengths).chunk(2)
    zeros = torch.zeros(mask.shape)
    model = lambda **_: SimpleNamespace(  # noqa: E731
        log_probs=logp[:, None] * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    self = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
    )
    full = torch.cat(
        [torch.zeros(len(logp), 1, dtype=torch.int64), mask], dim=1
    )  # one prompt token, which is shifted off
    inputs = {"input_ids": full, "attention_mask": full, "completion_mask": full}
    return DPOTrainer._compute_loss(
        self, model, inputs | {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}, False
    )


def trl_kto(x, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    """KTOTrainer._compute_loss on sequences of one token; its KL is of `other_logp` to `other_ref`."""
    ones = torch.ones(len(x["logp"]), 2, dtype=torch.int64)

    def model(**_):
        zeros = torch.zeros(len(ones), 1)
        return SimpleNamespace(log_probs=x["logp"][:, None], entropy=zeros, mean_logits=zeros)

    self = trainer(
        calculate_KL=True,
        loss_type="kto",
        precompute_ref_logps=True,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda model, batch: x["other_logp"],
    )
    batch = {"input_ids": ones, "attention_mask": ones, "completion_mask": ones, "label": x["desirable"]}
    return KTOTrainer._compute_loss(
        self, model, batch | {"ref_logps": x["ref_logp"], "ref_KL_logps": x["other_ref"]}, False
    )


def trl_orpo(x, *, weight):
    chosen, rejected = x["chosen_logp"], x["rejected_logp"]
    logits = torch.zeros(1)
    self = trainer(
        beta=weight,
        concatenated_forward=lambda model, batch: (chosen, rejected, logits, logits, -chosen.mean()),
    )
    self.odds_ratio_loss = types.MethodType(ORPOTrainer.odds_ratio_loss, self)
    return ORPOTrainer.get_batch_loss_metrics(self, None, {})[0]


def entry(name, function, inputs, with_grad, call, kwargs, dtype="float64"):
    """One golden value: `function(**inputs, **kwargs)` of ours must give `value`, and `gradients` of `with_grad`."""
    inputs = {key: value.astype(dtype) if value.dtype.kind == "f" else value for key, value in inputs.items()}
    tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
    for key in with_grad:
        tensors[key].requires_grad_()
    value = call(tensors)
    value.backward()
    return {
        "name": name,
        "function": function,
        "dtype": dtype,
        "inputs": {key: value.tolist() for key, value in inputs.items()},
        "kwargs": kwargs,
        "value": value.item(),
        "gradients": {key: tensors[key].grad.tolist() for key in with_grad},
    }


def policy_entries(rng):
    mask = (np.arange(T) < LENGTHS[..., None]).astype(np.float64)
    old = -rng.exponential(1.0, (B, K, T))
    data = {
        "logp": old + rng.normal(0, 0.4, (B, K, T)),
        "old_logp": old,
        "ref_logp": old + rng.normal(0, 0.4, (B, K, T)),
        "advantages": rng.normal(size=(B, K)),
        "mask": mask,
    }
    # name, TRL's options, ours
    cases = [
        ("grpo", {"loss_type": "grpo"}, {}),
        ("bnpo", {"loss_type": "bnpo"}, {"aggregate": "token_mean"}),
        ("dapo", {"loss_type": "dapo", "clip": (0.2, 0.28)}, {"aggregate": "token_mean", "clip": [0.2, 0.28]}),
        ("dr_grpo", {"loss_type": "dr_grpo"}, {"aggregate": "constant"}),
        ("dr_grpo_length", {"loss_type": "dr_grpo", "max_length": 9}, {"aggregate": "constant", "max_length": 9}),
        ("gspo", {"loss_type": "grpo", "level": "sequence"}, {"level": "sequence"}),
        (
            "gspo_token_mean",
            {"loss_type": "bnpo", "level": "sequence"},
            {"level": "sequence", "aggregate": "token_mean"},
        ),
        ("narrow_clip", {"loss_type": "grpo", "clip": (0.05, 0.1)}, {"clip": [0.05, 0.1]}),
        (
            "dual_clip",
            {"loss_type": "grpo", "delta": 1.4},
            {"dual_clip": 1.4},
        ),  # TRL's bounds A > 0 too: at least 1 + high
        # TRL's epsilon_high is the cap itself there, not its distance from 1.
        (
            "cispo",
            {"loss_type": "cispo", "clip": (None, 1.28)},
            {"policy_loss": "cispo", "aggregate": "token_mean", "clip": 0.28},
        ),
    ]
    for name, theirs, ours in cases:
        yield entry(name, "grpo_loss", data, ["logp"], lambda x, o=theirs: trl_grpo(x, **o), ours)
        name, theirs, ours = f"{name}_kl", theirs | {"beta": 0.3}, ours | {"beta": 0.3}
        yield entry(name, "grpo_loss", data, ["logp"], lambda x, o=theirs: trl_grpo(x, **o), ours)
        yield entry(f"{name}_f32", "grpo_loss", data, ["logp"], lambda x, o=theirs: trl_grpo(x, **o), ours, "float32")

    # Soft-Pair-GRPO is TRL's loss on the pair rewards of the groups that have a pair: here group 1 has none, in groups
    # 0 and 2 candidate 3 is preferred to 0 (weight 1), and in group 2 candidate 1 to 2 as well.
    pairs = {
        "preferred": np.array([[3, 0], [0, 0], [3, 1]]),
        "rejected": np.array([[0, 0], [0, 0], [0, 2]]),
        "weight": np.array([[1.0, 0], [0, 0], [1, 1]]),
    }
    rewards = torch.tensor([[-1.0, 0, 0, 1], [0, 0, 0, 0], [-1, 1, -1, 1]], dtype=torch.float64)
    shared = {key: data[key] for key in ("logp", "old_logp", "ref_logp", "mask")}
    for name, theirs, ours in cases:
        if name != "dr_grpo_length":
            call = lambda x, o=theirs: trl_grpo(  # noqa: E731
                {k: x[k] for k in shared} | {"advantages": rewards},
                beta=0.3,
                keep=[0, 2],
                **o,
            )
            yield entry(f"soft_{name}", "soft_pair_grpo_loss", shared | pairs, ["logp"], call, ours | {"beta": 0.3})


def preference_entries(rng):
    names = ("chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp")
    sums = {name: -10 * rng.exponential(1.0, P) for name in names}
    means = {name: -rng.exponential(1.0, P) - 0.01 for name in names}
    one = {name: value[:1] for name, value in sums.items()}
    lengths = rng.integers(1, 8, 2 * P)
    leaves = list(names[:2])
    for beta in (0.1, 0.7):
        kwargs = {"beta": beta}
        yield entry(
            f"dpo_{beta}", "dpo_loss", sums, leaves, lambda x, b=beta: trl_dpo(x, loss_type="sigmoid", beta=b), kwargs
        )
        yield entry(
            f"dpo_norm_{beta}", "dpo_loss", means, leaves,
            lambda x, b=beta: trl_dpo(x, loss_type="sigmoid_norm", beta=b, lengths=lengths), kwargs,
        )  # fmt: skip
        yield entry(
            f"ipo_{beta}", "ipo_loss", means, leaves,
            lambda x, b=beta: trl_dpo(x, loss_type="ipo", beta=b, lengths=lengths), kwargs,
        )  # fmt: skip
    # TRL's only label smoothing of the conservative kind is in `aot`, which for a single pair is DPO.
    yield entry(
        "dpo_smoothed", "dpo_loss", one, leaves,
        lambda x: trl_dpo(x, loss_type="aot", beta=0.3, label_smoothing=0.2), {"beta": 0.3, "label_smoothing": 0.2},
    )  # fmt: skip
    for weight in (0.1, 1.0):
        yield entry(
            f"orpo_{weight}", "orpo_loss", {name: means[name] for name in leaves}, leaves,
            lambda x, w=weight: trl_orpo(x, weight=w), {"weight": weight},
        )  # fmt: skip


def kto_entries(rng):
    names = ("logp", "ref_logp", "other_logp", "other_ref")
    data = {name: -10 * rng.exponential(1.0, P) for name in names} | {"desirable": rng.random(P) < 0.5}
    for sign, name in ((1, "kto"), (-1, "kto_clamped")):  # a negative estimate of the KL is clamped at 0
        gap = np.mean(data["other_logp"] - data["other_ref"])
        data |= {"other_logp": data["other_logp"] + sign * 2 - gap}
        for weights in ({}, {"desirable_weight": 1.33, "undesirable_weight": 0.5}):
            options = {"beta": 0.2, **weights}
            yield entry(
                f"{name}_weighted" if weights else name, "kto_loss", dict(data), ["logp"],
                lambda x, o=options: trl_kto(x, **o), options,
            )  # fmt: skip


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    entries = [*policy_entries(rng), *preference_entries(rng), *kto_entries(rng)]
    path = Path(__file__).with_name("trl_losses.json")
    text = ",\n".join(json.dumps(item, separators=(",", ":")) for item in entries)
    path.write_text(f"[\n{text}\n]\n")
    print(f"{path}: {len(entries)} entries, {path.stat().st_size / 1024:.0f} KiB")
