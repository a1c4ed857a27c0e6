"""TRL's side of `experiments.benchmarks.iteration`: run as a file by an interpreter that has torch, trl and peft.

Its argument is a folder.
"""

import json
import sys
import time
from pathlib import Path

from align_trl import make_config
from answers import serve
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer


def make_trainer(folder: Path, asked: dict) -> GRPOTrainer:
    """A trainer with its optimizer, as at the start of its training loop."""
    args = make_config(
        folder,
        per_device_train_batch_size=len(asked["prompts"]) * asked["samples"],
        num_generations=asked["samples"],
        max_completion_length=asked["new_tokens"],
        learning_rate=asked["rate"],
        loss_type="grpo",
        beta=0.0,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=[f"{name}_proj" for name in "qkvo"])
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": text} for text in asked["prompts"]]),
        peft_config=lora if asked["adapters"] == "lora" else None,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def main() -> None:
    """Answers until the end of input: seconds of a step of its training loop, and the mean length of completions."""
    folder = Path(sys.argv[1])
    trainer = make_trainer(folder, json.loads((folder / "iteration.json").read_text()))

    def iteration() -> tuple[float, float]:
        rows = next(iter(trainer.get_train_dataloader()))
        start = time.perf_counter()
        trainer.training_step(trainer.model.train(), rows, None)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        seconds = time.perf_counter() - start
        return seconds, trainer._metrics["train"]["completions/mean_length"][-1]

    serve(iteration=iteration)


if __name__ == "__main__":
    main()
