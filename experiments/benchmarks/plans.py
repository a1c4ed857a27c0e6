"""`pairgrpo plan` of three models on slices of TPUs, compiled by the real compiler, one after the other.

    python -m experiments.benchmarks.plans
    python -m experiments.benchmarks.plans --only qwen2.5-0.5b

Each is planned as if the words above its table had been typed. Needs libtpu: `pip install 'pairgrpo-jax[tpu]'`.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main

_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "rms_norm_eps": 1e-6}
_QWEN |= {"rope_theta": 1e6, "tie_word_embeddings": True, "max_position_embeddings": 32768}
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008}
_LLAMA |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5}
_SMALL = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
_LARGE = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
# Name -> what its published config.json has, and the slice it is planned for.
PLANS = {
    "qwen2.5-0.5b": (_QWEN | _SMALL, "v5e:2x4"),
    "qwen2.5-1.5b": (_QWEN | _LARGE, "v5e:2x4"),
    "llama-2-7b": (_LLAMA | {"tie_word_embeddings": False, "max_position_embeddings": 4096}, "v5p:2x2x2"),
}
Name = Literal["qwen2.5-0.5b", "qwen2.5-1.5b", "llama-2-7b"]
WORDS = "align hard --prompts 8 --candidates 8 --prompt-tokens 512 --completion-tokens 512 --dtype bfloat16 --remat"
WORDS += " --lora-targets q k v o"
MAIN = "from pairgrpo_jax.commands.main import main; main()"


@dataclass(frozen=True)
class Plans:
    """Which models, and how they are trained."""

    only: tuple[Name, ...] = get_args(Name)
    """Models."""
    words: str = WORDS
    """Of `pairgrpo plan`, but for --model and --topology."""


def main() -> int:
    """Plans all, one after the other; 1 if one does not fit, 2 if one cannot be planned."""
    args = tyro.cli(Plans, description=__doc__)
    print(f"on {processor.label()}", flush=True)
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            fields, topology = PLANS[name]
            config = Path(folder) / f"{name}.json"
            config.write_text(json.dumps(fields))
            said = [*args.words.split(), "--topology", topology]
            print(f"\n## pairgrpo plan {' '.join(said)} --model {config.name}\n", flush=True)
            # In a process of its own, as the compiler is opened for one kind of chip.
            codes.append(subprocess.run([sys.executable, "-c", MAIN, "plan", *said, "--model", str(config)]).returncode)
    return max(codes)


if __name__ == "__main__":
    run_main(main)
