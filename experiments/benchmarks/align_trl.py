"""TRL's side of `experiments.benchmarks.align`: run as a file by an interpreter that has torch and trl, nothing else.

Its arguments are a folder and a dtype.
"""

import json
import sys
import time
from pathlib import Path

from answers import serve


def make_config(folder: Path, **options):
    """TRL's settings on a CPU, nothing logged or recomputed."""
    from trl import GRPOConfig

    plain = {"use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False, "disable_dropout": True}
    return GRPOConfig(output_dir=str(folder / "peer"), **plain, **options)


def make_trainer(folder: Path, name: str, batch: dict):
    """A GRPOTrainer that never samples: its loss is called on the fixed batch."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOTrainer

    args = make_config(
        folder,
        per_device_train_batch_size=len(batch["completions"]),
        num_generations=batch["group_size"],
        max_completion_length=len(batch["completions"][0]),
        **batch["settings"][name]["trl"],
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, batch["dtype"])),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def inputs(batch: dict) -> dict:
    """The batch in TRL's layout: one row a completion, prompts padded on the left."""
    import torch

    width, dtype = max(map(len, batch["prompts"])), getattr(torch, batch["dtype"])
    k = batch["group_size"]
    prompts, prompt_mask = [], []
    for ids in batch["prompts"]:
        prompts += [[0] * (width - len(ids)) + ids] * k
        prompt_mask += [[0] * (width - len(ids)) + [1] * len(ids)] * k
    lengths = torch.tensor(batch["lengths"])
    mask = (torch.arange(len(batch["completions"][0])) < lengths[:, None]).long()
    return {
        "prompt_ids": torch.tensor(prompts),
        "prompt_mask": torch.tensor(prompt_mask),
        "completion_ids": torch.tensor(batch["completions"]),
        "completion_mask": mask,
        "advantages": torch.tensor(batch["advantages"], dtype=dtype),
        "old_per_token_logps": torch.tensor(batch["old_logp"], dtype=dtype),
        "ref_per_token_logps": torch.tensor(batch["ref_logp"], dtype=dtype),
        "num_items_in_batch": mask.sum(),
    }


def loss_and_norm(trainer, given) -> tuple[float, float]:
    """Loss and global gradient norm."""
    import torch

    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, given)
    loss.backward()
    return loss.item(), float(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1e9))


def main() -> None:
    """Answers until the end of input."""
    import torch

    folder = Path(sys.argv[1])
    batch = json.loads((folder / "batch.json").read_text()) | {"dtype": sys.argv[2]}
    given, held = inputs(batch), {}

    def loss(name: str) -> tuple[float, float]:
        held.clear()  # one model at a time
        held["trainer"] = make_trainer(folder, name, batch)
        return loss_and_norm(held["trainer"], given)

    def step() -> float:
        if "optimizer" not in held:
            held["trainer"] = make_trainer(folder, "grpo", batch)
            held["optimizer"] = torch.optim.AdamW(held["trainer"].model.parameters(), lr=1e-6)
        start = time.perf_counter()
        loss_and_norm(held["trainer"], given)
        held["optimizer"].step()
        return time.perf_counter() - start

    serve(loss=loss, step=step)


if __name__ == "__main__":
    main()
